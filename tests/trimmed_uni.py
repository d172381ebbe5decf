"""``python -m tests.trimmed_uni FOLDER`` makes tests/golden/llada2_uni_tiny from the measured folder of that name, three times as large.

What it leaves out, and nothing else, so that every array is still compared:

* Large outputs keep every n-th number (``unmask.evaluation.thinned``). Inputs and small outputs stay whole.
* Of the decoders' time embedding, 1,024 hidden units wide whatever the model's size, it keeps a few units with their weights, and solves
  for the output layer that gives the same embedding at every time that the arrays use. They are equal to within 3e-7.
* The noise of SPRINT's draws, of which only the largest product with a probability counts, is rounded to 1/256: it draws the same tokens.
* The half of Flux's VAE that encodes, and the tokenizer's ``post_quant_conv``: neither is ever used.

The pickled features of codes stay as released. Then ``python -m tests.packed tests/golden/llada2_uni_tiny``.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from unmask.checkpoints.llada2_uni import load_flow
from unmask.evaluation.thinned import Thinning
from unmask.evaluation.verify_llada2_uni import UNI_INPUTS
from unmask.tokens.uni import FlowSchedule, TurboSchedule
from unmask.tokens.z_image import TimeEmbedding

from .packed import GOLDEN

LEAST = 500  # numbers of a thinned array
_UNITS = 3  # kept for each time
_NOISE, _STEPS = "noisy_sprint.uniform", 256


def trim(source: Path, folder: Path) -> Path:
    """The trimmed copy of ``source``."""
    shutil.copytree(source, folder, copy_function=shutil.copyfile)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    for path in folder.rglob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()), ensure_ascii=False, separators=(",", ":")))
    arrays = load_file(source / "expected.safetensors")
    for name in ("decoder", "decoder-turbo"):
        path = folder / name / "decoder_model.safetensors"
        times = used_times(arrays, turbo=name != "decoder")
        save_file(load_file(path) | fewer_units(load_flow(source / name).t_embedder, times), path)
    for path, part in (
        (folder / "vae" / "diffusion_pytorch_model.safetensors", "encoder."),
        (folder / "image_tokenizer" / "image_tokenizer.safetensors", "model.vqmodel.post_quant_conv."),
    ):
        save_file({name: one for name, one in load_file(path).items() if not name.startswith(part)}, path)
    thinning = Thinning.of({name: one for name, one in arrays.items() if name not in UNI_INPUTS}, LEAST)
    with safe_open(str(source / "expected.safetensors"), "pt") as opened:
        metadata = {**opened.metadata(), **thinning.metadata()}
    arrays[_NOISE] = coarse(arrays[_NOISE])
    kept = {name: thinning.thin(name, one) for name, one in arrays.items()}
    save_file(kept, folder / "expected.safetensors", metadata=metadata)
    return folder


def coarse(uniform: Tensor) -> Tensor:
    """Uniform numbers in steps of 1/256, inside (0, 1)."""
    return ((uniform * _STEPS).round().clamp(1, _STEPS - 1) / _STEPS).to(uniform)


def used_times(arrays: dict[str, Tensor], *, turbo: bool) -> Tensor:
    """Every time at which the arrays need a decoder, float32."""
    if turbo:
        times = TurboSchedule(steps=int(arrays["turbo.steps"])).times()[:-1].float()
    else:
        times = FlowSchedule(points=int(arrays["dec.steps"])).times()[:-1]
    return torch.cat([times, arrays[f"{'turbo' if turbo else 'dec'}.one_t"].flatten()]).unique()


def fewer_units(embedding: TimeEmbedding, times: Tensor) -> dict[str, Tensor]:
    """The weights of a time embedding with few hidden units that is equal at ``times``, by their names in a decoder."""
    first, _, last = embedding.mlp
    seen = list[Tensor]()
    hook = last.register_forward_pre_hook(lambda _, given: seen.append(given[0].double()))
    with torch.no_grad():
        embedding(times)
    hook.remove()
    hidden = seen[0]
    kept = sorted(well_conditioned(hidden, _UNITS * len(times)))
    wanted = hidden @ last.get_parameter("weight").double().T
    solved = torch.linalg.lstsq(hidden[:, kept], wanted, driver="gelsd").solution
    new = {
        "0.weight": first.get_parameter("weight")[kept],
        "0.bias": first.get_parameter("bias")[kept],
        "2.weight": solved.T,
    }
    return {f"t_embedder.mlp.{name}": one.detach().float().contiguous() for name, one in new.items()}


def well_conditioned(columns: Tensor, count: int) -> list[int]:
    """``count`` columns: first those that span all, each the one that the earlier ones explain least, then the longest of the others."""
    left, found = columns.clone(), list[int]()
    for _ in range(len(columns)):
        found.append(int(left.norm(dim=0).argmax()))
        one = left[:, found[-1]] / left[:, found[-1]].norm()
        left = left - one[:, None] * (one @ left)
    longest = columns.norm(dim=0).argsort(descending=True).tolist()
    return found + [n for n in longest if n not in found][: count - len(found)]


if __name__ == "__main__":
    print(trim(Path(sys.argv[1]), GOLDEN / "llada2_uni_tiny"))
