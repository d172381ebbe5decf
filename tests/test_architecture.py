"""The structure of the code, checked by walking the source: allowed imports, lengths and names.

When a rule is in the way, change it here on purpose, with a note in docs/notes/ that says why.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "unmask"
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if "__pycache__" not in p.parts)

# Downward only; rooms on one row do not know each other. The files of row 0 are one room.
ROWS: dict[str, int] = {
    "__main__": 11,  # python -m unmask
    "cli": 10,
    "integrations": 9,  # other libraries' interfaces; a command starts one (docs/notes/0015-integrations.md)
    "serving": 9,  # below the commands, one of which starts it (docs/notes/0007-through.md)
    "recipes": 8,
    "methods": 7,
    **dict.fromkeys(("evaluation", "posttraining", "analysis"), 6),
    **dict.fromkeys(("pipeline", "training"), 5),
    "tasks": 4,
    **dict.fromkeys(("objectives", "sampling", "data", "checkpoints"), 3),
    "grammars": 2,
    **dict.fromkeys(("tokens", "models", "corruption"), 1),
    **dict.fromkeys(
        (
            *("json_types", "files", "placing", "sequence", "step", "positions", "protocols", "recipe", "rng"),
            *("derived", "writing"),
        ),
        0,
    ),
}
FORBIDDEN_NAMES = {"utils", "util", "common", "misc", "helpers", "helper", "base", "core"}
OLD_MARKS = ("new_", "old_", "copy_of_")
MOST_LINES, MOST_LINES_IN_A_FUNCTION = 400, 80
ONLY_TORCH = {"models", "sampling"}


@functools.cache
def _source(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@functools.cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(_source(path))


def _room(path: Path) -> str:
    """``cli`` for unmask/cli/main.py, ``rng`` for unmask/rng.py, "" for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


def _imports(path: Path) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of everything a file imports, inside functions and TYPE_CHECKING blocks too."""
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def _own_imports(path: Path) -> Iterator[tuple[str, int]]:
    """(room, line) of every import from this package."""
    for name, line in _imports(path):
        parts = name.split(".")
        if parts[0] == "unmask" and len(parts) > 1 and parts[1] in ROWS:
            yield parts[1], line


def _shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_every_room_stands_in_the_table() -> None:
    assert {_room(p) for p in MODULES} - {""} <= set(ROWS), "give the new room a row"


def test_imports_go_downward_only() -> None:
    wrong = []
    for path in MODULES:
        room = _room(path)
        for other, line in _own_imports(path) if room else ():
            same_ground = ROWS[room] == ROWS[other] == 0
            if other != room and ROWS[other] >= ROWS[room] and not same_ground:
                wrong.append(f"{_shown(path)}:{line}: {room} (row {ROWS[room]}) imports {other} (row {ROWS[other]})")
    assert not wrong, "\n".join(wrong)


def test_only_recipes_import_methods() -> None:
    wrong = [
        f"{_shown(path)}:{line}"
        for path in MODULES
        if _room(path) not in ("methods", "recipes")
        for other, line in _own_imports(path)
        if other == "methods"
    ]
    assert not wrong, wrong


def test_no_layer_draws_from_the_global_generator() -> None:
    """Training is a function of seed and step; such a layer would make it depend on what ran before."""
    layers = ("nn.Dropout", "F.dropout", "nn.RReLU", "F.gumbel_softmax", "nn.FractionalMaxPool")
    wrong = [f"{_shown(path)}: {name}" for path in MODULES for name in layers if name in _source(path)]
    assert not wrong, "give the layer the generator of its step: " + ", ".join(wrong)


def test_models_and_samplers_import_torch_and_nothing_else() -> None:
    allowed = sys.stdlib_module_names | {"torch", "unmask"}
    wrong = [
        f"{_shown(path)}:{line}: {name}"
        for path in MODULES
        if _room(path) in ONLY_TORCH
        for name, line in _imports(path)
        if name.split(".")[0] not in allowed
    ]
    assert not wrong, wrong


def test_rooms_are_not_deep() -> None:
    deep = [_shown(p) for p in MODULES if len(p.relative_to(PACKAGE).parts) > 2 and "world" not in p.parts]
    assert not deep, deep


def test_nothing_is_called_nothing() -> None:
    wrong = [
        _shown(p)
        for p in [*MODULES, *(d for d in PACKAGE.rglob("*") if d.is_dir())]
        if p.stem in FORBIDDEN_NAMES or p.stem.startswith(OLD_MARKS) or p.stem.endswith(("_v2", "_old", "_copy"))
    ]
    assert not wrong, wrong


def test_files_and_functions_stay_short() -> None:
    wrong = []
    for path in [*MODULES, *ROOT.glob("tests/**/*.py"), *ROOT.glob("bench/*.py")]:
        if (lines := _source(path).count("\n")) > MOST_LINES:
            wrong.append(f"{_shown(path)}: {lines} lines")
        for node in ast.walk(_parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MOST_LINES_IN_A_FUNCTION:
                    wrong.append(f"{_shown(path)}:{node.lineno} {node.name}: {lines} lines")
    assert not wrong, "\n".join(wrong)


def test_every_file_says_what_lives_in_it() -> None:
    silent = [_shown(p) for p in MODULES if not ast.get_docstring(_parsed(p))]
    assert not silent, silent


@pytest.mark.parametrize("statement", ["import unmask", "import unmask.cli.main", "import unmask.data.world.render"])
def test_light_imports_stay_light(statement: str) -> None:
    code = f"import sys; {statement}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout.strip() == "[]"


def test_torchvision_is_absent_or_fits_torch() -> None:
    """A torchvision that does not fit breaks every package that looks for it, far away from its cause."""
    if importlib.util.find_spec("torchvision") is None:
        return
    found = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True)
    assert found.returncode == 0, f"remove torchvision, or install the one that fits torch:\n{found.stderr[-500:]}"
