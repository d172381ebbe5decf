"""Every command and every Python block of the README, run as a reader would."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from unmask.evaluation import scoring
from unmask.evaluation.judge import load_judge
from unmask.evaluation.scoring import Want, Wanted
from unmask.pipeline.model import Model

from .pages import ROOT, commands, follow, python, run
from .test_architecture import ROWS

README = (ROOT / "README.md").read_text()
EXAMPLES = {
    "a red apple": scoring.colors("apple", "red"),
    "two red apples": Want(items=(Wanted(name="apple", count=2, colour="red", exact=True),)),
    "a dog left of a cat": scoring.position(Wanted(name="dog"), "left of", Wanted(name="cat")),
    "a blue cup and a yellow dog": scoring.color_attr("cup", "blue", "dog", "yellow"),
    "a horse on a sand background": scoring.single("horse"),
}


def test_commands_run_in_order(tmp_path: Path) -> None:
    assert len(commands(README)) >= 4
    for command in commands(README):
        follow(command, tmp_path)


@pytest.mark.parametrize("block", python(README))
def test_python_runs(block: str, tmp_path: Path) -> None:
    done = run([sys.executable, "-c", block], tmp_path)
    assert done.returncode == 0, done.stderr


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_pages_that_the_code_names_exist() -> None:
    for path in [*(ROOT / "unmask").rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "bench").rglob("*.py")]:
        for page in re.findall(r"\bdocs/[\w/-]+\.md\b", path.read_text()):
            assert (ROOT / page).exists(), f"{path.relative_to(ROOT)} names {page}"


def test_the_model_draws_the_example_prompts_correctly(model: Model) -> None:
    """As the independent judge sees them, and nothing else in the picture: from a plan, at three seeds."""
    (named,) = re.findall(r"^Prompts that work well: (.*?)\.$", README, re.M | re.S)
    assert set(re.findall(r"`(\w[^`]*)`", named)) == set(EXAMPLES)
    for prompt, want in EXAMPLES.items():
        pictures = [np.asarray(d.image) for d in model.generate(prompt, n=3, seed=1, plan=True)]
        assert all(scoring.strict(seen, want) for seen in load_judge().look(pictures)), prompt


def test_the_table_of_packages_is_the_one_that_is_enforced() -> None:
    table = re.findall(r"^ +(\d+) ((?:[a-z]+ ?)+)$", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    assert {name: int(row) for row, names in table for name in names.split()} == ROWS


def test_prose_is_wrapped() -> None:
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "unmask/assets/mini/README.md")]
    for page in [*pages, *(ROOT / "docs").rglob("*.md")]:
        wide = [n for n, line in enumerate(page.read_text().splitlines(), 1) if len(line) > 200 and line[:1] != "|"]
        assert not wide, f"{page.name}: lines {wide} exceed 200 characters"


def test_first_screen() -> None:
    screen = README.splitlines()[:32]
    assert any("make demo" in line for line in screen) and any("make test" in line for line in screen)
    assert sum(line.startswith("unmask ") for line in screen) >= 4
