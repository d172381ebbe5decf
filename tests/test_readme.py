"""Every command and every Python block of the README, run as a reader would."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from unmask.cli.demo import PROMPTS, unseen
from unmask.evaluation.judge import load_judge
from unmask.pipeline.model import Model

from .pages import ROOT, commands, follow, python, run
from .test_architecture import ROWS
from .truth import wanted

README = (ROOT / "README.md").read_text()


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
        for target in re.findall(r"\]\(([^)#]+)\)", re.sub(r"`[^`\n]*`", "", page.read_text())):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_pages_that_the_code_names_exist() -> None:
    for path in [*(ROOT / "unmask").rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "bench").rglob("*.py")]:
        for page in re.findall(r"\bdocs/[\w/-]+\.md\b", path.read_text()):
            assert (ROOT / page).exists(), f"{path.relative_to(ROOT)} names {page}"


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_judge_confirms_the_sheet(prompt: str, model: Model) -> None:
    """``make demo`` draws it at the seed that the README names."""
    picture = model.generate(prompt, seed=_seed_of_the_sheet())[0].image
    assert wanted(prompt).shown(load_judge().look([np.asarray(picture)])[0])


def test_the_sheet_shows_a_right_answer_right_boxes_and_a_right_edit(model: Model) -> None:
    seed = _seed_of_the_sheet()
    shown = unseen(seed)
    assert shown.instruction == "make the dog red"
    assert model.ask(shown.picture, shown.question, seed=seed).text == shown.answer
    found = model.ground(shown.picture, list(shown.phrases), seed=seed).boxes
    assert np.allclose([box.corners for box in found], shown.boxes, atol=2)
    edited = model.edit(shown.picture, shown.instruction, seed=seed)[0].image
    before, after = (
        {(o.name, o.colour) for o in seen.objects}
        for seen in load_judge().look([np.asarray(shown.picture), np.asarray(edited)])
    )
    assert after == before - {("dog", "blue")} | {("dog", "red")}


def _seed_of_the_sheet() -> int:
    (seed,) = re.findall(r"`unmask demo --seed (\d+)`", README)
    assert f"unmask demo --seed {seed} " in (ROOT / "Makefile").read_text()
    return int(seed)


def test_the_table_of_packages_is_the_one_that_is_enforced() -> None:
    table = re.findall(r"^ +(\d+) ((?:[a-z_]+ ?)+)$", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    assert {name: int(row) for row, names in table for name in names.split()} == ROWS


def test_the_readme_lists_every_package_and_file_of_the_layout() -> None:
    (layout,) = re.findall(r"```\nunmask/\n(.*?)```", README, re.S)
    listed = set(re.findall(r"(?:^  |  )(\w+(?:/|\.py))(?= )", layout, re.M))
    rooms = {f"{path.name}/" for path in (ROOT / "unmask").iterdir() if (path / "__init__.py").exists()}
    files = {path.name for path in (ROOT / "unmask").glob("*.py") if path.name != "__init__.py"}
    assert listed == rooms | files


def test_prose_is_wrapped() -> None:
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "unmask/assets/mini/README.md")]
    for page in [*pages, *(ROOT / "docs").rglob("*.md")]:
        wide = [n for n, line in enumerate(page.read_text().splitlines(), 1) if len(line) > 200 and line[:1] != "|"]
        assert not wide, f"{page.name}: lines {wide} exceed 200 characters"


def test_first_screen() -> None:
    screen = README.splitlines()[:32]
    assert any("make demo" in line for line in screen) and any("make test" in line for line in screen)
    assert sum(line.startswith("unmask ") for line in screen) >= 4
