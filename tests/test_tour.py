"""The tour names code that exists, its diagrams have the steps that the code numbers, and words.md has the terms of the contracts."""

from __future__ import annotations

import ast
import re

import pytest

from .pages import ROOT

TOUR = (ROOT / "docs" / "tour.md").read_text()
STOPS = sorted(set(re.findall(r"\[`([^`]+)`\]\(\.\./(unmask/[\w/]+\.py)\)", TOUR)))


def defined(tree: ast.Module | ast.ClassDef, prefix: str = "") -> set[str]:
    """Names of functions, classes and their methods: ``Run``, ``Run.advance``."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            names |= {prefix + node.name} | defined(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(prefix + node.name)
    return names


def steps(text: str) -> list[str]:
    """``["1", "2", ..]``: the numbers of a file's comments ``# 1. ..``, in rising order."""
    return sorted(re.findall(r"^ +# (\d)\. ", text, re.M))


@pytest.mark.parametrize(("name", "file"), STOPS)
def test_every_stop_exists(name: str, file: str) -> None:
    path = ROOT / file
    assert path.exists()
    assert name == path.name or name in defined(ast.parse(path.read_text())), f"{file} has no {name}"


def test_the_tour_has_stops_and_names_no_other_file() -> None:
    assert len(STOPS) > 60
    known = {path.relative_to(ROOT / "unmask").as_posix() for path in (ROOT / "unmask").rglob("*.py")}
    for name in re.findall(r"`((?:\w+/)+\w+\.py)`", TOUR):
        assert name in known or (ROOT / name).exists(), f"the tour names {name}"


def test_the_diagrams_have_the_steps_of_the_code() -> None:
    sampler, training = (re.findall(r"\[\"(\d) · ", block) for block in re.findall(r"```mermaid\n(.*?)```", TOUR, re.S))
    assert sampler == steps((ROOT / "unmask/sampling/sampler.py").read_text())
    assert training == steps((ROOT / "unmask/objectives/masked.py").read_text())


@pytest.mark.parametrize("file", ["protocols", "step", "sequence"])
def test_every_public_class_of_the_contracts_is_in_the_vocabulary(file: str) -> None:
    page = (ROOT / "docs" / "words.md").read_text()
    terms = " ".join(re.findall(r"^\| (\*\*.*?) \|", page, re.M)).lower()
    tree = ast.parse((ROOT / "unmask" / f"{file}.py").read_text())
    for name in (name for name in defined(tree) if name[0].isupper() and "." not in name):
        term = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
        assert f"`{name}`" in page or re.search(rf"\b{term}\b", terms), f"docs/words.md has no line for {name}"
