"""The likelihood bound: unbiased against enumeration, exact where it must be, guided the right way round."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from unmask.evaluation.likelihood import choose, likelihood
from unmask.models.fake import FakeDenoiser
from unmask.objectives.likelihood import Bound, bound, difference, estimates, masks
from unmask.pipeline.opening import load_text
from unmask.pipeline.text_model import TextModel
from unmask.sampling.guidance import ClassifierFree
from unmask.sequence import Batch, Kind, Sequence, Span, collate
from unmask.step import Prediction, Reuse

from ..tiny_llada import make

VOCABULARY, GIVEN, NULL = 4, 2, 3


# Logits of a token depend on its place and on all that is shown: not a product of independent tokens.
TOY = FakeDenoiser(sizes={Kind.TEXT: VOCABULARY})


def row(ids: list[int]) -> Sequence:
    spans = (
        Span(name="prompt", kind=Kind.TEXT, start=0, stop=GIVEN),
        Span(name="answer", kind=Kind.TEXT, start=GIVEN, stop=len(ids), writable=True),
    )
    return Sequence(ids=torch.tensor(ids), masked=torch.zeros(len(ids), dtype=torch.bool), spans=spans)


def log_p(sequence: Sequence, chosen: tuple[int, ...]) -> float:
    """ln p of the chosen tokens, all masked together, from the toy itself."""
    batch = collate([sequence], [0])
    masked = torch.zeros_like(batch.masked)
    masked[0, list(chosen)] = True
    logits = TOY(batch.replace(masked=masked), predict=masked).logits(Kind.TEXT).double().log_softmax(1)
    return float(logits.gather(1, batch.ids[0, list(chosen)][:, None]).sum())


def test_it_is_unbiased() -> None:
    sequence = row([1, 2, 0, 3, 1, 2])
    tokens = range(GIVEN, 6)
    subsets = [list(itertools.combinations(tokens, n)) for n in range(1, 5)]
    exact = sum(4 / n * sum(log_p(sequence, s) for s in of) / len(of) for n, of in enumerate(subsets, start=1)) / 4
    found = bound(TOY, sequence, samples=6000, rows=500)
    assert abs(found.value - exact) < 5 * found.error < 0.3 and found.tokens == 4


def test_few_samples_are_unbiased_too() -> None:
    """Fewer samples than tokens: the numbers of masked tokens are spread, and each is still uniform."""
    sequence = row([1, 2, 0, 3, 1, 2])
    many = bound(TOY, sequence, samples=6000, rows=500)
    few = torch.tensor([bound(TOY, sequence, samples=3, seed=s).value for s in range(600)])
    assert abs(float(few.mean()) - many.value) < 5 * float(few.std()) / 600**0.5


def test_one_token_is_exact() -> None:
    sequence = row([1, 2, 3])
    for samples in (1, 5):
        assert bound(TOY, sequence, samples=samples).value == pytest.approx(log_p(sequence, (2,)), abs=1e-6)


def test_a_model_that_knows_nothing_is_exact() -> None:
    found = bound(dataclasses.replace(TOY, spread=0.0), row([1, 2, 0, 3, 1]), samples=7)
    assert found.value == pytest.approx(-3 * torch.log(torch.tensor(4.0)).item(), abs=1e-5) and found.error < 1e-5


def test_seeds_and_rows() -> None:
    sequence = row([1, 2, 0, 3, 1, 2])
    assert bound(TOY, sequence, samples=9, rows=4) == bound(TOY, sequence, samples=9, rows=4)
    assert bound(TOY, sequence, samples=9).value != bound(TOY, sequence, samples=9, seed=1).value


def test_guidance_is_the_right_way_round() -> None:
    sequence, scale = row([1, 2, 3]), 0.5
    guidance = ClassifierFree(scale=scale, drop=frozenset({"prompt"}), null_id=NULL)
    logits = []
    for prompt in ([1, 2], [NULL, NULL]):
        batch = collate([row([*prompt, 3])], [0])
        masked = torch.tensor([[False, False, True]])
        logits.append(TOY(batch.replace(masked=masked), predict=masked).logits(Kind.TEXT).double())
    wanted = ((1 + scale) * logits[0] - scale * logits[1]).log_softmax(1)[0, 3]
    assert bound(TOY, sequence, samples=1, guidance=guidance).value == pytest.approx(float(wanted), abs=1e-5)


@pytest.mark.parametrize(("ids", "samples"), [([1, 2], 4), ([1, 2, 3], 0)])
def test_nothing_to_measure(ids: list[int], samples: int) -> None:
    with pytest.raises(ValueError, match="needs tokens and samples"):
        bound(TOY, row(ids), samples=samples)


# -- a text model -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    torch.set_num_threads(1)
    return load_text(make(tmp_path_factory.mktemp("models") / "llada"))


def test_a_space_belongs_to_the_answer(model: TextModel) -> None:
    a, b = (likelihood(model, p, q, samples=4) for p, q in (("the sky is ", "blue"), ("the sky is", " blue")))
    assert a == b and isinstance(a, Bound)
    assert a.tokens == len(model.parts.text.encode("the sky is blue")) - len(model.parts.text.encode("the sky is"))


def test_choose_takes_the_most_probable(model: TextModel) -> None:
    answers = [" blue", " the", " why?"]
    best, bounds = choose(model, "the sky is", answers, samples=8)
    assert bounds == [likelihood(model, "the sky is", a, samples=8) for a in answers]
    assert bounds[best].value == max(b.value for b in bounds)
    guided = choose(model, "the sky is", answers, samples=8, scale=2.0)[1]
    assert [b.value for b in guided] != [b.value for b in bounds]


@pytest.mark.parametrize(("prompt", "answer"), [("", "blue"), ("the sky", "")])
def test_an_empty_side_is_refused(model: TextModel, prompt: str, answer: str) -> None:
    with pytest.raises(ValueError, match="non-empty prompt and answer"):
        likelihood(model, prompt, answer)


def test_no_answers(model: TextModel) -> None:
    with pytest.raises(ValueError, match="no answers to choose from"):
        choose(model, "the sky", [])


def test_shared_masks_cancel_the_noise_of_a_difference() -> None:
    """Two models that differ little: over the same masks the error of the difference is far below that of either bound."""
    sequence = row([1, 2, 0, 3, 1, 2])

    def close(batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
        found = TOY(batch, predict=predict)
        return found.with_logits({Kind.TEXT: found.logits(Kind.TEXT) * 1.05})

    one, other = (bound(m, sequence, samples=400, seed=3) for m in (close, TOY))
    found = difference(close, TOY, sequence, samples=400, seed=3)
    assert found.value == pytest.approx(one.value - other.value, abs=1e-9) and found.error < other.error / 5


def test_estimates_have_gradients() -> None:
    sequence, scale = row([1, 2, 0, 3]), torch.ones((), requires_grad=True)

    def scaled(batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
        found = TOY(batch, predict=predict)
        return found.with_logits({Kind.TEXT: found.logits(Kind.TEXT) * scale})

    drawn = masks(sequence, samples=8)
    found = estimates(scaled, sequence, drawn)
    found.mean().backward()
    assert found.shape == (8,) and scale.grad is not None and bool(scale.grad != 0)
    assert int(drawn.masked[:, :GIVEN].sum()) == 0 and drawn.tokens == 2
