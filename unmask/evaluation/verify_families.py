"""Numerical parity of the families of checkpoints that are not LLaDA's: which reference recomputes whose arrays.

Public idea: ``REPRODUCE[format](folder, dtype, device) -> (ours, measured, inputs)``: our arrays by name, the measured ones, and the names
of those that are inputs. ``verify.py`` compares them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from unmask.checkpoints.dimple import blocks_of, read_dimple, read_pictures, survey_dimple
from unmask.checkpoints.dream import survey_dream
from unmask.checkpoints.elastic import Checkpoint
from unmask.checkpoints.lavida import read_lavida, survey_lavida, views_of
from unmask.checkpoints.llada2_uni import survey_uni
from unmask.checkpoints.loading import load_everything
from unmask.checkpoints.schema import read_json
from unmask.checkpoints.store import CheckpointError, read_tensors
from unmask.evaluation.verify_dimple import DIMPLE_INPUTS, DimpleReference
from unmask.evaluation.verify_dream import DREAM_INPUTS, DreamReference, as_long
from unmask.evaluation.verify_lavida import LAVIDA_INPUTS, LavidaReference
from unmask.evaluation.verify_llada2_uni import UNI_INPUTS, uni_arrays
from unmask.models.elastic import Elastic
from unmask.pipeline.loading import Format
from unmask.tokens.uni import UniTokenizer

Arrays = dict[str, Tensor]
Reproduced = tuple[Arrays, Arrays, frozenset[str]]


def _dream(folder: Path, dtype: torch.dtype | None, device: str) -> Reproduced:
    net, arrays = _opened(survey_dream(folder), DREAM_INPUTS, dtype, device)
    ours = DreamReference(arrays=arrays, mask_id=net.mask_id).reproduce(net)
    return as_long(ours, arrays), arrays, DREAM_INPUTS


def _lavida(folder: Path, dtype: torch.dtype | None, device: str) -> Reproduced:
    net, arrays = _opened(survey_lavida(folder), LAVIDA_INPUTS, dtype, device)
    raw, found = read_lavida(folder)
    reference = LavidaReference(
        arrays=arrays,
        mask_id=net.mask_id,
        views=views_of(found),
        end_id=int(raw.get("eos_token_id", -1)),
        infill_id=-1 if found.unmask.infill_id is None else found.unmask.infill_id,
    )
    return as_long(reference.reproduce(net), arrays), arrays, reference.inputs


def _opened(
    checkpoint: Checkpoint, inputs: frozenset[str], dtype: torch.dtype | None, device: str
) -> tuple[Elastic, Arrays]:
    """The network and the measured arrays. CheckpointError if an input is missing."""
    net, _ = load_everything(checkpoint)
    arrays = {name: array.to(device) for name, array in read_tensors(checkpoint.place, "expected").items()}
    if missing := sorted(inputs - set(arrays)):
        raise CheckpointError(f"expected.safetensors lacks {', '.join(missing)}; is it complete?")
    return net.to(device=device, dtype=dtype), arrays


def _dimple(folder: Path, dtype: torch.dtype | None, device: str) -> Reproduced:
    net, arrays = _opened(survey_dimple(folder), DIMPLE_INPUTS, dtype, device)
    found = read_dimple(read_json(folder / "config.json"), folder)
    reference = DimpleReference(
        arrays=arrays, mask_id=net.mask_id, image_id=found.image_token_id, views=blocks_of(read_pictures(folder))
    )
    return as_long(reference.reproduce(net), arrays), arrays, DIMPLE_INPUTS


def _uni(folder: Path, dtype: torch.dtype | None, device: str) -> Reproduced:
    net, vq = load_everything(survey_uni(folder))
    arrays = {name: array.to(device) for name, array in read_tensors(folder, "expected").items()}
    assert isinstance(vq, UniTokenizer)
    net, vq = net.to(device=device, dtype=dtype), vq.to(device=device, dtype=dtype)
    with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
        return uni_arrays(folder, arrays, net, vq), arrays, UNI_INPUTS


TOLERANCES = {Format.DIMPLE: 2e-4}  # its logits reach 10, and float64 differs from the measured ones by 8e-5
REPRODUCE: dict[Format, Callable[[Path, torch.dtype | None, str], Reproduced]] = {
    Format.DREAM: _dream,
    Format.LAVIDA: _lavida,
    Format.DIMPLE: _dimple,
    Format.LLADA2_UNI: _uni,
}
