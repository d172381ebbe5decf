"""ProMoE against its measured arrays: routing, outputs, losses and their gradients; and experts in the layers of a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from unmask.methods.promoe import balanced, every_second, promoe
from unmask.models.elastic import Elastic, init
from unmask.models.prototype_experts import (
    ExpertChoice,
    PrototypeConfig,
    RoutedExperts,
    Through,
    TokenChoice,
    balance_in_rows,
    balance_over_all,
    by_cosine,
    by_sigmoid,
    by_softmax,
    cosines,
)
from unmask.models.sizes import text_config
from unmask.rng import generator
from unmask.sequence import Batch, Kind, Sequence, Span, collate

Golden = Callable[[str], dict[str, Tensor]]
torch.set_num_threads(1)
ARMS: dict[str, tuple[Any, Any]] = {
    "tc1": (TokenChoice(k=1), by_cosine),
    "tc2": (TokenChoice(k=2), by_cosine),
    "tc1_softmax": (TokenChoice(k=1), by_softmax),
    "tc1_sigmoid": (TokenChoice(k=1), by_sigmoid),
    "ec1": (ExpertChoice(k=1), by_cosine),
    "ec2": (ExpertChoice(k=2), by_cosine),
}
DROPPED, WEIGHT_OF_BALANCE = (
    1000,
    0.01,
)  # the label of a dropped condition, and the coefficient of the balance, in the released code


@pytest.fixture(scope="module")
def arrays(golden: Golden) -> dict[str, Tensor]:
    return golden("promoe")


def experts(arrays: dict[str, Tensor], choice: Any, gate: Any) -> RoutedExperts:
    """The module of the arrays' parameters."""
    routed, width = arrays["param.cluster_centers"].shape
    inner = len(arrays["param.shared_expert.up_proj.bias"])
    made = RoutedExperts(PrototypeConfig(width=width, inner=inner, routed=routed, choice=choice, gate=gate))
    made.load_state_dict({k.removeprefix("param."): v for k, v in arrays.items() if k.startswith("param.")})
    return made


def test_every_array_is_checked_here(arrays: dict[str, Tensor]) -> None:
    ends = {"tc": ("expert", "gate"), "ec": ("chosen", "gate")}
    known = {f"{arm}_{end}" for arm in ARMS for end in (*ends[arm[:2]], "out", "loss", "grad_centers", "grad_x")}
    known |= {"x", "labels", "aux_y", "aux_grad", "balance_seq", "balance_batch", "alluncond_loss", "alluncond_out"}
    known |= {"oneexpert_x", "oneexpert_expert", "oneexpert_loss"}
    assert {k for k in arrays if not k.startswith("param.")} == known
    parameters = {k.removeprefix("param.") for k in arrays if k.startswith("param.")}
    assert parameters == set(experts(arrays, *ARMS["tc1"]).state_dict())


@pytest.mark.parametrize("arm", ARMS)
def test_outputs_losses_and_gradients(arrays: dict[str, Tensor], arm: str) -> None:
    made, x = experts(arrays, *ARMS[arm]), arrays["x"].clone().requires_grad_()
    dropped = arrays["labels"] == DROPPED
    assert torch.allclose(made(x, dropped), arrays[f"{arm}_out"], atol=1e-5)
    loss = made.losses(x, dropped)
    assert torch.allclose(loss, arrays[f"{arm}_loss"], atol=1e-5)
    loss.backward()
    assert torch.allclose(made.cluster_centers.grad, arrays[f"{arm}_grad_centers"], atol=2e-5)
    assert x.grad is not None and torch.allclose(x.grad, arrays[f"{arm}_grad_x"], atol=2e-5)


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm.startswith("tc")])
def test_each_token_takes_the_measured_experts(arrays: dict[str, Tensor], arm: str) -> None:
    choice, gate = ARMS[arm]
    made, dropped = experts(arrays, choice, gate), arrays["labels"] == DROPPED
    weight, expert = choice.top(made.weights(arrays["x"]))
    first = torch.arange(choice.k) == 0
    weight = torch.where(dropped[:, None, None], first.float(), weight)
    expert = torch.where(dropped[:, None, None], made.config.routed, expert)
    assert torch.equal(expert, arrays[f"{arm}_expert"])
    assert torch.allclose(weight, arrays[f"{arm}_gate"], atol=1e-6)


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm.startswith("ec")])
def test_each_expert_takes_the_measured_tokens(arrays: dict[str, Tensor], arm: str) -> None:
    made = experts(arrays, *ARMS[arm])
    weight = made.weights(arrays["x"][arrays["labels"] != DROPPED])
    chosen = made.config.choice(weight)
    assert torch.equal(chosen.transpose(1, 2).float(), arrays[f"{arm}_chosen"])
    assert torch.allclose((weight * chosen).transpose(1, 2), arrays[f"{arm}_gate"], atol=1e-6)


def test_balance(arrays: dict[str, Tensor]) -> None:
    made = experts(arrays, *ARMS["tc2"])
    score = cosines(arrays["x"][arrays["labels"] != DROPPED], made.cluster_centers).softmax(-1)
    chosen = made.config.choice(score)
    assert torch.allclose(WEIGHT_OF_BALANCE * balance_in_rows(score, chosen), arrays["balance_seq"], rtol=1e-4)
    assert torch.allclose(WEIGHT_OF_BALANCE * balance_over_all(score, chosen), arrays["balance_batch"], rtol=1e-4)


def test_without_conditions_or_with_one_expert_there_is_no_loss(arrays: dict[str, Tensor]) -> None:
    made, none = experts(arrays, *ARMS["tc1"]), torch.ones(len(arrays["x"]), dtype=torch.bool)
    x = arrays["x"].clone().requires_grad_()
    assert torch.allclose(made(x, none), arrays["alluncond_out"], atol=1e-5)
    assert torch.equal(made.losses(x, none), arrays["alluncond_loss"]) and not made.losses(x, none).requires_grad
    choice = made.config.choice
    assert isinstance(choice, TokenChoice)
    _, expert = choice.top(made.weights(arrays["oneexpert_x"]))
    dropped = arrays["labels"] == DROPPED
    expert = torch.where(dropped[:, None, None], made.config.routed, expert)
    assert torch.equal(expert, arrays["oneexpert_expert"])
    assert torch.equal(made.losses(arrays["oneexpert_x"], dropped), arrays["oneexpert_loss"])
    each = experts(arrays, *ARMS["ec1"])
    assert float(each.losses(x, none)) == 0 and torch.allclose(each(x, none), arrays["alluncond_out"], atol=1e-5)


def test_the_loss_gets_a_gradient_of_one(arrays: dict[str, Tensor]) -> None:
    y, loss = arrays["aux_y"].clone().requires_grad_(), torch.tensor(3.0, requires_grad=True)
    found: Any = Through.apply(y, loss)
    assert torch.equal(found, y)
    found.square().sum().backward()
    assert y.grad is not None and torch.allclose(y.grad, arrays["aux_grad"], atol=1e-5)
    assert loss.grad is not None and float(loss.grad) == 1.0


def test_the_output_carries_the_loss(arrays: dict[str, Tensor]) -> None:
    made, dropped = experts(arrays, *ARMS["tc1"]), arrays["labels"] == DROPPED
    (made(arrays["x"], dropped) * 0).sum().backward()
    assert torch.allclose(made.cluster_centers.grad, arrays["tc1_grad_centers"], atol=2e-5)


# -- in a network ------------------------------------------------------------------------------------------------------

NULL = 15


def net(seed: int = 0) -> Elastic:
    made = Elastic(text_config(vocab_size=16, width=32, heads=2, layers=4, mlp=64, rope_theta=100.0), mask_id=NULL)
    init(made, generator("promoe", seed))
    return made


def batch_of(*prompts: list[int]) -> Batch:
    spans = (
        Span(name="prompt", kind=Kind.TEXT, start=0, stop=2),
        Span(name="answer", kind=Kind.TEXT, start=2, stop=6, writable=True),
    )
    masked = torch.tensor([False, False, True, False, True, True])
    return collate(
        [Sequence(ids=torch.tensor([*p, 3, 4, 5, 6]), masked=masked, spans=spans) for p in prompts], range(len(prompts))
    )


def test_rows_without_a_condition_reach_one_expert_alone() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = promoe(net(), routed=3)
    both = batch_of([1, 2], [NULL, NULL])
    assert made.without_condition(both).tolist() == [False, True]
    logits = made(both).logits(Kind.TEXT)
    logits.sum().backward()
    slots = list(made.slots)
    assert len(slots) == len(list(every_second(4))) == 2
    reached = [[e.up_proj.bias.grad is not None for e in slot.experts.experts] for slot in slots]
    assert all(row[-1] for row in reached)
    alone = promoe(net(), routed=3)
    alone.load_state_dict(made.state_dict())
    alone(batch_of([NULL, NULL])).logits(Kind.TEXT).sum().backward()
    for slot in alone.slots:
        *routed, last = slot.experts.experts
        assert last.up_proj.bias.grad is not None and all(e.up_proj.bias.grad is None for e in routed)


def test_a_row_depends_on_itself_alone() -> None:
    made = promoe(net(), routed=3).eval()
    with torch.no_grad():
        both = made(batch_of([1, 2], [NULL, NULL])).logits(Kind.TEXT)
        one = made(batch_of([NULL, NULL])).logits(Kind.TEXT)
    assert torch.allclose(both[3:], one, atol=1e-5)


def test_the_usual_router_is_balanced() -> None:
    made = balanced(8, inner=4, routed=3)
    x = torch.randn(2, 5, 8, generator=generator("balance"))
    loss = made.losses(x, torch.zeros(2, dtype=torch.bool))
    assert 0.005 < loss.item() < 0.03 and made.config.contrast == 0
    made(x, torch.ones(2, dtype=torch.bool)).sum().backward()
