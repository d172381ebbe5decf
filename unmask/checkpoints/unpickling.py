"""A pickle of weights -> a safetensors file, as a program of its own: ``python -I unpickling.py SOURCE TARGET``.

Only ``pipeline.from_pickles`` runs it, on request. It imports nothing of this package. The restricted reader of torch
(``weights_only=True``) makes tensors and plain containers alone, and refuses everything that could run code. One line of JSON on stdout:
{"tensors": N, "bytes": N}, or {"error": TEXT} with exit code 2.
"""

from __future__ import annotations

import json
import pickle
import sys
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

_WHOLE = ("state_dict", "model", "module")  # keys that hold the weights in files of trainers


def tensors_in(found: Any) -> dict[str, Tensor]:
    """The weights of a file by name. ValueError for anything that is not a dict of tensors."""
    for _ in range(3):
        inner = [found[key] for key in _WHOLE if isinstance(found, dict) and isinstance(found.get(key), dict)]
        if not inner:
            break
        found = inner[0]
    if not isinstance(found, dict) or not found:
        raise ValueError(f"it holds {type(found).__name__}, not tensors by name")
    for name, value in found.items():
        if not isinstance(name, str):
            raise ValueError(f"its entry {str(name)[:80]} is named by {type(name).__name__}, not by a text")
        if not isinstance(value, Tensor):
            raise ValueError(f"its entry {str(name)[:80]!r} is {type(value).__name__}, not a tensor")
    return found


def own_memory(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, each in memory of its own and contiguous: a file of safetensors has no tied weights."""
    seen, out = set[int](), {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        shared = storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes
        seen.add(storage.data_ptr())
        out[name] = tensor.detach().clone(memory_format=torch.contiguous_format) if shared else tensor.contiguous()
    return out


def main(source: str, part: str) -> int:
    """Convert a file; ``part`` lies in a folder that counts only when it is complete. Exit code."""
    try:
        tensors = own_memory(tensors_in(torch.load(source, map_location="cpu", weights_only=True)))
        save_file(tensors, part, {"format": "pt"})
    except (pickle.UnpicklingError, ValueError, RuntimeError, OSError, EOFError, KeyError, TypeError) as error:
        said = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
        if isinstance(error, pickle.UnpicklingError):
            said = "it holds more than tensors and plain containers, or it is not a pickle of weights"
        print(json.dumps({"error": said[:300]}))
        return 2
    print(json.dumps({"tensors": len(tensors), "bytes": sum(t.nbytes for t in tensors.values())}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
