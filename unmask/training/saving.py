"""Saving and continuing a run: one run per folder, atomic checkpoints, and what must fit before a run continues.

Public idea: ``with opened(...) as saver: saver.save(state, saved)`` writes states, in one file or in parts; ``resume(...)`` loads the
newest one and returns where the run continues.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from unmask.recipe import Recipe
from unmask.training.fingerprint import differences, settings
from unmask.training.optim import Masters, NotFinite
from unmask.training.parallel import Place
from unmask.training.sharded import Sharded
from unmask.training.states import JOURNAL, STATE, Saved, forget, newest, read, what_to_do
from unmask.writing import InUse, refuse_full, write_together, write_whole
from unmask.writing import lock as hold


class RunInUse(ValueError):
    """Another process is training in the folder."""


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold the folder for this run. RunInUse where another holds it."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(hold(folder))
        except InUse:
            raise RunInUse(f"another process is training in {folder}; wait for it or choose another --out") from None
        yield


class Saver(Protocol):
    """Writes states of a run: ``save`` may return before the state is on disk, ``wait`` returns after it; both raise OSError."""

    def save(self, state: Mapping[str, Tensor], saved: Saved, /) -> None: ...
    def failed(self) -> bool: ...
    def wait(self) -> None: ...


@contextlib.contextmanager
def opened(folder: Path, place: Place, keep: int) -> Iterator[Saver]:
    """What writes the states of a run: one process a file at once, several their parts in the background. At the end everything is on disk,
    after an error too. ``keep``: number of states to keep.
    """
    if place.world == 1:
        yield Single(folder, keep)
        return
    from unmask.training.parts import Parts  # torch.distributed.checkpoint is slow to import

    saver = Parts(folder, place, keep)
    try:
        yield saver
    except Exception:
        with contextlib.suppress(OSError):
            saver.wait()
        raise
    saver.wait()


class Single:
    """Writes states as state.safetensors."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def save(self, state: Mapping[str, Tensor], saved: Saved) -> None:
        """A crash or a full disk leaves the previous state intact (``writing``). OSError for a full disk."""
        whole = {name: tensor.detach().cpu() for name, tensor in state.items()}
        meta = json.dumps({name: value for name, value in dataclasses.asdict(saved).items() if value is not None})

        def write(part: Path) -> None:
            save_file(whole, str(part), metadata={"unmask": meta})
            if self.keep > 1:
                _keep_previous(self.folder)

        try:
            refuse_full(self.folder, sum(tensor.nbytes for tensor in whole.values()))
            write_together({self.folder / STATE: write}, self.folder / JOURNAL)
            forget(self.folder, self.keep)
        except (OSError, SafetensorError) as error:
            raise OSError(
                f"could not save the checkpoint in {self.folder}: {error}; the previous one is intact"
            ) from error

    def failed(self) -> bool:
        return False

    def wait(self) -> None: ...


def refuse_broken(state: Mapping[str, Tensor], saved: Saved, folder: Path, place: Place) -> None:
    """NotFinite, in all processes, for weights or moments that are not finite in any: they do not replace a good checkpoint."""
    broken = _not_finite(state)
    found = [name for name in place.gather([broken]) if name is not None]
    if found:
        raise NotFinite(
            f"{found[0]} is not finite at step {saved.step}, so it is not saved; continue from the last checkpoint in {folder} "
            "with a smaller learning rate"
        )


def _not_finite(state: Mapping[str, Tensor]) -> str | None:
    """The name of the first weight or moment with a value that is not finite. A buffer may have some, a table of masks for example."""
    ours = ((n, t.to_local() if isinstance(t, DTensor) else t) for n, t in state.items() if not n.startswith("buffer."))
    return next((name for name, tensor in ours if not bool(tensor.isfinite().all())), None)


def _keep_previous(folder: Path) -> None:
    """Give the current state a second name with its step; it is never without a name."""
    if not (folder / STATE).exists():
        return
    try:
        kept = folder / f"state-{read(folder / STATE).step}.safetensors"
    except ValueError:
        return
    if kept.exists():
        return
    try:
        os.link(folder / STATE, kept)
    except OSError:  # a file system without hard links
        write_whole(kept, lambda part: shutil.copyfile(folder / STATE, part))


def resume(
    recipe: Recipe, masters: Masters | Sharded, folder: Path, *, allow_changes: bool = False
) -> tuple[Saved, list[str]]:
    """Load the folder's newest state if there is one; returns where to continue and the settings that differ, in words.

    ValueError for a state that is damaged, of another recipe or seed, beyond the last step, or (unless ``allow_changes``) of a run with
    other settings that decide what is learned.
    """
    path = newest(folder)
    fresh = Saved(recipe=recipe.name, seed=recipe.training.seed, step=0, updates=0, settings=settings(recipe))
    if path is None:
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
    masters.load(_tensors(path, masters))
    return dataclasses.replace(saved, settings=fresh.settings), [*changed, *told]


def _tensors(path: Path, masters: Masters | Sharded) -> dict[str, Tensor]:
    """The entries of a state; of one in parts what this process needs, in the tensors of ``masters`` themselves."""
    if path.is_dir():
        from unmask.training.parts import fill

        state = masters.state()
        fill(state, path)
    else:
        try:
            with safe_open(str(path), "pt") as f:
                state = {name: f.get_tensor(name) for name in f.keys()}
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}; {what_to_do(path)}") from error
    if (broken := _not_finite(state)) is not None:
        raise ValueError(f"{path}: {broken} holds values that are not finite; {what_to_do(path)}")
    return state


def refuse_apart(step: int, folder: Path, place: Place) -> None:
    """ValueError, in all processes, where they do not continue at the same step: they do not see the same folder."""
    steps = place.gather([step])
    if len(set(steps)) > 1:
        raise ValueError(
            f"the processes found different states in {folder}, at steps {', '.join(map(str, steps))}; "
            "all machines of a run must share its folder"
        )
