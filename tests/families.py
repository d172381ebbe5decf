"""A tiny model folder of every family that ``unmask.load`` opens, with what it can do; random weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import tiny_dimple, tiny_dream, tiny_lavida, tiny_llada, tiny_llada2, tiny_rediff

GOLDEN = Path(__file__).parent / "golden"


def _mmada(folder: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "mmada_tiny", folder))


def _dimoo(folder: Path) -> Path:
    """The fixture with drawings of 64 pixels instead of 512, and a context that holds the system sentence."""
    place = Path(shutil.copytree(GOLDEN / "lumina_dimoo_tiny", folder))
    raw = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(raw | {"unmask": {"side": 64}, "max_sequence_length": 1024}))
    return place


@dataclass(frozen=True, kw_only=True)
class Family:
    """``tasks``: those of the command line · ``reads``: whether a question may have a picture, ``alone``: whether it may have none ·
    ``parts``: of the world suite that it can be measured on · ``quick``: settings of an answer, for speed.
    """

    make: Callable[[Path], Path]
    tasks: frozenset[str]
    reads: bool
    alone: bool
    parts: str = ""
    quick: tuple[str, ...] = ()


_TEXT = frozenset({"ask", "infill-text"})
_BLOCKS = ("-o", "schedule.steps=2", "-o", "blocks.length=4")
FAMILIES = {
    "llada": Family(make=tiny_llada.make, tasks=_TEXT, reads=False, alone=True),
    "dream": Family(make=tiny_dream.make, tasks=_TEXT, reads=False, alone=True),
    "lavida": Family(make=tiny_lavida.make, tasks=_TEXT, reads=True, alone=False, parts="questions"),
    "lavida on dream": Family(
        make=lambda folder: tiny_lavida.make(folder, on_dream=True),
        tasks=_TEXT,
        reads=True,
        alone=False,
        parts="questions",
    ),
    "rediff": Family(make=tiny_rediff.make, tasks=_TEXT, reads=True, alone=False, parts="questions"),
    "dimple": Family(make=tiny_dimple.make, tasks=_TEXT, reads=True, alone=False, parts="questions"),
    "mmada": Family(
        make=_mmada,
        tasks=frozenset({"ask", "generate", "plan", "infill"}),
        reads=True,
        alone=True,
        parts="geneval,questions,vq",
        quick=_BLOCKS,
    ),
    "lumina_dimoo": Family(
        make=_dimoo,
        tasks=frozenset({"ask", "generate", "infill", "edit"}),
        reads=True,
        alone=True,
        parts="geneval,questions,edit,vq",
        quick=_BLOCKS,
    ),
    "llada2": Family(make=tiny_llada2.write_text_model, tasks=_TEXT, reads=False, alone=True),
    "llada2_uni": Family(
        make=tiny_llada2.write_uni_model,
        tasks=frozenset({"ask", "generate", "edit"}),
        reads=True,
        alone=True,
        parts="geneval,questions,edit,vq",
        quick=("-o", "schedule.steps=2"),
    ),
}
