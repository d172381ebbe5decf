"""docs/models.md: its tables are what the code says, and every command and Python block runs on the fixtures that it names.

After a change of a family's tasks, presets or sizes: ``python -m tests.test_models_page`` writes the tables.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import unmask
from unmask.checkpoints.budget import footprint, working
from unmask.checkpoints.elastic import Weights, WeightStorage
from unmask.checkpoints.quantise import RoundToNearest
from unmask.cli.main import main
from unmask.evaluation.verify import default_tolerance, verify
from unmask.pipeline.abilities import tasks_of
from unmask.pipeline.loading import needs_of
from unmask.pipeline.model import Model
from unmask.pipeline.named_sizes import spec_of_size
from unmask.sampling.sampler import Sampler
from unmask.tasks.parts import Refused

from .families import FAMILIES
from .pages import ROOT, commands, python

PAGE = ROOT / "docs" / "models.md"
BLOCK = re.compile(r"(?<=<!-- families: python -m tests.test_models_page -->\n).*?(?=<!-- end of families -->)", re.S)
# A family by its name on the page: its tiny folder (tests/families.py), its released size, its fixtures with measured arrays.
NAMES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "LLaDA": ("llada", "llada_8b", ()),
    "Dream": ("dream", "dream_7b", ("dream_tiny",)),
    "LaViDa on LLaDA": ("lavida", "lavida_8b", ("lavida_tiny",)),
    "LaViDa on Dream": ("lavida on dream", "lavida_dream_7b", ("lavida_dream_tiny",)),
    "LLaDA-V, ReDiff": ("rediff", "rediff_8b", ()),
    "Dimple": ("dimple", "dimple_7b", ("dimple_tiny",)),
    "MMaDA": ("mmada", "mmada_8b", ("mmada_tiny",)),
    "Lumina-DiMOO": ("lumina_dimoo", "lumina_dimoo_8b", ("lumina_dimoo_tiny",)),
    "LLaDA2": ("llada2", "llada2_mini", ()),
    "LLaDA2.0-Uni": ("llada2_uni", "llada2_uni", ()),
}
_ELSEWHERE = {
    "LLaDA": "none; MMaDA and Lumina-DiMOO have its trunk and its sampler of text",
    "LLaDA-V, ReDiff": "`tests/golden/rediff_tiny`, which `tests/methods/test_rediff.py` compares",
    "LLaDA2": "none; LLaDA2.0-Uni has its trunk, samplers and token editing",
    "LLaDA2.0-Uni": "`tests/golden/llada2_uni_tiny`, after `unmask convert`; 206 arrays, see below",
}
_ANY = 2**31  # of ``Fixed``: the selection says how many


def tables() -> str:
    """All tables of the page."""
    with tempfile.TemporaryDirectory() as folder:
        return "\n".join([*_memory(), "", *_presets(Path(folder)), "", *_proofs(), ""])


def _memory() -> Iterator[str]:
    yield "| family | size (`unmask inspect`) | tasks | parameters | weights, bfloat16 | und=int8 | activations |"
    yield "|---|---|---|---|---|---|---|"
    for name, (_, size, _) in NAMES.items():
        spec = spec_of_size(size)
        plain = Weights(checkpoint=spec.checkpoint)
        small = WeightStorage(quantise={"und": RoundToNearest(bits=8)})
        shares = footprint(plain, needs_of("all"))
        figures = (
            f"{sum(s.parameters for s in shares) / 1e9:.2f} B",
            _gib(sum(s.nbytes for s in shares)),
            _gib(sum(s.nbytes for s in footprint(Weights(checkpoint=spec.checkpoint, storage=small), needs_of("all")))),
            _gib(working(plain, needs_of("all"), spec.side)),
        )
        tasks = ", ".join(task.replace("converse", "chat") for task in tasks_of(spec))
        yield f"| {name} | `{size}` | {tasks} | {' | '.join(figures)} |"


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.1f} GiB"


def _presets(folder: Path) -> Iterator[str]:
    yield "| family | task | tokens | sampler | cache |"
    yield "|---|---|---|---|---|"
    for name, (tiny, _, _) in NAMES.items():
        model = unmask.load(FAMILIES[tiny].make(folder / tiny.replace(" ", "_")), device="cpu", needs=())
        for task, length, sampler in samplers(model):
            kind = type(sampler.cache).__name__
            cache = "none" if kind == "NoCache" else f"`{kind}`, {'exact' if sampler.cache.exact else 'approximate'}"
            yield f"| {name} | {task} | {length} | {shown(sampler)} | {cache} |"


def samplers(model: unmask.Model | unmask.TextModel) -> Iterator[tuple[str, str, Sampler]]:
    """(task, tokens of its result, sampler) of a model's presets."""
    if not isinstance(model, Model):
        family, text = model.parts.family, model.parts.text
        yield "ask, chat", str(family.length), family.chat(text, family.length)
        yield "ask --plain", str(family.length), family.base(text, family.length)
        return
    own = model.presets
    for task, make, length in (
        ("generate" if own.infill else "generate, infill", own.generate, ""),
        ("edit", own.edit, ""),
        ("ask", own.ask, own.answer),
    ):
        if not isinstance(make, Refused):
            yield task, str(length), make(model.parts)


def shown(sampler: Sampler) -> str:
    """The parts of a sampler with their numbers, without parts that do nothing."""
    inner = sampler.token_sampler
    while hasattr(inner, "token_sampler"):
        inner = inner.token_sampler  # type: ignore[union-attr]
    selection = [sampler.selection, *([sampler.selection.selection] if hasattr(sampler.selection, "selection") else [])]
    guides = [sampler.guidance] if getattr(sampler.guidance, "scale", 0) else []
    parts = [sampler.schedule, *selection, inner, *guides, sampler.blocks]
    return ", ".join(f"`{_part(part)}`" for part in parts if type(part).__name__ != "Whole")


def _part(part: object) -> str:
    """``Equal(steps=64)``: the numbers of a part that are not its defaults, and another score; without ids and sizes of the fixture."""
    values = []
    for field in dataclasses.fields(part):  # type: ignore[arg-type]
        value, name = getattr(part, field.name), field.name
        if name == "score" and value != field.default:
            values.append(f"{name}={type(value).__name__}")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and value != field.default and name not in ("null_id", "of"):
            values.append(f"{name}={'any' if value == _ANY else f'{value:g}'}")
    return f"{type(part).__name__}({', '.join(values)})" if values else type(part).__name__


def _proofs() -> Iterator[str]:
    yield "| family | fixture | arrays | of integers, equal | of real numbers, within |"
    yield "|---|---|---|---|---|"
    for name, (_, _, folders) in NAMES.items():
        for folder in folders:
            place = ROOT / "tests" / "golden" / folder
            found = verify(place, device="cpu")
            assert all(one.ok for one in found), folder
            exact, tolerance = sum(one.exact for one in found), default_tolerance(place)
            yield f"| {name} | `tests/golden/{folder}` | {len(found)} | {exact} | {len(found) - exact}, {tolerance:g} |"
        if not folders:
            yield f"| {name} | {_ELSEWHERE[name]} | | | |"


def test_the_tables_are_what_the_code_says() -> None:
    found = BLOCK.search(PAGE.read_text())
    assert found and found[0] == tables(), "python -m tests.test_models_page"


def test_the_counts_in_the_text_are_those_of_the_tables() -> None:
    page = PAGE.read_text()
    for folder, count in re.findall(r"`tests/golden/(\w+)` \| (\d+) \|", page):
        said = re.findall(rf"verify tests/golden/{folder}` recomputes (\d+) arrays|tests/golden/{folder}` (\d+):", page)
        assert all(count in numbers for numbers in said), folder


def test_commands_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = PAGE.read_text()
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    for block in python(page):
        exec(compile(block, "docs/models.md", "exec"), {})
    found = commands(page)
    for command in found:
        code = main(shlex.split(command)[1:])
        assert code == 0, (command, capsys.readouterr())
    assert len(found) >= 6 and (tmp_path / "filled.png").exists()


if __name__ == "__main__":
    torch.set_num_threads(1)
    text = tables()
    PAGE.write_text(BLOCK.sub(lambda _: text, PAGE.read_text()))
