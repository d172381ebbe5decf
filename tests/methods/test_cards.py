"""Cards and named samplers: what the walk over the source finds is what the modules have, and every name runs."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import pytest
import torch

from unmask.cli.methods import page
from unmask.methods import cards
from unmask.methods.card import Card
from unmask.models.fake import FakeDenoiser
from unmask.pipeline import catalogue
from unmask.pipeline.catalogue import SamplerChange, find_sampler, for_network, methods, samplers
from unmask.protocols import Denoiser
from unmask.sampling import presets
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Cosine, Equal
from unmask.sampling.selection import Confident
from unmask.sampling.token_sampler import Categorical, Greedy
from unmask.sequence import Kind, Sequence, Span, collate

torch.set_num_threads(1)
DOCS = Path(__file__).parents[2] / "docs"
BASE = Sampler(schedule=Cosine(steps=4), token_sampler=Categorical(), selection=Confident(noise=1.0))
CARD = {"title": "T", "paper": "arXiv 1", "year": 2025, "changes": "c", "claim": "d", "sampler": ("s",)}


def answer(tokens: int) -> Sequence:
    span = Span(name="answer", kind=Kind.TEXT, start=0, stop=tokens, writable=True)
    return Sequence(ids=torch.zeros(tokens, dtype=torch.long), masked=torch.ones(tokens).bool(), spans=(span,))


def test_the_walk_finds_the_cards_that_the_modules_have() -> None:
    found, real = methods(), cards()
    assert set(found) == set(real) >= {"remdm", "eb_sampler"}
    for name, card in real.items():
        for field, value in found[name].card.items():
            assert getattr(card, field) == value
        for part in ("Paper:", "Equations:", "What changes:", "What it costs:"):
            assert part in found[name].about, f"{name}: the docstring has no {part}"
        assert card.paper in found[name].about
        assert card.parts or found[name].minutes or card.python or measured(name), f"nothing runs {name}"


@pytest.mark.parametrize("name", sorted(name for name, entry in methods().items() if entry.card.get("python")))
def test_the_import_of_a_card_works(name: str) -> None:
    line, known = methods()[name].card["python"], dict[str, object]()
    exec(line, known)
    assert line.startswith(f"from unmask.methods.{name} import ") and len(known) > 1


def measured(name: str) -> bool:
    """Whether the method's test compares it with measured arrays."""
    path = Path(__file__).with_name(f"test_{name}.py")
    return path.exists() and f'golden("{name}")' in path.read_text(encoding="utf-8")


def test_every_sampler_of_a_card_has_a_name_and_the_reverse() -> None:
    known = {name: s.module for name, s in samplers().items()}
    named = {name: f"unmask.methods.{method}" for method, card in cards().items() for name in card.sampler}
    assert named.items() <= known.items()
    others = {
        "fast_dllm",
        "maskgit_plus",
        "topk_margin",
        "entropy",
        "origin",
        "ml_cache",
        "token_editing",
    }  # of unmask/sampling/presets.py
    assert set(known) - set(named) == others


@pytest.mark.parametrize("name", sorted(name for name, entry in samplers().items() if not entry.folders))
def test_a_named_sampler_runs_and_its_arguments_are_those_of_its_function(name: str) -> None:
    entry = samplers()[name]
    function, net = getattr(import_module(entry.module), name), FakeDenoiser()
    given = (BASE, net) if entry.takes_net else (BASE,)
    parameters = list(inspect.signature(function).parameters.values())
    assert {p.name: p.default for p in parameters[len(given) :]} == entry.arguments and entry.summary
    change, rest = find_sampler(name, [f"{k}={v}" for k, v in entry.arguments.items()])
    change = for_network(change, net)
    assert rest == [] and change(BASE) == function(*given) != BASE
    if name != "wavefront":  # for looped networks alone (tests/recipes/test_looped.py)
        assert not change(BASE).sample(net, collate([answer(9)], [0])).masked.any()


def test_arguments_are_taken_and_other_settings_left() -> None:
    change, rest = find_sampler("fast_dllm", ["schedule.steps=3", " threshold = 0.4"])
    assert rest == ["schedule.steps=3"] and change(BASE) == presets.fast_dllm(BASE, threshold=0.4)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("remmd", [], "no sampler 'remmd'; did you mean 'remdm'"),
        ("zzz", [], "no sampler 'zzz'; the samplers are .*eb_sampler.*remdm"),
        ("llada_text", [], "no sampler 'llada_text'"),
        ("remdm", ["gamma=1"], "'remdm' has no argument 'gamma'; its arguments are eta, switch"),
        ("remdm", ["eta=much"], "eta='much' must be a number; for example eta=1.0"),
    ],
)
def test_what_does_not_exist_is_named(name: str, settings: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_sampler(name, settings)


def test_two_samplers_of_one_name_and_a_method_without_card_are_refused(tmp_path: Path) -> None:
    package = tmp_path / "unmask"
    for folder in ("sampling", "methods"):
        (package / folder).mkdir(parents=True)
    text = '"""A."""\n\n\ndef same(base: Sampler) -> Sampler:\n    """S."""\n    return base\n'
    for path in (package / "sampling" / "presets.py", package / "methods" / "a.py"):
        path.write_text(text)
    with pytest.raises(ValueError, match=r"unmask.methods.a and unmask.sampling.presets both have a sampler same"):
        samplers(package)
    with pytest.raises(ValueError, match=r"a.py has no card; end it with CARD"):
        methods(package)


def test_a_file_is_parsed_once_until_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server looks samplers up in every request, and parsing in several threads at once fails in Python 3.11."""
    expected, parse = samplers(), catalogue.ast.parse
    monkeypatch.setattr(catalogue.ast, "parse", lambda *_: pytest.fail("parsed again"))
    with ThreadPoolExecutor(4) as pool:
        assert all(found == expected for found in pool.map(lambda _: samplers(), range(8)))
    monkeypatch.setattr(catalogue.ast, "parse", parse)


def test_a_changed_file_is_parsed_again(tmp_path: Path) -> None:
    package = tmp_path / "unmask"
    (package / "sampling").mkdir(parents=True)
    path = package / "sampling" / "presets.py"
    for when, name in enumerate(("first", "second"), 1):
        path.write_text(f"def {name}(base: Sampler) -> Sampler:\n    return base\n")
        os.utime(path, ns=(when, when))
        assert list(samplers(package)) == [name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "great"}, "status is one of reference, tiny-checked, not seen, got 'great'"),
        ({"status": "reference", "sampler": ()}, "names no sampler, recipe, command or python"),
        ({"status": "tiny-checked"}, "tiny-checked needs the figure"),
        ({"status": "not seen", "tried": ("more steps",)}, "at least two remedies in tried=, got 1"),
        ({"status": "reference", "claim": " "}, "a card needs a claim"),
    ],
)
def test_a_card_is_complete(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Card(**{**CARD, **change})  # type: ignore[arg-type]


def test_the_page_of_methods_is_the_generated_one() -> None:
    assert (DOCS / "methods.md").read_text(encoding="utf-8") == page(), (
        "run: unmask methods --markdown > docs/methods.md"
    )
    assert re.findall(r"^## (\w+)$", page(), re.MULTILINE) == sorted(methods())


def test_a_sampler_may_take_the_opened_network(tmp_path: Path) -> None:
    """A method whose token sampler holds a head or an energy of the network that was opened (MMAR, EDLM)."""
    package = tmp_path / "unmask"
    (package / "sampling").mkdir(parents=True), (package / "methods").mkdir()
    code = "def energy(base, net, *, weight=1.0) -> Sampler:\n    return base\n\n\ndef plain(base) -> Sampler:\n    return base\n"
    (package / "sampling" / "presets.py").write_text(code)
    assert {name: s.takes_net for name, s in samplers(package).items()} == {"energy": True, "plain": False}

    def energy(base: Sampler, net: Denoiser, *, weight: float) -> Sampler:
        return dataclasses.replace(base, token_sampler=(net, weight))  # type: ignore[arg-type]

    change = SamplerChange(function=energy, arguments={"weight": 0.5}, takes_net=True)
    net = FakeDenoiser()
    base = Sampler(schedule=Equal(steps=2), token_sampler=Greedy(), selection=Confident())
    assert for_network(change, net)(base).token_sampler == (net, 0.5)
    assert for_network(lambda sampler: sampler, net)(base) is base
    with pytest.raises(ValueError, match="energy needs the network"):
        change(base)
