"""The layouts of a model on disk. Public idea: ``format_in(folder) -> Format``, from its config.json and the files beside it."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

from unmask.checkpoints.dimple import is_dimple
from unmask.checkpoints.dream import is_dream
from unmask.checkpoints.families import is_dimoo
from unmask.checkpoints.lavida import is_lavida
from unmask.checkpoints.llada import is_llada
from unmask.checkpoints.llada2 import has_pictures, is_llada2
from unmask.checkpoints.mmada import is_mmada
from unmask.checkpoints.rediff import is_rediff
from unmask.checkpoints.schema import read_json
from unmask.checkpoints.stream import CheckpointError


class Format(Enum):
    """Ours, that of the LaViDa-O release, or that of another family; LLaDA, LLaDA2 and Dream are text models."""

    OWN = "own"
    RELEASED = "released"
    LLADA = "llada"
    DREAM = "dream"
    LAVIDA = "lavida"
    REDIFF = "rediff"
    DIMPLE = "dimple"
    MMADA = "mmada"
    DIMOO = "lumina_dimoo"
    LLADA2 = "llada2"
    LLADA2_UNI = "llada2_uni"

    @property
    def is_text(self) -> bool:
        """Whether it is that of a text model."""
        return self in (Format.LLADA, Format.DREAM, Format.LLADA2)


def format_of(raw: object) -> Format:
    """The layout of a config.json. An unknown one counts as ours, so that reading it reports the errors."""
    if not isinstance(raw, dict):
        return Format.OWN
    if is_llada2(raw):
        return Format.LLADA2_UNI if has_pictures(raw) else Format.LLADA2
    tests = (
        (is_llada, Format.LLADA),
        (is_dream, Format.DREAM),
        (is_lavida, Format.LAVIDA),
        (is_rediff, Format.REDIFF),
        (is_dimple, Format.DIMPLE),
        (is_mmada, Format.MMADA),
    )
    unknown = Format.RELEASED if "d_model" in raw else Format.OWN
    return next((found for belongs, found in tests if belongs(raw)), unknown)


def format_in(folder: Path) -> Format:
    """The layout of a folder; ours if its config.json cannot be read, so that reading it reports the error."""
    try:
        raw = read_json(folder / "config.json")
        return Format.DIMOO if isinstance(raw, dict) and is_dimoo(raw, folder) else format_of(raw)
    except CheckpointError:
        return Format.OWN
