"""Samplers and methods by name, found by reading the source, so that listing them imports neither them nor torch.

Public idea: ``find_sampler("remdm", ["eta=0.2"]) -> (change, the other settings)``, where ``change(sampler) -> Sampler``. A sampler with a
name is a function ``(base: Sampler, *, number=default, ...) -> Sampler`` of unmask/sampling/presets.py or unmask/methods/: it gets the
preset of the task and replaces what it changes. An argument whose default is "" is a folder. One whose parts hold a module of the network
(a diffusion head, an energy) takes the opened network too: ``(base, net, *, ...)``.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unmask.protocols import Denoiser
    from unmask.sampling.sampler import Sampler

_PACKAGE = Path(__file__).parents[1]
_NOT_METHODS = ("__init__", "card")
_LOOPED = "LoopedSampler"  # what a sampler for looped models returns
_PARSING = threading.Lock()  # parsing in several threads at once fails with SystemError in Python 3.11


@dataclass(frozen=True, kw_only=True)
class NamedSampler:
    """``module``: dotted name of its file · ``summary``: first line of its docstring · ``arguments``: its numbers and folders with their
    defaults · ``takes_net``: whether its second parameter is the network · ``looped``: whether it is for looped models alone.
    """

    name: str
    module: str
    summary: str
    arguments: Mapping[str, float | str]
    takes_net: bool = False
    looped: bool = False

    @property
    def folders(self) -> list[str]:
        """The arguments that are folders."""
        return [name for name, value in self.arguments.items() if isinstance(value, str)]

    @property
    def served(self) -> bool:
        """Whether a request to a server may name it: a client opens no folders of that machine, and no server has a looped model."""
        return not self.folders and not self.looped


@dataclass(frozen=True, kw_only=True)
class SamplerChange:
    """A named sampler with its arguments: ``change(base) -> Sampler``. ``net``: the opened network, where ``takes_net``."""

    function: Callable[..., Sampler]
    arguments: Mapping[str, float | str]
    takes_net: bool = False
    net: Denoiser | None = None

    def __call__(self, base: Sampler) -> Sampler:
        """ValueError where the function needs a network and none was bound."""
        if not self.takes_net:
            return self.function(base, **self.arguments)
        if self.net is None:
            raise ValueError(f"{self.function.__name__} needs the network; use model.with_sampler(change)")
        return self.function(base, self.net, **self.arguments)


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Several changes of a sampler, applied in their order."""

    parts: tuple[Callable[[Sampler], Sampler], ...]

    def __call__(self, base: Sampler) -> Sampler:
        for part in self.parts:
            base = part(base)
        return base


def for_network(change: Callable[[Sampler], Sampler], net: Denoiser) -> Callable[[Sampler], Sampler]:
    """A change of samplers for one network: a named one gets it, any other function stays as it is."""
    if isinstance(change, Changes):
        return Changes(parts=tuple(for_network(part, net) for part in change.parts))
    return dataclasses.replace(change, net=net) if isinstance(change, SamplerChange) else change


@dataclass(frozen=True, kw_only=True)
class MethodEntry:
    """``name``: of its file · ``about``: the file's docstring · ``card``: the literal fields of its card · ``minutes``: of its
    demonstration on two cores, 0 where it has none.
    """

    name: str
    about: str
    card: Mapping[str, Any]
    minutes: float = 0.0


def samplers(package: Path = _PACKAGE) -> dict[str, NamedSampler]:
    """Every sampler with a name. ValueError where two have the same one."""
    found: dict[str, NamedSampler] = {}
    for path in [package / "sampling" / "presets.py", *_method_files(package)]:
        module = ".".join((package.name, *path.relative_to(package).with_suffix("").parts))
        for one in _samplers_of(path, path.stat().st_mtime_ns, module):
            if one.name in found:
                raise ValueError(f"{module} and {found[one.name].module} both have a sampler {one.name}; rename one")
            found[one.name] = one
    return found


@functools.cache
def _samplers_of(path: Path, changed: int, module: str) -> tuple[NamedSampler, ...]:
    """The named samplers of one file. ``changed``: its time of modification, so that a file is parsed again after a change."""
    found = []
    for node in _tree(path).body:
        if isinstance(node, ast.FunctionDef) and _changes_a_sampler(node):
            pairs = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            arguments = {a.arg: ast.literal_eval(default) for a, default in pairs if default is not None}
            summary = (ast.get_docstring(node) or "").partition("\n")[0]
            named = NamedSampler(name=node.name, module=module, summary=summary, arguments=arguments)
            looped = isinstance(node.returns, ast.Name) and node.returns.id == _LOOPED
            found.append(dataclasses.replace(named, takes_net=len(node.args.args) == 2, looped=looped))
    return tuple(found)


def methods(package: Path = _PACKAGE) -> dict[str, MethodEntry]:
    """Every method by the name of its file."""
    found = {}
    for path in _method_files(package):
        recipe = package / "recipes" / path.name
        changed = recipe.stat().st_mtime_ns if recipe.exists() else 0
        found[path.stem] = _method_of(path, path.stat().st_mtime_ns, recipe, changed)
    return found


@functools.cache
def _method_of(path: Path, changed: int, recipe: Path, recipe_changed: int) -> MethodEntry:
    """The method of one file. ``changed``, ``recipe_changed``: times of modification, so that files are parsed again after a change."""
    tree = _tree(path)
    about, card = ast.get_docstring(tree) or "", _card(tree, path)
    return MethodEntry(name=path.stem, about=about, card=card, minutes=_minutes(recipe) if recipe_changed else 0.0)


def find_sampler(name: str, settings: Sequence[str] = (), *, served: bool = False) -> tuple[SamplerChange, list[str]]:
    """The change that a sampler's name stands for, and the settings that are not arguments of its function.

    ``served``: for a client of a server, who may not name all of them. ValueError for an unknown name, an argument that it does not have,
    and a value that is not a number.
    """
    known = samplers()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"the samplers are {', '.join(known)}"
        raise ValueError(f"there is no sampler {name[:50]!r}; {hint}")
    entry, own, rest = known[name], dict[str, float | str](), list[str]()
    if served and entry.looped:
        raise ValueError(f"the sampler {name!r} is for looped models, which no server has; use another sampler")
    if served and entry.folders:
        raise ValueError(
            f"the sampler {name!r} opens a folder of the server's machine, which no request may; leave it out"
        )
    for setting in settings:
        key, _, text = (part.strip() for part in setting.partition("="))
        if key in entry.arguments:
            own[key] = text if key in entry.folders else _number(key, text, type(entry.arguments[key]))
        elif "." in key:
            rest.append(setting)
        else:
            has = f"its arguments are {', '.join(entry.arguments)}" if entry.arguments else "it has none"
            near = difflib.get_close_matches(key, entry.arguments, 1)
            hint = (
                f"did you mean {near[0]!r}?"
                if near
                else f"{has}; a field of the sampler has a dot, as schedule.steps has"
            )
            raise ValueError(f"the sampler {name!r} has no argument {key!r}; {hint}")
    function = getattr(import_module(entry.module), name)
    return SamplerChange(function=function, arguments=own, takes_net=entry.takes_net), rest


def _number(key: str, text: str, kind: type) -> float:
    try:
        return kind(text)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise ValueError(f"{key}={text!r} must be {wanted}; for example {key}={kind(1)}") from None


def _method_files(package: Path) -> list[Path]:
    return sorted(p for p in (package / "methods").glob("*.py") if p.stem not in _NOT_METHODS)


def _tree(path: Path) -> ast.Module:
    """The parsed source of a file."""
    with _PARSING:
        return ast.parse(path.read_text(encoding="utf-8"))


def _changes_a_sampler(node: ast.FunctionDef) -> bool:
    returned = isinstance(node.returns, ast.Name) and node.returns.id in ("Sampler", _LOOPED)
    named = returned and not node.name.startswith("_")
    return named and [a.arg for a in node.args.args] in (["base"], ["base", "net"])


def _minutes(path: Path) -> float:
    """The minutes of ``DEMO = Demonstration(minutes=…, run=…)`` in a recipe file, 0 without one."""
    call = _assigned(_tree(path), "DEMO")
    return next((float(ast.literal_eval(k.value)) for k in call.keywords if k.arg == "minutes"), 0.0) if call else 0.0


def _assigned(tree: ast.Module, name: str) -> ast.Call | None:
    """The call in ``name = Something(…)`` at the top of a file."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name:
            return node.value if isinstance(node.value, ast.Call) else None
    return None


def _card(tree: ast.Module, path: Path) -> dict[str, Any]:
    """The literal fields of ``CARD = Card(...)``. ValueError where the file has none."""
    if (call := _assigned(tree, "CARD")) is not None:
        fields = {k.arg: k.value for k in call.keywords if k.arg not in (None, "parts")}
        return {str(name): ast.literal_eval(value) for name, value in fields.items()}
    raise ValueError(f"{path.name} has no card; end it with CARD = Card(…), as unmask/methods/card.py says")
