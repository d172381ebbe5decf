"""Altered model folders: does one end in a traceback, hang, fill the memory, or open with nonsense and answer?

    python bench/altered_folders.py
    python bench/altered_folders.py --sample 600 --history
    python bench/altered_folders.py --layout own --only config.json --history

``mini`` in our own layout and in that of LaViDa-O, and a small random model in LLaDA's, are altered in every way of ``alterations.py``.
Each folder is opened, and asked something where it opens, in a process with limits, which is used again where nothing went wrong.
Counted: errors that the command line would show as a traceback or that name no file, more than 5 CPU seconds or a wait without end, more
than 1 GB above the process before it, and alterations that are no valid configuration and still give an answer. Exits with 1 if there are
any.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alterations import Alteration, alterations

from unmask.evaluation.history import Line, append

MOST_SECONDS, MOST_BYTES = 5.0, 10**9
_WAIT = 60.0  # seconds without an answer after which a process counts as hanging, on a loaded machine too
LAYOUTS = ("own", "lavida_o", "llada")
HISTORY = Path(__file__).parent / "history.jsonl"
_KINDS = ("traceback", "hang", "memory", "nonsense")


# -- the process that opens folders -------------------------------------------------------------------------------------


def attempt(folder: Path) -> str:
    """An answer of the model in a folder. It draws, or writes for a text model, as short as possible."""
    import unmask

    model = unmask.load(folder)
    return model.infill_text("a [mask] ball").text


def outcome_of(folder: Path) -> dict[str, Any]:
    """What opening a folder and asking it gives: an answer, a refusal, or what it should not give."""
    names = {p.name for p in folder.rglob("*")} | {folder.name}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return {"answer": attempt(folder)[:200]}
    except MemoryError:
        return {"wrong": "memory", "why": "MemoryError"}
    except (ValueError, OSError) as error:
        text = str(error)
        told = "\n" not in text and any(name in text for name in names) and not isinstance(error, UnicodeError)
        return {"refused": text[:300]} if told else {"wrong": "traceback", "why": f"names no file: {error!r}"[:300]}
    except BaseException as error:  # a panic of the tokenizer too
        return {"wrong": "traceback", "why": f"{type(error).__name__}: {error}"[:300]}


def _peak() -> int:
    line = next(t for t in Path("/proc/self/status").read_text().splitlines() if t.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def serve() -> None:
    """Read folders from standard input, one a line; write an outcome each."""
    import torch

    torch.set_num_threads(1)
    import unmask

    unmask.load("mini").infill_text("a [mask]")  # what is imported and allocated once does not count
    print("ready", flush=True)
    for line in sys.stdin:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak
        before, began = _peak(), time.process_time()
        soft = int(began) + 60
        resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_AS, (_mapped() + 4 * 10**9, resource.RLIM_INFINITY))
        found = outcome_of(Path(line.rstrip("\n")))
        found |= {"seconds": time.process_time() - began, "bytes": _peak() - before}
        print(json.dumps(found), flush=True)


def _mapped() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


class Opener:
    """A process that opens folders. It is started again after one that it did not survive."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def __call__(self, folder: Path) -> dict[str, Any]:
        process = self.process or self._started()
        assert process.stdin and process.stdout
        process.stdin.write(f"{folder}\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], _WAIT)
        line = process.stdout.readline() if ready else ""
        if not line:
            code = self.close()
            return {
                "wrong": "hang" if not ready else "traceback",
                "why": f"the process ended with {code}",
                "seconds": 0,
                "bytes": 0,
            }
        return json.loads(line)

    def _started(self) -> subprocess.Popen[str]:
        words = [sys.executable, __file__, "--serve"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        assert self.process.stdout and self.process.stdout.readline() == "ready\n"
        return self.process

    def close(self) -> int | None:
        if self.process is None:
            return None
        self.process.kill()
        code, self.process = self.process.wait(), None
        return code


# -- the folders --------------------------------------------------------------------------------------------------------


def base_of(layout: str, place: Path) -> Path:
    """The unaltered folder of a layout, in ``place``."""
    from unmask.pipeline.convert import to_released
    from unmask.pipeline.loading import resolve

    folder = place / layout
    if layout == "llada":
        return write_llada(folder, resolve("mini") / "tokenizer.json")
    if layout == "lavida_o":
        to_released("mini", folder)
        return folder
    return Path(shutil.copytree(resolve("mini"), folder))


def write_llada(folder: Path, tokenizer: Path) -> Path:
    """A small random text model in LLaDA's layout."""
    from unmask.checkpoints.lavida_o import names
    from unmask.checkpoints.store import save_tensors
    from unmask.models.elastic import Elastic, init
    from unmask.models.sizes import ElasticConfig
    from unmask.rng import generator
    from unmask.tokens.text import MASK, Text

    text = Text.load(tokenizer)
    config = ElasticConfig(
        vocab_size=text.size, width=32, heads=4, layers=3, mlp=48, gen_width=0, gen_mlp=0, joint_layers=3, codes=0, code_rows=0, vision=None
    )  # fmt: skip
    net = Elastic(config, mask_id=text[MASK])
    init(net, generator("llada"))
    called = names(config)
    save_tensors({f"model.{called[name]}": tensor for name, tensor in net.state_dict().items()}, folder)
    fields = {
        "model_type": "llada", "architectures": ["LLaDAModelLM"], "d_model": 32, "n_heads": 4, "n_kv_heads": 4, "n_layers": 3,
        "mlp_hidden_size": 48, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "vocab_size": text.size, "embedding_size": text.size,
        "weight_tying": False, "max_sequence_length": 256, "activation_type": "silu", "block_type": "llama", "layer_norm_type": "rms",
        "include_bias": False, "include_qkv_bias": False, "rope": True, "mask_token_id": text[MASK],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(fields, indent=1) + "\n")
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
    return folder


def altered(base: Path, change: Alteration, folder: Path) -> Path:
    """A copy of ``base`` that shares its files, altered."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder, copy_function=os.link)
    change.apply(folder)
    return folder


@dataclass(frozen=True, kw_only=True)
class Finding:
    """``kind``: traceback, hang, memory or nonsense."""

    kind: str
    name: str
    why: str


def finding(change: Alteration, found: dict[str, Any]) -> Finding | None:
    """What is wrong with an outcome; None if nothing is."""
    if "wrong" in found:
        return Finding(kind=found["wrong"], name=change.name, why=found["why"])
    told = str(found.get("refused", found.get("answer", "")))
    if found["seconds"] > MOST_SECONDS:
        return Finding(kind="hang", name=change.name, why=f"{found['seconds']:.1f} CPU s: {told}")
    if found["bytes"] > MOST_BYTES:
        return Finding(kind="memory", name=change.name, why=f"{found['bytes'] / 1e9:.2f} GB: {told}")
    if "answer" in found and not change.harmless:
        return Finding(kind="nonsense", name=change.name, why=f"answers {told!r}")
    return None


def sampled(changes: list[Alteration], count: int, seed: int) -> list[Alteration]:
    """``count`` of them in their order, or all where there are no more; 0: all."""
    if not count or count >= len(changes):
        return changes
    kept = sorted(random.Random(seed).sample(range(len(changes)), count))
    return [changes[index] for index in kept]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", choices=LAYOUTS, action="append", help="default: all")
    parser.add_argument("--only", default="", help="alterations whose name holds this text")
    parser.add_argument("--every", type=int, default=1, help="every n-th alteration")
    parser.add_argument(
        "--sample", type=int, default=0, help="so many alterations of each layout, drawn at random; 0: all"
    )
    parser.add_argument("--seed", type=int, default=0, help="of --sample")
    parser.add_argument("--history", action="store_true", help="append the counts to bench/history.jsonl")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve()
        return
    counts, worst, slowest, largest = Counter[str](), [], 0.0, 0
    opener = Opener()
    with tempfile.TemporaryDirectory() as place:
        for layout in given.layout or LAYOUTS:
            base = base_of(layout, Path(place))
            sound = opener(base)
            assert "answer" in sound, sound
            chosen = [change for change in alterations(base, own=layout == "own") if given.only in change.name]
            chosen = sampled(chosen[:: given.every], given.sample, given.seed)
            for change in chosen:
                found = opener(altered(base, change, Path(place) / "altered"))
                counts["folders"] += 1
                counts["opened" if "answer" in found else "refused"] += "wrong" not in found
                slowest, largest = max(slowest, found["seconds"]), max(largest, found["bytes"])
                if (wrong := finding(change, found)) is not None:
                    counts[wrong.kind] += 1
                    worst.append(wrong)
                    print(f"{wrong.kind}: {layout}/{wrong.name}: {wrong.why}", flush=True)
    opener.close()
    figures = {kind: counts[kind] for kind in ("folders", "refused", "opened", *_KINDS)}
    figures |= {"slowest_cpu_s": round(slowest, 2), "largest_gb": round(largest / 1e9, 2)}
    print(json.dumps(figures))
    if given.history:
        wrong = sum(counts[kind] for kind in _KINDS)
        append(HISTORY, [Line(name="altered_folders.wrong", value=wrong, unit="folders", more=figures)])
    sys.exit(bool(worst))


if __name__ == "__main__":
    main()
