"""ML-Cache as a part of the sampler: which steps and tokens it computes, exact at its ends, batch-invariant, and named."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

import unmask
from unmask.cli.main import main
from unmask.models.elastic import Elastic
from unmask.pipeline.catalogue import find_sampler, for_network
from unmask.pipeline.model import Model
from unmask.sampling.ml_cache import MLCache
from unmask.sampling.sampler import Sampler
from unmask.sequence import Batch, Kind, Sequence, collate
from unmask.step import Prediction, Progress, Scored, State
from unmask.tasks.generate import Generate

torch.set_num_threads(1)
GOLDEN = Path(__file__).parents[1] / "golden" / "lumina_dimoo_tiny"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = Path(shutil.copytree(GOLDEN, tmp_path_factory.mktemp("ml_cache") / "model"))
    raw = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(raw | {"unmask": {"side": 32}}))
    return place


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    made = unmask.load(folder)
    assert isinstance(made, Model)
    made.parts.require(Generate.needs)
    return made


def sampler(model: Model, **fields: object) -> Sampler:
    """The published drawing in ten steps with the cache."""
    made = model.presets.generate(model.parts)
    change, _ = find_sampler("ml_cache")
    cached = for_network(change, model.parts.net)(dataclasses.replace(made, schedule=_steps(made, 10)))
    assert isinstance(cached.cache, MLCache)
    return dataclasses.replace(cached, cache=dataclasses.replace(cached.cache, **fields))


def _steps(made: Sampler, steps: int) -> object:
    return dataclasses.replace(made.schedule, steps=steps)  # type: ignore[type-var]


def rows(model: Model, *prompts: str) -> list[Sequence]:
    return [Generate(prompt=prompt).build(model.parts) for prompt in prompts]


def computed(net: Elastic, made: Sampler, row: Sequence) -> tuple[list[list[int]], Batch]:
    """Tokens that each step computes, by view; and the finished batch."""
    run, counts = made.start(collate([row], [3])), []
    while (query := run.query) is not None:
        assert query.reuse is not None
        counts.append([int(own.sum()) for own in query.reuse.compute])
        with torch.no_grad():
            run.advance(net(query.batch, predict=query.predict, reuse=query.reuse))
    return counts, run.batch


def test_full_steps_are_the_first_ones_and_every_fifth_later(model: Model) -> None:
    """Ten steps, the first 30 % full, then every fifth: 0 to 3 and 8. The others compute a tenth, or a few more that tie."""
    (row,) = rows(model, "a red cat")
    counts, _ = computed(model.parts.net, sampler(model), row)
    whole = [int(view.valid.sum()) for view in sampler(model).guidance.views(collate([row], [0]), at(0))]
    assert [i for i, own in enumerate(counts) if own == whole] == [0, 1, 2, 3, 8]
    assert all(
        0.1 * n <= c <= 0.1 * n + 3 for own in (*counts[4:8], counts[9]) for c, n in zip(own, whole, strict=True)
    )


def test_the_published_cache_computes_28_of_64_steps_whole() -> None:
    steps = Progress(number=torch.arange(64), of=torch.full((64,), 64), length=1)
    whole = MLCache().full(steps).nonzero()[:, 0].tolist()
    assert whole == [*range(20), *range(24, 64, 5)] and len(whole) == 28


def at(number: int) -> Progress:
    return Progress(number=torch.tensor([number]), of=torch.tensor([10]), length=1)


@pytest.mark.parametrize("fields", [{"interval": 1}, {"warmup": 1.0}, {"ratio": 0.0}])
def test_a_cache_that_leaves_nothing_out_is_exact(model: Model, fields: dict[str, float]) -> None:
    (row,) = rows(model, "a red cat")
    made = sampler(model, **fields)
    plain = dataclasses.replace(made, cache=dataclasses.replace(made.cache, warmup=1.0))
    without = dataclasses.replace(sampler(model), cache=model.presets.generate(model.parts).cache)
    wanted = without.sample(model.parts.net, collate([row], [3])).ids
    assert torch.equal(made.sample(model.parts.net, collate([row], [3])).ids, wanted)
    assert torch.equal(plain.sample(model.parts.net, collate([row], [3])).ids, wanted)


def test_a_usual_cache_is_approximate_and_batch_invariant(model: Model) -> None:
    some, made = rows(model, "a red cat", "two very long green apples and more"), sampler(model, ratio=0.7)
    together = made.sample(model.parts.net, collate(some, [3, 4]))
    plain = dataclasses.replace(made, cache=dataclasses.replace(made.cache, interval=1))
    differs = 0
    for i, row in enumerate(some):
        alone = made.sample(model.parts.net, collate([row], [3 + i]))
        length, codes = len(row.ids), torch.tensor([s.kind for s in row.spans])
        assert Kind.CODE in codes.tolist() and torch.equal(together.ids[i, :length], alone.ids[0])
        differs += int((plain.sample(model.parts.net, collate([row], [3 + i])).ids != alone.ids).sum())
    assert differs > 0, "what is lent is not what would be computed"


def test_the_least_certain_tokens_are_computed_next() -> None:
    """Of best logits 0 to 4 the lowest two fifths, of codes alone in a shared vocabulary; others keep their logits."""
    cache = MLCache(ratio=0.6, codes=(2, 4))
    wanted = torch.tensor([[False, True, True, True, True]])
    logits = torch.tensor([[9.0, 9.0, 4.0, 1.0]])
    codes = torch.tensor([[3.0, 2.0], [0.0, -1.0], [2.0, 1.0], [1.0, 0.0]])
    scored = {
        Kind.TEXT: Scored(at=torch.tensor([0]), logits=logits),
        Kind.CODE: Scored(at=torch.tensor([1, 2, 3, 4]), logits=codes),
    }
    first = Prediction(scored=scored, state=State(held=torch.ones(1, 5, dtype=torch.bool)))
    view, lent = cache.completed(first, None, wanted)
    assert lent.best.tolist() == [[4.0, 3.0, 0.0, 2.0, 1.0]]
    assert view.state is not None and view.state.held.tolist() == [[True, True, False, True, False]]
    fresh = Scored(at=torch.tensor([2, 4]), logits=codes[:2] * 10)
    later, lent = cache.completed(
        Prediction(scored={Kind.CODE: fresh}, state=first.state), lent, wanted & (torch.arange(5) != 3)
    )
    assert later.scored[Kind.CODE].at.tolist() == [1, 2, 4]
    assert later.logits(Kind.CODE).tolist() == [[3.0, 2.0], [30.0, 20.0], [0.0, -10.0]]
    assert lent.best.tolist() == [[4.0, 3.0, 30.0, 2.0, 0.0]]


def test_wrong_values_are_named() -> None:
    for fields, said in (
        ({"ratio": 2}, "ratio is a share"),
        ({"warmup": -1}, "warmup is a share"),
        ({"interval": 0}, "interval counts steps"),
    ):
        with pytest.raises(ValueError, match=said):
            MLCache(**fields)  # type: ignore[arg-type]


def test_the_commands_take_it_by_name(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "a red cat", "--model", str(folder), "--steps", "10", "--seed", "3", "--sampler", "ml_cache"]
    pictures = []
    for name, setting in (("usual", "ratio=0.7"), ("full", "refresh=1")):
        assert main([*words, "-o", setting, "--out", str(tmp_path / f"{name}.png")]) == 0
        pictures.append((tmp_path / f"{name}.png").read_bytes())
    assert pictures[0] != pictures[1]
    assert main([*words, "-o", "refresh=0", "--out", str(tmp_path / "none.png")]) == 2
    assert "interval counts steps, got 0" in capsys.readouterr().err
