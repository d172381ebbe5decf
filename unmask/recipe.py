"""A training run as one frozen value, returned by a recipe function and changed by ``a.b=c`` overrides.

Public idea: ``Recipe`` and ``override(recipe, ["training.steps=100", "source.parts.draw.batch=8"])``.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeGuard, TypeVar

if TYPE_CHECKING:
    from torch import Generator, nn

    from unmask.step import Loss

ModelT = TypeVar("ModelT", bound="nn.Module")
BatchT = TypeVar("BatchT")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Optim:
    """AdamW with a linear warm-up, a constant learning rate, and a cosine decay to a floor.

    ``warmup``: in steps · ``decay_from``: fraction of the run at which the decay starts · ``floor``: final rate as a fraction of ``lr`` ·
    ``clip``: largest gradient norm · ``ema``: decay of the averaged weights per update (0: no average) · ``bits``: of Adam's moments,
    32, or 8 by torchao · ``rates``: (name, rate, start of parameter names) of parameters that have another rate than ``lr``, with the same
    schedule.
    """

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.98
    weight_decay: float = 0.0
    warmup: int = 100
    decay_from: float = 0.0
    floor: float = 0.1
    clip: float = 1.0
    ema: float = 0.999
    bits: int = 32
    rates: tuple[tuple[str, float, str], ...] = ()

    def __post_init__(self) -> None:
        for name in ("lr", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"optim.{name} must be above 0, got {getattr(self, name)}")
        for name in ("beta1", "beta2", "ema", "floor", "decay_from"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"optim.{name} must be in 0..1, got {getattr(self, name)}")
        if self.bits not in (8, 32):
            raise ValueError(f"optim.bits must be 32 or 8, got {self.bits}")
        for name, rate, _ in self.rates:
            if not rate > 0:
                raise ValueError(f"optim.rates.{name} must be above 0, got {rate}")

    def factor(self, parameter: str) -> float:
        """The rate of a parameter, by its name, as a multiple of ``lr``."""
        return next((rate / self.lr for _, rate, start in self.rates if parameter.startswith(start)), 1.0)


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long, where and how often. A step is one source batch.

    ``accumulate``: source batches per update of the weights, which the processes of a run share · ``device``: cpu, cuda, cuda:1, mps, or
    auto for the best one there is · ``bf16``: compute in bfloat16 with float32 master weights · ``log_every``, ``save_every``: in steps ·
    ``keep``: checkpoints to keep, the last one included · ``max_skipped``: updates in a row that may be skipped because their gradient is
    not finite · ``recompute``: keep only the inputs of the layers and compute their activations again in the backward pass (activation
    checkpointing) · ``compile``: run the layers through ``torch.compile`` · ``shard``: divide weights, gradients
    and moments among the processes (FSDP2) · ``float8``: multiply in float8 in the layers (Hopper GPUs, torchao).
    """

    steps: int = 1000
    seed: int = 0
    accumulate: int = 1
    device: str = "auto"
    bf16: bool = True
    log_every: int = 20
    save_every: int = 200
    keep: int = 1
    max_skipped: int = 3
    recompute: bool = False
    compile: bool = False
    shard: bool = False
    float8: bool = False

    def __post_init__(self) -> None:
        for name, least in (
            ("steps", 1),
            ("accumulate", 1),
            ("log_every", 1),
            ("save_every", 1),
            ("keep", 1),
            ("max_skipped", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"training.{name} must be at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Eval(Generic[ModelT]):
    """A measurement during training: ``run(module, step) -> {name: value}``, every ``every`` steps and at the end.

    The module has the averaged weights and is in eval mode, without gradients. Values go to metrics.jsonl as ``name.key``.
    """

    name: str
    every: int
    run: Callable[[ModelT, int], Mapping[str, float]]

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"evals.{self.name}.every must be at least 1, got {self.every}")


@dataclass(frozen=True, kw_only=True)
class Recipe(Generic[ModelT, BatchT]):
    """One training run. The callables are its parts.

    model() -> nn.Module on the CPU in float32, with its first weights · adapt(module): insert adapters and freeze the rest, in place
    (``models.lora.LoRA``) · source(step) -> batch · objective(model, batch, rng) -> Loss, or several that are yielded, one update each ·
    trainable(parameter name) -> bool: which parameters train, of those that ``adapt`` left trainable · evals: measurements during
    the run · outline(): the module on the meta device, without weights, and examples(): the source batches that a step may have, with any
    values, both to plan memory (``training.memory``) · export(module, folder): write what is shipped · open(folder, device): the model of
    such a folder, with the methods of ``pipeline.model.Model`` that it supports; ``unmask.load`` calls it where config.json has
    ``"recipe": "file.function"``.
    """

    name: str
    model: Callable[[], ModelT]
    source: Callable[[int], BatchT]
    objective: Callable[[ModelT, BatchT, Generator], Loss | Iterator[Loss]]
    optim: Optim = field(default_factory=Optim)
    training: Training = field(default_factory=Training)
    adapt: Callable[[ModelT], None] | None = None
    trainable: Callable[[str], bool] = lambda name: True
    evals: tuple[Eval[ModelT], ...] = ()
    outline: Callable[[], ModelT] | None = None
    examples: Callable[[], tuple[BatchT, ...]] | None = None
    export: Callable[[ModelT, Path], None] | None = None
    open: Callable[[Path, str], object] | None = None

    def __post_init__(self) -> None:
        names = [e.name for e in self.evals]
        if len(set(names)) < len(names):
            raise ValueError(f"evals must have different names, got {', '.join(names)}; rename one")


def override(value: T, settings: Iterable[str]) -> T:
    """A frozen dataclass with ``a.b=c`` settings applied. ValueError names the unknown field and the nearest known one."""
    for setting in settings:
        path, separator, text = setting.partition("=")
        if not separator:
            raise ValueError(f"setting {setting!r} must look like name=value, for example training.steps=100")
        _refuse_unknown(value, path.strip())
        value = _replace(value, path.strip().split("."), text.strip(), path.strip())
    return value


def _refuse_unknown(root: object, whole: str) -> None:
    """ValueError for a path that is not there, with the nearest one that is: ``schedule.steps`` for ``steps``."""
    value = root
    for name in whole.split("."):
        below = _below(value)
        if name not in below:
            kind = type(value).__name__
            what = f"{kind} has no field {name!r}" if below else f"there is nothing below {kind}"
            raise ValueError(f"setting {whole!r}: {what}; {_nearest(root, whole, name, below)}")
        value = below[name]


def _nearest(root: object, whole: str, wrong: str, below: Iterable[str]) -> str:
    """A hint: a field of the part that a path names, else a path that ends in the same name, else one that looks like it."""
    paths = list(_paths(root))
    last = whole.rpartition(".")[2]
    near = difflib.get_close_matches(wrong, below, 1) if "." in whole else []
    near = near or [p for p in paths if p.rpartition(".")[2] == last][:3]
    near = near or difflib.get_close_matches(last, below, 1)
    if not near and (words := difflib.get_close_matches(last, {p.rpartition(".")[2] for p in paths}, 1)):
        near = [p for p in paths if p.rpartition(".")[2] == words[0]][:3]
    near = near or difflib.get_close_matches(whole, paths, 1)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(below or paths)}"


def _paths(value: object, above: str = "") -> Iterator[str]:
    """Every path to a value that a setting can change."""
    for name, inner in _below(value).items():
        if _below(inner):
            yield from _paths(inner, f"{above}{name}.")
        elif inner is None or isinstance(inner, bool | int | float | str | tuple):
            yield f"{above}{name}"


def _below(value: object) -> dict[str, Any]:
    """The fields of a dataclass by name, or the entries of a tuple of (name, value, ...) or of evaluations; empty for anything else."""
    if _named(value):
        return {entry[0]: entry[1] for entry in value}
    if _evals(value):
        return {entry.name: entry for entry in value}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return {}


def _replace(value: object, path: list[str], text: str, whole: str) -> Any:
    old = _below(value)[path[0]]
    new = _replace(old, path[1:], text, whole) if len(path) > 1 else _parse(text, old, whole)
    if _evals(value):
        return tuple(new if entry.name == path[0] else entry for entry in value)
    if _named(value):
        return tuple((entry[0], new, *entry[2:]) if entry[0] == path[0] else entry for entry in value)
    assert dataclasses.is_dataclass(value) and not isinstance(value, type)
    return dataclasses.replace(value, **{path[0]: new})


def _named(value: object) -> TypeGuard[tuple[tuple[Any, ...], ...]]:
    return (
        isinstance(value, tuple) and bool(value) and all(isinstance(v, tuple) and isinstance(v[0], str) for v in value)
    )


def _evals(value: object) -> TypeGuard[tuple[Eval, ...]]:
    return isinstance(value, tuple) and bool(value) and all(isinstance(entry, Eval) for entry in value)


def _parse(text: str, old: object, whole: str) -> object:
    if isinstance(old, bool):
        if text.lower() in ("true", "false", "1", "0", "yes", "no"):
            return text.lower() in ("true", "1", "yes")
        raise ValueError(f"setting {whole}={text!r}: wanted true or false")
    if isinstance(old, tuple) and not _named(old):
        items = [t for t in text.strip("()[]").split(",") if t.strip()]
        return tuple(_parse(t.strip(), old[0] if old else "", whole) for t in items)
    for kind, words in ((int, "a whole number"), (float, "a number")):
        if isinstance(old, kind):
            try:
                new = kind(text)
            except ValueError:
                raise ValueError(f"setting {whole}={text!r}: wanted {words} like {old}") from None
            if math.isnan(new):
                raise ValueError(f"setting {whole}={text!r}: wanted {words} like {old}")
            return new
    if old is None or isinstance(old, str):
        return text
    below = list(_paths(old, f"{whole}."))
    hint = f"set a field of it: {', '.join(below[:5])}" if below else "it has no fields that text can set"
    raise ValueError(f"setting {whole!r} cannot be changed from the command line, it is a {type(old).__name__}; {hint}")
