"""Demonstrations: every method's runs with seconds of work and continues; pages, figures and errors of the frame."""

from __future__ import annotations

import json
from dataclasses import replace
from html import unescape
from importlib import import_module
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

from unmask.cli.main import main, program
from unmask.cli.methods import demonstration_of
from unmask.data.samples import PackageMissing
from unmask.evaluation.demonstration import Demonstration, Findings, Media, Plot, Table, Work, demonstrate, lines, place
from unmask.evaluation.demonstration_page import page, said
from unmask.evaluation.metrics import average, over_seeds, paired, share
from unmask.pipeline.catalogue import MethodEntry, methods
from unmask.recipe import Recipe, Training
from unmask.step import Loss

torch.set_num_threads(1)
pytestmark = pytest.mark.slow
HAVING = sorted(name for name, entry in methods().items() if entry.minutes)
FINDINGS = Findings(about="A against B.", verdict="A wins.", seen=True, figures={"gain": share([True, True, False])})


@pytest.mark.parametrize("name", HAVING)
def test_a_demonstration_runs_with_little_work_and_continues(name: str, tmp_path: Path) -> None:
    found = import_module(f"unmask.recipes.{name}").DEMO
    assert isinstance(found, Demonstration) and found.minutes == methods()[name].minutes
    work = Work(out=tmp_path, share=1e-3, seeds=(0,))
    try:
        first = demonstrate(name, found, work, title="T", paper="P")
    except PackageMissing as missing:
        pytest.skip(str(missing))
    about = json.loads((tmp_path / "figures.json").read_text())
    assert about["method"] == name and set(about["figures"]) == set(first.figures)
    assert first.verdict in unescape((tmp_path / "report.html").read_text())
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "measured").rglob("*.json")}
    assert kept, "nothing was kept with work.once, so a stopped run would start anew"
    again = demonstrate(name, found, work, title="T", paper="P")
    assert again.figures.keys() == first.figures.keys()
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "measured").rglob("*.json")} == kept


def test_the_page_has_tables_plots_pictures_and_sound(tmp_path: Path) -> None:
    sound = tmp_path / "a.wav"
    sound.write_bytes(b"RIFF0000WAVE")
    shown = (
        Table(title="Scores", head=("arm", "score", "n"), rows=(("<a>", average([0.5, 0.7]), 2),), note="Two runs."),
        Plot(
            title="Curve",
            across="steps",
            up="score",
            lines={"a": [(1, 0.2), (2, over_seeds([0.3, 0.4, 0.5]))]},
            log=True,
        ),
        Media(title="Drawn", items=(("a dot", Image.new("RGB", (4, 4))), ("a tone", sound))),
    )
    findings = Findings(about="x", verdict="A <wins>.", seen=False, figures=FINDINGS.figures, shown=shown)
    demonstrate(
        "m", Demonstration(minutes=1, run=lambda work: findings), Work(out=tmp_path / "o"), title="T", paper="P"
    )
    html = (tmp_path / "o" / "report.html").read_text()
    assert "&lt;a&gt;" in html and "<a>" not in html and "A &lt;wins&gt;." in html
    assert html.count("<circle") == 2 and "data:image/png;base64," in html and "<audio" in html and "0.600 [" in html
    plain = json.loads((tmp_path / "o" / "figures.json").read_text())
    assert plain["shown"][1]["lines"]["a"][0] == [1, 0.2] and plain["seen"] is False


def test_what_could_not_be_measured_is_null_and_a_dash(tmp_path: Path) -> None:
    nothing = {"value": float("nan"), "n": 3, "low": float("nan"), "high": float("nan")}
    table = Table(title="Scores", head=("arm", "score"), rows=(("a", nothing),))
    findings = Findings(about="x", verdict="y", seen=False, figures={"gain": nothing}, shown=(table,))
    work = Work(out=tmp_path / "o")
    demonstrate("m", Demonstration(minutes=1, run=lambda work: findings), work, title="T", paper="P")
    found = json.loads((tmp_path / "o" / "figures.json").read_text(), parse_constant=pytest.fail)
    assert found["figures"]["gain"]["value"] is None and found["shown"][0]["rows"][0][1]["low"] is None
    assert "nan" not in (tmp_path / "o" / "report.html").read_text() and not lines("m", findings, work)


def test_axes_have_round_numbers_and_every_line_its_colour() -> None:
    lines = {f"arm {i}": [(x, 0.1 * i) for x in range(20)] for i in range(8)}
    plot = Plot(title="Curve", across="steps", up="score", lines=lines)
    about = {"method": "m", "seeds": [0], "share": 1}
    html = page(Findings(about="a", verdict="b", seen=True, figures=FINDINGS.figures, shown=(plot,)), about)
    for tick in (">0.2<", ">0.4<", ">0.6<", ">5<", ">15<"):
        assert tick in html, tick
    assert all(html.count(f'<g class="c{i}">') == 1 for i in range(8))
    flat = Plot(title="Flat", across="steps", up="score", lines={"a": [(1.0, 0.0)]})
    assert "<circle" in page(
        Findings(about="a", verdict="b", seen=True, figures=FINDINGS.figures, shown=(flat,)), about
    )


def test_a_folder_belongs_to_one_amount_of_work(tmp_path: Path) -> None:
    demo = Demonstration(minutes=1, run=lambda work: FINDINGS)
    demonstrate("m", demo, Work(out=tmp_path), title="T", paper="P")
    with pytest.raises(ValueError, match=r"holds a demonstration with share 1 instead of 0.5, .*--out"):
        demonstrate("m", demo, Work(out=tmp_path, share=0.5, seeds=(1,)), title="T", paper="P")
    with pytest.raises(ValueError, match=r"with method m instead of n"):
        demonstrate("n", demo, Work(out=tmp_path), title="T", paper="P")


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(ValueError, match="holds other files; name an empty or a new folder"):
        demonstrate("m", Demonstration(minutes=1, run=lambda work: FINDINGS), Work(out=tmp_path), title="T", paper="P")
    assert (tmp_path / "report.html").read_text() == "mine"


@pytest.mark.parametrize(("seen", "outcome"), [(True, "Effect seen."), (False, "Effect not seen.")])
def test_a_page_says_the_outcome_and_the_claim(tmp_path: Path, seen: bool, outcome: str) -> None:
    found = replace(FINDINGS, seen=seen)
    demo = Demonstration(minutes=1, run=lambda work: found)
    demonstrate("m", demo, Work(out=tmp_path), title="T", paper="P", claim="It is better.", paper_figure="7 of 9")
    made = (tmp_path / "report.html").read_text()
    assert f"<b>{outcome}</b>" in made and "It is better. Its figure: 7 of 9." in made


@pytest.mark.parametrize(
    ("value", "shown"), [(-0.0001, "0.000"), (0.0, "0.000"), (-0.0006, "-0.001"), (float("nan"), "-")]
)
def test_numbers_of_a_page(value: float, shown: str) -> None:
    assert said(value) == shown


def test_work_keeps_results_and_trained_networks(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    work, calls = Work(out=tmp_path, share=0.1), []

    def measure() -> dict[str, tuple[int, int]]:
        calls.append(1)
        return {"pair": (1, 2)}

    assert work.once("a/b=1", measure) == work.once("a/b=1", measure) == {"pair": [1, 2]} and len(calls) == 1
    assert work.steps(200) == 20 and work.steps(2, least=3) == 3
    for wrong in ("../a", "a b", "", "/a"):
        with pytest.raises(ValueError, match="cannot be the name"):
            work.once(wrong, measure)

    def loss(model: nn.Linear, batch: torch.Tensor, rng: torch.Generator) -> Loss:
        value = model(batch).square().mean()
        return Loss(total=value, terms={"loss": value.detach()}, counts={"loss": 1})

    recipe = Recipe(
        name="tiny",
        model=lambda: nn.Linear(2, 1),
        source=lambda step: torch.ones(1, 2),
        objective=loss,
        training=Training(steps=3, device="cpu", bf16=False),
    )
    first = work.train("base/seed=0", recipe)
    assert capfd.readouterr().err.startswith("training base/seed=0\nstep 1/3 ")
    assert not first.training and (tmp_path / "trained" / "base" / "seed=0").is_dir()
    again = work.train("base/seed=0", recipe)
    assert "training" not in capfd.readouterr().err, "nothing is left to do"
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_arms_are_measured_seed_by_seed_and_kept(tmp_path: Path) -> None:
    told, measured = [], []
    work = Work(out=tmp_path, seeds=(3, 5), on_progress=lambda *said: told.append(said))

    def measure(arm: str, seed: int) -> int:
        measured.append((arm, seed))
        return len(arm) + seed

    for _ in range(2):
        assert work.each(["2: a, b", "c"], measure, "arms") == {"2: a, b": [10, 12], "c": [4, 6]}
    assert measured == [("2: a, b", 3), ("c", 3), ("2: a, b", 5), ("c", 5)]
    assert told == [("arms", n, 4) for n in (1, 2, 3, 4)] * 2
    assert (tmp_path / "measured" / "2_a_b" / "3.json").exists() and place("2: a, b", 3) == "2_a_b/3"


def test_wrong_findings_are_refused() -> None:
    with pytest.raises(ValueError, match="no figures|need figures"):
        Findings(about="a", verdict="b", seen=True, figures={})
    with pytest.raises(ValueError, match="'verdict'"):
        Findings(about="a", verdict=" ", seen=True, figures=FINDINGS.figures)
    with pytest.raises(ValueError, match='has no "value"'):
        Findings(about="a", verdict="b", seen=True, figures={"x": {"mean": 1.0}})
    with pytest.raises(ValueError, match="2 cells under 1 headings"):
        Table(title="t", head=("a",), rows=(("b", "c"),))
    with pytest.raises(ValueError, match="above 0"):
        Work(out=Path("x"), share=0.0)
    with pytest.raises(ValueError, match="seeds must be different"):
        Work(out=Path("x"), seeds=(1, 1))


def test_figures_of_few_runs_have_students_interval_and_pairs_a_bootstrap() -> None:
    figure = over_seeds([1.0, 2.0, 3.0])
    assert figure["value"] == 2.0 and abs(figure["high"] - (2 + 4.303 / 3**0.5)) < 1e-6
    assert over_seeds([1.5]) == {"value": 1.5, "n": 1, "low": None, "high": None} and over_seeds([])["value"] is None
    gain = paired([1.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0])
    assert gain["value"] == 0.5 and gain["low"] == 0.0 and gain["high"] == 1.0
    with pytest.raises(ValueError, match="as many"):
        paired([1.0], [])


def test_rows_of_a_history_say_how_much_work_it_was(tmp_path: Path) -> None:
    (row,) = lines("m", FINDINGS, Work(out=tmp_path, share=0.5, seeds=(0,)))
    assert row.name == "methods.m.gain" and row.more is not None
    assert row.more["share"] == 0.5 and row.more["seeds"] == 1 and row.more["n"] == 3


def test_the_command_runs_shows_and_explains_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = CliRunner().invoke(program(["methods"]), ["methods", "show", "remdm"])
    assert "measured here:" in shown.output and "unmask methods run remdm" in shown.output
    assert main(["methods", "run", "remmd"]) == 2 and "did you mean 'remdm'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="'x' has no demonstration; those that have one: .*remdm"):
        demonstration_of(MethodEntry(name="x", about="", card={}))
    words = [
        "methods",
        "run",
        "diffusion_link",
        "--minutes",
        "0.01",
        "--seeds",
        "1",
        "--out",
        str(tmp_path / "o"),
        "--json",
    ]
    assert main([*words, "--history", str(tmp_path / "h.jsonl")]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["method"] == "diffusion_link" and len((tmp_path / "h.jsonl").read_text().splitlines()) == len(
        out["figures"]
    )
