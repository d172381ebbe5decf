"""What the package asks to be installed: every package is imported somewhere, has an upper bound, and the README says how."""

from __future__ import annotations

import ast
import functools
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
FOR_USERS = [name for name in EXTRAS if name not in ("test", "dev", "docs", "integrations")]
IMPORTED_AS = {
    "pillow": "PIL",
    "pillow-heif": "pillow_heif",
    "huggingface-hub": "huggingface_hub",
    "lm-eval": "lm_eval",
    "lmms-eval": "lmms_eval",
    "prometheus-client": "prometheus_client",
}
# fastapi imports the first where a form is posted, torch.utils.tensorboard the second
IMPORTED_BY_OTHERS = ("python-multipart", "tensorboard")


def _name(requirement: str) -> str:
    return re.split(r"[\[<>=~! ]", requirement, maxsplit=1)[0]


@functools.cache
def _imported() -> set[str]:
    """The first names of everything that the package imports, in functions too."""
    found = set()
    for path in (ROOT / "unmask").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
            elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in (
                "import_module",
                "find_spec",
                "need",
            ):
                found |= {str(a.value) for a in node.args if isinstance(a, ast.Constant)}
    return found


REQUIRED = [*PROJECT["dependencies"], *(r for extra in FOR_USERS for r in EXTRAS[extra])]


@pytest.mark.parametrize("requirement", REQUIRED)
def test_what_is_required_is_imported_and_bounded(requirement: str) -> None:
    name = _name(requirement)
    assert IMPORTED_AS.get(name, name) in _imported() or name in IMPORTED_BY_OTHERS, "nothing imports it; remove it"
    assert ">=" in requirement and ",<" in requirement, "give it a lower and an upper bound"


def test_the_extras_of_messages_and_pages_exist() -> None:
    texts = [*(ROOT / "unmask").rglob("*.py"), ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {
        extra.strip()
        for path in texts
        for group in re.findall(r"pip install [^\n`]*unmask\[([\w, -]+)\]", path.read_text(encoding="utf-8"))
        for extra in group.split(",")
    }
    assert named and named <= set(EXTRAS), named - set(EXTRAS)


def test_the_readme_installs_the_torch_that_the_package_takes() -> None:
    """Without the bounds, `pip install .` would replace a newer CPU build by the CUDA build of an older version."""
    (torch,) = (r for r in PROJECT["dependencies"] if _name(r) == "torch")
    assert f'pip install "{torch}" --index-url https://download.pytorch.org/whl/cpu' in (ROOT / "README.md").read_text()
