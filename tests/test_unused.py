"""Fields of dataclasses and options of commands that nothing reads are refused."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import unmask.cli
from unmask.cli.main import TABLE

PACKAGE = Path(unmask.cli.__file__).parents[1]

# Fields that no code reads as an attribute, and what reads them instead.
READ_OTHERWISE = {
    ("evaluation/history.py", "Line", "unit"),  # written to bench/history.jsonl with asdict
    ("data/dpg.py", "Question", "fact"),  # column of the released file, for callers of read_dpg
    ("evaluation/self_test.py", "Machine", "torch"),  # ``unmask doctor`` compares machines with asdict
    ("evaluation/self_test.py", "Machine", "instructions"),  # ``unmask doctor`` compares machines with asdict
    ("methods/ladic.py", "Drawn", "refined"),  # how a sample came about; tests compare it with measured values
    ("methods/reflectdrive.py", "Round", "violation"),  # what a repair did; tests compare it with measured values
    ("methods/recurrent_depth.py", "Round", "wave"),  # what a round did; tests compare it with measured values
    ("models/waves.py", "Judged", "criterion"),  # as above
    ("models/waves.py", "Wave", "standing"),  # as above
    ("models/waves.py", "Wave", "dropped"),  # as above
    ("tokens/lfq.py", "Quantised", "sample_entropy"),  # parts of its loss; tests compare them with measured values
    ("tokens/lfq.py", "Quantised", "code_entropy"),  # as above
    ("methods/card.py", "Card", "paper_figure"),  # ``unmask methods`` reads the literals of a card's file
    ("methods/card.py", "Card", "year"),  # ``unmask methods`` reads the literals of a card's file
    ("serving/metrics.py", "Metrics", "occupancy"),  # GET /metrics lists all fields
    ("serving/metrics.py", "Metrics", "feature_hits"),  # GET /metrics lists all fields
    ("serving/metrics.py", "Metrics", "feature_misses"),  # GET /metrics lists all fields
}


def is_dataclass(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


def fields_of(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(class, field) of every dataclass."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and is_dataclass(node):
            for line in node.body:
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                    if "ClassVar" not in ast.unparse(line.annotation):
                        yield node.name, line.target.id


def attributes_read(tree: ast.AST) -> set[str]:
    return {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)}


def unread(trees: dict[str, ast.AST]) -> set[tuple[str, str, str]]:
    """(file, class, field) of the fields that no expression reads as an attribute."""
    read = set().union(*map(attributes_read, trees.values()))
    return {(path, owner, name) for path, tree in trees.items() for owner, name in fields_of(tree) if name not in read}


def test_every_field_of_a_dataclass_is_read() -> None:
    trees: dict[str, ast.AST] = {
        path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
    }
    found = unread(trees)
    assert found - READ_OTHERWISE == set(), "remove these fields, or read them"
    assert READ_OTHERWISE - found == set(), "these are read; take them off the list"


def test_the_walk_over_fields_can_fail() -> None:
    code = "@dataclass(frozen=True)\nclass A:\n    seen: int\n    ghost: int\n\ndef f(a):\n    a.ghost = 1\n    return a.seen\n"
    assert unread({"a.py": ast.parse(code)}) == {("a.py", "A", "ghost")}


def commands() -> dict[str, click.Command]:
    """Every command of the table and every command inside a group."""
    found: dict[str, click.Command] = {}
    for name, (module, _) in TABLE.items():
        command = getattr(importlib.import_module(module), name)
        found[name] = command
        if isinstance(command, click.Group):
            found |= {f"{name} {inner}": value for inner, value in command.commands.items()}
    return found


def functions_of(callback: Callable[..., Any]) -> Iterator[ast.FunctionDef]:
    """The syntax tree of a command's function and of every wrapper around it."""
    step: Any = callback
    while step is not None:
        if not step.__module__.startswith("click"):
            tree = ast.parse(textwrap.dedent(inspect.getsource(step.__code__))).body[0]
            assert isinstance(tree, ast.FunctionDef)
            yield tree
        step = getattr(step, "__wrapped__", None)


def names_read(function: ast.FunctionDef) -> set[str]:
    return {
        n.id
        for line in function.body
        for n in ast.walk(line)
        if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)
    }


def unread_options(command: click.Command) -> set[str]:
    """Options that no function of the command reads. Options passed on as ``**options`` must be fields of a dataclass in ``unmask.cli``."""
    assert command.callback is not None
    options = {p.name for p in command.params if p.expose_value and p.name}
    functions = list(functions_of(command.callback))
    for function in functions:
        own = {a.arg for a in (*function.args.args, *function.args.kwonlyargs)}
        options -= own & names_read(function)
    innermost = functions[-1].args.kwarg
    return options - passed_on() if innermost is not None else options


def passed_on() -> set[str]:
    """Fields of the dataclasses of ``unmask.cli``, which the test above requires to be read."""
    modules = [importlib.import_module(i.name) for i in pkgutil.iter_modules(unmask.cli.__path__, "unmask.cli.")]
    classes = [c for m in modules for c in vars(m).values() if isinstance(c, type) and dataclasses.is_dataclass(c)]
    return {field.name for c in classes for field in dataclasses.fields(c)}


@pytest.mark.parametrize("name", commands())
def test_every_option_of_a_command_is_read(name: str) -> None:
    assert not unread_options(commands()[name])


def test_the_walk_over_options_can_fail() -> None:
    @click.command()
    @click.option("--read")
    @click.option("--ghost")
    def one(read: str, ghost: str) -> None:
        print(read)

    assert unread_options(one) == {"ghost"}
