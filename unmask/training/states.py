"""The saved states of a run: their names in its folder, what they say of the run, which one is the newest, and which may go.

Public idea: ``newest(folder)`` is the state from which the run continues. One process writes the file ``state.safetensors``; several
write a folder ``state-STEP`` with a safetensors file each and the index ``run.json``. Both get their names when they are complete.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from unmask.writing import remove_parts

STATE = "state.safetensors"
CHAIN = "chain.json"  # of a chain of recipes (``chain``)
JOURNAL = "state.pending.json"  # of ``writing.write_together``; one file needs none
INDEX = "run.json"  # in a folder of parts
PART = ".part"  # ends the name of what is not complete
_NAMED = re.compile(r"state-(\d+)(\.safetensors)?")
_LEFTOVER = re.compile(r"\.tmp[A-Za-z0-9]{6}|.+\.(safetensors|jsonl?)\.part")
_LEFT_FOLDER = re.compile(r"state-\d+\.part")
_MOST = 2**53  # larger counts are not exact in JSON


@dataclass(frozen=True, kw_only=True)
class Saved:
    """Where a run stands: source batches and updates so far, and updates skipped in a row. ``settings``: of its recipe, by name ·
    ``seconds``: of training so far, where a ``clock.Budget`` counts them.
    """

    recipe: str
    seed: int
    step: int
    updates: int
    skipped: int = 0
    settings: dict[str, str] | None = None
    seconds: float | None = None


def holds_run(folder: Path) -> bool:
    """Whether a run has saved a state or written metrics here; damaged ones count."""
    return any((folder / name).exists() for name in (STATE, CHAIN, "metrics.jsonl")) or bool(_named(folder))


def newest(folder: Path) -> Path | None:
    """The state with the largest step, a file or a folder of parts; None where there is none. ValueError where it cannot be told."""
    single = folder / STATE if (folder / STATE).exists() else None
    parts = next((path for _, path in _named(folder) if path.is_dir()), None)
    if single is None or parts is None:
        return single or parts
    return single if read(single).step > read(parts).step else parts


def saved_step(folder: Path) -> int | None:
    """The step at which a folder's run continues; None where it holds no readable state."""
    try:
        path = newest(folder)
        return None if path is None else read(path).step
    except ValueError:
        return None


def _named(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of the states with a step in their names, newest first."""
    found = [(int(match[1]), path) for path in folder.glob("state-*") if (match := _NAMED.fullmatch(path.name))]
    return sorted(found, reverse=True)


def earlier(folder: Path) -> list[Path]:
    """States that were kept beside state.safetensors, newest first."""
    return [path for _, path in _named(folder)]


def forget(folder: Path, keep: int) -> None:
    """Delete all but the ``keep`` newest states. A folder of parts loses its name first, so that no half of it can be read."""
    found = _named(folder)
    if (step := _step_of_file(folder)) is not None:
        found.append((step, folder / STATE))
    for _, path in sorted(found, reverse=True)[keep:]:
        remove(path)


def _step_of_file(folder: Path) -> int | None:
    try:
        return read(folder / STATE).step
    except ValueError:
        return None


def remove(path: Path) -> None:
    """Delete a state, whole or in parts."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    part = path if path.name.endswith(PART) else path.with_name(path.name + PART)
    if part != path:
        shutil.rmtree(part, ignore_errors=True)
        os.rename(path, part)
    shutil.rmtree(part, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed run left half written in its own folder (``writing.remove_parts``), folders ``state-STEP.part``, and what
    earlier versions left: files ``.tmp…`` of the safetensors library and ``….part``.
    """
    remove_parts(folder)
    for path in folder.iterdir():
        if path.is_symlink():
            continue
        if (path.is_file() and _LEFTOVER.fullmatch(path.name)) or (path.is_dir() and _LEFT_FOLDER.fullmatch(path.name)):
            remove(path)


def read(path: Path) -> Saved:
    """What a state says of its run. ValueError for one that is damaged or is not the state of a run."""
    text = _text(path)
    try:
        meta = json.loads(text or "null")
    except ValueError:
        meta = None
    if not isinstance(meta, dict):
        raise ValueError(f"{path} has no readable metadata of a run; {what_to_do(path)}")
    if path.is_dir():
        _refuse_incomplete(path, meta.get("files"))
    step = _count(meta, "step", path)
    fields, seconds = meta.get("settings"), meta.get("seconds")
    return Saved(
        recipe=str(meta.get("recipe")),
        seed=_count(meta, "seed", path, least=-_MOST),
        step=step,
        updates=_count(meta, "updates", path) if "updates" in meta else step,
        skipped=_count(meta, "skipped", path) if "skipped" in meta else 0,
        settings={str(k): str(v) for k, v in fields.items()} if isinstance(fields, dict) else None,
        seconds=float(seconds)
        if isinstance(seconds, int | float) and math.isfinite(seconds) and seconds >= 0
        else None,
    )


def _text(path: Path) -> str | None:
    try:
        if path.is_dir():
            return (path / INDEX).read_text(encoding="utf-8")
        with safe_open(str(path), "pt") as f:
            return (f.metadata() or {}).get("unmask")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}; {what_to_do(path)}") from error


def sizes(path: Path) -> dict[str, int]:
    """Bytes of the safetensors files in a folder of parts, by name."""
    return {file.name: file.stat().st_size for file in sorted(path.glob("*.safetensors"))}


def _refuse_incomplete(path: Path, files: object) -> None:
    """ValueError for a folder of parts whose files are not those of its index."""
    wanted = files if isinstance(files, Mapping) else {}
    found = sizes(path)
    for name in sorted({*wanted, *found}):
        if found.get(name) != wanted.get(name):
            there = f"has {found[name]} bytes" if name in found else "is missing"
            meant = f"{wanted[name]} bytes" if name in wanted else "no such file"
            raise ValueError(f"{path} is damaged: {name} {there}, its {INDEX} has {meant}; {what_to_do(path)}")
    if not wanted:
        raise ValueError(f"{path} is damaged: its {INDEX} names no files; {what_to_do(path)}")


def _count(meta: dict[str, object], name: str, path: Path, least: int = 0) -> int:
    """A whole number of the metadata; earlier versions wrote it as text."""
    value = meta.get(name)
    try:
        number = int(value) if isinstance(value, int | str) and not isinstance(value, bool) else None
    except ValueError:
        number = None
    if number is None or not least <= number <= _MOST:
        told = "is missing" if value is None else f"is {value!r:.40}, not a whole number of at least {least}"
        raise ValueError(f"{path}: {name} {told} in its metadata; {what_to_do(path)}")
    return number


def what_to_do(path: Path) -> str:
    """How to continue where a state is damaged."""
    kept = next((other for other in earlier(path.parent) if other != path), None)
    if path.is_dir() and (path.parent / STATE).exists():
        kept = path.parent / STATE
    if kept is None:
        return "delete it to start again"
    if kept.is_dir() or kept.name == STATE:
        return f"delete it to continue from {kept.name}"
    if path.name == STATE:
        return f"copy {kept.name} over it to continue from there"
    return f"delete it and copy {kept.name} to {STATE} to continue from there"
