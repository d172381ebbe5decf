"""The state of a run on disk: one run per folder, atomic checkpoints, and what must fit before a run continues.

Public idea: ``save(...)`` writes state.safetensors, ``resume(...)`` reads it and returns where the run continues.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from unmask.recipe import Recipe
from unmask.training.fingerprint import differences, settings
from unmask.training.optim import Masters, NotFinite
from unmask.training.sharded import Sharded

STATE = "state.safetensors"
_EARLIER = re.compile(r"state-(\d+)\.safetensors")
_LEFTOVER = re.compile(r"\.tmp[A-Za-z0-9]{6}|.+\.(safetensors|jsonl?)\.part")
_MOST = 2**53  # counts beyond this are no counts


class RunInUse(ValueError):
    """Another process is training in the folder."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """Where a run stands: source batches and updates so far, and updates skipped in a row. ``settings``: of its recipe, by name."""

    recipe: str
    seed: int
    step: int
    updates: int
    skipped: int = 0
    settings: dict[str, str] | None = None


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold the folder for this run. The system releases it when the process ends, however it ends. RunInUse where another holds it."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        yield
        return
    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunInUse(f"another process is training in {folder}; wait for it or choose another --out") from None
        except OSError as error:  # some network file systems
            warnings.warn(
                f"{folder} cannot be locked ({error.strerror}); do not start a second run in it", stacklevel=3
            )
        yield
    finally:
        os.close(held)


def save(recipe: Recipe, state: dict[str, torch.Tensor], folder: Path, saved: Saved) -> None:
    """Write the state to a second file, then rename it: a crash or a full disk leaves the previous checkpoint intact.

    NotFinite for weights or moments that are not finite: they do not replace a good checkpoint. OSError for a full disk.
    """
    state = {name: tensor.detach().cpu() for name, tensor in state.items()}
    if (broken := _not_finite(state)) is not None:
        raise NotFinite(
            f"{broken} is not finite at step {saved.step}, so it is not saved; continue from the last checkpoint in {folder} "
            "with a smaller learning rate"
        )
    part = folder / (STATE + ".part")
    meta = json.dumps({name: value for name, value in dataclasses.asdict(saved).items() if value is not None})
    try:
        save_file(state, str(part), metadata={"unmask": meta})
        if recipe.training.keep > 1:
            _keep_previous(folder)
        os.replace(part, folder / STATE)
        _forget_earlier(folder, recipe.training.keep - 1)
    except BaseException as error:  # a second Ctrl-C too
        part.unlink(missing_ok=True)
        if not isinstance(error, OSError | SafetensorError):
            raise
        raise OSError(f"could not save the checkpoint in {folder}: {error}; the previous one is intact") from error


def _not_finite(state: dict[str, torch.Tensor]) -> str | None:
    """The name of the first weight or moment with a value that is not finite. A buffer may have some, a table of masks for example."""
    return next((n for n, t in state.items() if not n.startswith("buffer.") and not bool(t.isfinite().all())), None)


def _keep_previous(folder: Path) -> None:
    """Give the current state a second name with its step; it is never without a name."""
    step = saved_step(folder)
    kept = folder / f"state-{step}.safetensors"
    if step is None or kept.exists():
        return
    try:
        os.link(folder / STATE, kept)
    except OSError:  # a file system without hard links
        part = kept.with_name(kept.name + ".part")
        shutil.copyfile(folder / STATE, part)
        os.replace(part, kept)


def earlier(folder: Path) -> list[Path]:
    """States that were kept beside the last one, newest first."""
    found = [(int(match[1]), path) for path in folder.glob("state-*") if (match := _EARLIER.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def _forget_earlier(folder: Path, keep: int) -> None:
    for path in earlier(folder)[keep:]:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed run left half written in its own folder: files ``.tmp…`` of the safetensors library and ``….part`` of ours."""
    for path in folder.iterdir():
        if _LEFTOVER.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)


def read(path: Path) -> Saved:
    """What a state file says of its run. ValueError for a file that is damaged or is no state of a run."""
    try:
        with safe_open(str(path), "pt") as f:
            text = (f.metadata() or {}).get("unmask")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}; {_what_to_do(path)}") from error
    try:
        meta = json.loads(text) if text is not None else None
    except ValueError:
        meta = None
    if not isinstance(meta, dict):
        raise ValueError(f"{path} has no readable metadata of a run; {_what_to_do(path)}")
    step = _count(meta, "step", path)
    fields = meta.get("settings")
    return Saved(
        recipe=str(meta.get("recipe")),
        seed=_count(meta, "seed", path, least=-_MOST),
        step=step,
        updates=_count(meta, "updates", path) if "updates" in meta else step,
        skipped=_count(meta, "skipped", path) if "skipped" in meta else 0,
        settings={str(k): str(v) for k, v in fields.items()} if isinstance(fields, dict) else None,
    )


def _count(meta: dict[str, object], name: str, path: Path, least: int = 0) -> int:
    """A whole number of the metadata; earlier versions wrote it as text."""
    value = meta.get(name)
    try:
        number = int(value) if isinstance(value, int | str) and not isinstance(value, bool) else None
    except ValueError:
        number = None
    if number is None or not least <= number <= _MOST:
        told = "is missing" if value is None else f"is {value!r:.40}, not a whole number of at least {least}"
        raise ValueError(f"{path}: {name} {told} in its metadata; {_what_to_do(path)}")
    return number


def _what_to_do(path: Path) -> str:
    kept = earlier(path.parent)
    return f"copy {kept[0].name} over it to continue from there" if kept else "delete it to start again"


def saved_step(folder: Path) -> int | None:
    """The step at which a folder's run continues; None where it holds no readable state."""
    try:
        return read(folder / STATE).step
    except ValueError:
        return None


def resume(
    recipe: Recipe, masters: Masters | Sharded, folder: Path, *, allow_changes: bool = False
) -> tuple[Saved, list[str]]:
    """Load the folder's state if there is one; returns where to continue and the settings that differ, in words.

    ValueError for a state that is damaged, of another recipe or seed, beyond the last step, or (unless ``allow_changes``) of a run with
    other settings that decide what is learned.
    """
    path = folder / STATE
    fresh = Saved(recipe=recipe.name, seed=recipe.training.seed, step=0, updates=0, settings=settings(recipe))
    if not path.exists():
        return fresh, []
    saved = read(path)
    if (saved.recipe, saved.seed) != (fresh.recipe, fresh.seed):
        raise ValueError(
            f"{folder} holds a run of {saved.recipe!r} (seed {saved.seed}), not of {recipe.name!r} (seed {fresh.seed}); "
            "choose another --out"
        )
    if saved.step > recipe.training.steps:
        raise ValueError(
            f"{path} is at step {saved.step}, beyond the last step, {recipe.training.steps}; "
            f"set training.steps to at least {saved.step}"
        )
    changed, told = differences(saved.settings, settings(recipe))
    if changed and not allow_changes:
        raise ValueError(
            f"the settings differ from those of the run in {folder}: {', '.join(changed)}; "
            "use the earlier ones, or add --allow-changes"
        )
    masters.load(_tensors(path))
    return dataclasses.replace(saved, settings=fresh.settings), [*changed, *told]


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(str(path), "pt") as f:
            state = {name: f.get_tensor(name) for name in f.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}; {_what_to_do(path)}") from error
    if (broken := _not_finite(state)) is not None:
        raise ValueError(f"{path}: {broken} holds values that are not finite; {_what_to_do(path)}")
    return state
