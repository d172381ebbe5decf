"""A folder whose weights are pickles (.bin, .pt, .pth, .ckpt) -> the same folder with safetensors.

Public idea: ``to_safetensors(source, out)``, the only place that reads a pickle, and only on request: a process of its own reads it with
torch's restricted reader (``checkpoints/unpickling.py``). Files that are not weights, such as an optimiser's state, are left out.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from unmask.checkpoints import unpickling
from unmask.checkpoints.stream import OTHER_WEIGHTS, PICKLES, CheckpointError, read_header
from unmask.json_types import Json
from unmask.writing import copy_file, whole_folder, write_text

PARTS = ("", "vqvae", "magvitv2", "image_tokenizer")  # folders of a model that hold weights
_WEIGHTS = re.compile(
    r"(?P<name>pytorch_model|diffusion_pytorch_model|model|adapter_model|sigvq_embedding)(?P<shard>-\d{5}-of-\d{5})?",
    re.ASCII,
)
_INDEX = "*.index.json"  # of pickles; a new one is written
_KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR")


def to_safetensors(source: str | os.PathLike[str], out: Path) -> list[Path]:
    """Write ``out``, whole or not at all. Returns its files. CheckpointError for a source without pickles, and for one that holds more
    than weights; ValueError if ``out`` exists.
    """
    place = Path(source)
    if place.is_file() and place.suffix in PICKLES:
        with whole_folder(out) as folder:
            _convert(place, folder / "model.safetensors")
        return [out / "model.safetensors"]
    if not place.is_dir():
        raise CheckpointError(f"{place} is no folder and no pickle of weights; give a folder with {', '.join(PICKLES)}")
    found = {part: weights_in(place / part) for part in PARTS if (place / part).is_dir()}
    if not any(found.values()):
        raise CheckpointError(f"{place} holds no pickles of weights; it needs no conversion to safetensors")
    with whole_folder(out) as folder:
        shutil.copytree(
            place,
            folder,
            ignore=shutil.ignore_patterns(*OTHER_WEIGHTS, _INDEX),
            dirs_exist_ok=True,
            copy_function=copy_file,
        )
        for part, files in found.items():
            for file, target in files.items():
                _convert(file, folder / part / target)
            _write_index(folder / part, sorted(files.values()))
    return sorted(p for p in out.rglob("*") if p.is_file())


def weights_in(folder: Path) -> dict[Path, str]:
    """The pickles of weights in a folder, and the names of the files that they become. CheckpointError where such a file exists."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in PICKLES)
    named = {file: match for file in files if (match := _WEIGHTS.fullmatch(file.stem))}
    if not named and len(files) == 1:
        return {files[0]: "model.safetensors"}
    in_part = folder.name in PARTS[1:]
    out: dict[Path, str] = {}
    for file, match in named.items():
        name = "model" if match["name"] == "pytorch_model" and not in_part else match["name"]
        target = f"{name}{match['shard'] or ''}.safetensors"
        if (folder / target).exists() or target in out.values():
            raise CheckpointError(f"{folder} has {target} beside {file.name}; remove the one that you do not want")
        out[file] = target
    return out


def _convert(source: Path, target: Path) -> None:
    """One file. CheckpointError if the reader refuses it."""
    environment = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    words = [sys.executable, "-I", str(unpickling.__file__), str(source.resolve()), str(target.resolve())]
    done = subprocess.run(words, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    said = _answer(done.stdout)
    if done.returncode or "error" in said:
        reason = said.get("error") or f"the reader ended with code {done.returncode}"
        raise CheckpointError(f"{source}: {reason}; get the weights in safetensors, or from those who made them")


def _answer(text: str) -> Json:
    try:
        found = json.loads(text.strip().rpartition("\n")[2])
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _write_index(folder: Path, files: list[str]) -> None:
    """The shard index that other loaders read, where there are shards."""
    shards = [file for file in files if "-of-" in file]
    if not shards:
        return
    tensors = {tensor.name: (file, tensor.nbytes) for file in shards for tensor in read_header(folder / file)}
    value = {
        "metadata": {"total_size": sum(nbytes for _, nbytes in tensors.values())},
        "weight_map": {name: file for name, (file, _) in sorted(tensors.items())},
    }
    stem = shards[0].partition("-")[0]
    write_text(folder / f"{stem}.safetensors.index.json", json.dumps(value, indent=1) + "\n")
