"""GILL against its measured arrays: labels, mapper, losses of three passes, the added rows, decoding and ranking."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from unmask.methods.gill import AddedRows, Bridge, Decision, Pictured, ThreePasses, Writer, cut, joining
from unmask.models.bridges import QueryMapper
from unmask.objectives.contrastive import both_ways
from unmask.rng import generator

Golden = Callable[[str], dict[str, Tensor]]
torch.set_num_threads(1)
NAMES = {"captioning": "captioning", "retrieval": "retrieval", "generation": "drawing"}


@pytest.fixture(scope="module")
def arrays(golden: Golden) -> dict[str, Tensor]:
    return golden("gill")


@dataclass(frozen=True)
class Means:
    """The stand-in language model: the state is tanh of the mean of all inputs so far."""

    head: Tensor

    def states(self, inputs: Tensor) -> Tensor:
        return torch.tanh(inputs.cumsum(1) / torch.arange(1, inputs.shape[1] + 1)[:, None])

    def logits(self, states: Tensor) -> Tensor:
        return states @ self.head


def img(arrays: dict[str, Tensor]) -> tuple[int, ...]:
    return tuple(arrays["img_ids"].tolist())


def bridge(arrays: dict[str, Tensor]) -> Bridge:
    state = {name.removeprefix("mapper."): v for name, v in arrays.items() if name.startswith("mapper.")}
    layers = {name.split(".")[3] for name in state if name.startswith("tfm.encoder.layers.")}
    inner, width = state["fc.weight"].shape
    mapper = QueryMapper(
        width,
        len(state["model.weight"]),
        queries=state["query_embs"].shape[1],
        inner=inner,
        layers=len(layers),
        hidden=len(state["tfm.encoder.layers.0.linear1.weight"]),
    )
    mapper.load_state_dict(state)
    visual = len(arrays["visual_embeddings.weight"]) // width
    made = Bridge(
        AddedRows(arrays["embedding"], img(arrays)),
        mapper,
        features=arrays["image_features"].shape[1],
        shared=len(arrays["visual_fc.weight"]),
        visual=visual,
    )
    for name, array in (("visual_embeddings", "visual_embeddings"), ("visual_fc", "visual_fc"), ("ret", "ret.model")):
        layer = made.get_submodule(name)
        layer.load_state_dict({part: arrays[f"{array}.{part}"] for part in ("weight", "bias")})
    return made.eval()


def batch(arrays: dict[str, Tensor]) -> Pictured:
    return Pictured(
        ids=arrays["ids"],
        length=arrays["caption_len"],
        features=arrays["image_features"],
        target=arrays["target_condition"],
    )


def passes(arrays: dict[str, Tensor], joined: bool, *, second: bool = False) -> ThreePasses:
    return ThreePasses(
        language=Means(arrays["lm_head"]),
        img=img(arrays),
        pad=int(arrays["pad_bos"][0]),
        joined=joined,
        second_labelled=second,
    )


@pytest.mark.parametrize(("prefix", "joined"), [("plain", False), ("concat", True)])
def test_labels_and_losses_of_the_three_passes(prefix: str, joined: bool, arrays: dict[str, Tensor]) -> None:
    model, objective = bridge(arrays), passes(arrays, joined)
    loss = objective(model, batch(arrays), generator(0))
    assert torch.allclose(loss.total, arrays[f"{prefix}.total"], rtol=1e-5)
    for name in NAMES:
        rows = objective.rows(model, batch(arrays), joined, pictured=name == "captioning")
        assert torch.equal(rows.labels, arrays[f"{prefix}.{name}.labels"]), name
        scale = 1.0 if name == "captioning" else 0.5
        term = {"captioning": "captioning", "retrieval": "retrieval words", "generation": "drawing words"}[name]
        assert torch.allclose(loss.terms[term], scale * arrays[f"{prefix}.{name}.ce"], rtol=1e-5), name
    assert torch.allclose(loss.terms["contrastive"], arrays[f"{prefix}.retrieval.contrastive"], rtol=1e-5)
    assert torch.allclose(loss.terms["conditions"], arrays[f"{prefix}.generation.l2"], rtol=1e-5)


@pytest.mark.parametrize(("prefix", "joined"), [("plain", False), ("concat", True)])
def test_what_is_read_at_the_added_tokens(prefix: str, joined: bool, arrays: dict[str, Tensor]) -> None:
    model, objective = bridge(arrays), passes(arrays, joined)
    rows = objective.rows(model, batch(arrays), joined, pictured=False)
    states = objective.language.states(rows.inputs)[rows.row, rows.place]
    mapped, wanted = model.mapped(states), model.ret(states[:, 0])
    assert torch.allclose(mapped, arrays[f"{prefix}.generation.mapped"], atol=2e-5)
    each = (arrays["target_condition"] - mapped).norm(dim=-1)
    assert torch.allclose(each, arrays[f"{prefix}.generation.l2_per_token"], atol=2e-5)
    measured = arrays[f"{prefix}.retrieval.mapped"]
    unit = [torch.nn.functional.normalize(v, dim=-1) for v in (model.visual_fc(arrays["image_features"]), wanted)]
    assert torch.allclose(unit[1], measured, atol=2e-5)
    logits = model.logit_scale.exp() * unit[0] @ unit[1].T
    assert torch.allclose(logits, arrays[f"{prefix}.retrieval.logits_per_image"], atol=1e-4)
    assert torch.allclose(both_ways(logits), arrays[f"{prefix}.retrieval.contrastive"], rtol=1e-5)


def test_the_second_caption_is_labelled_as_is_meant(arrays: dict[str, Tensor]) -> None:
    model = bridge(arrays)
    as_meant, as_released = (
        passes(arrays, True, second=second).rows(model, batch(arrays), True, pictured=False) for second in (True, False)
    )
    words = cut(arrays["ids"], (int(arrays["pad_bos"][0]), *img(arrays)[1:]))
    assert (
        int((as_meant.labels >= 0).sum()) == int((words >= 0).sum()) - len(words) // 2
    )  # without the second's first word
    assert int((as_meant.labels >= 0).sum()) > int((as_released.labels >= 0).sum())
    assert torch.equal(as_meant.inputs, as_released.inputs)


def test_joined_captions_stand_behind_each_other() -> None:
    order = joining(torch.tensor([3, 2]), 4, 0)
    assert order.tolist() == [[0, 1, 2, 5, 3, 6, 7]]
    assert joining(torch.tensor([2, 3]), 4, 1).tolist() == [[0, 1, 4, 6, 2, 3, 7]]


def test_added_rows_get_the_mean_length_and_the_table_never_changes(arrays: dict[str, Tensor]) -> None:
    model = bridge(arrays)
    assert torch.allclose(model.embedding.others_norm, arrays["frozen_norm"])
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.01)
    before = model.embedding.table.clone()
    passes(arrays, False)(model, batch(arrays), generator(0)).total.backward()
    optimiser.step()
    moved = model.embedding.whole
    changed = (moved != arrays["embedding"]).any(1).nonzero()[:, 0].tolist()
    assert changed == sorted(img(arrays)) and torch.equal(model.embedding.table, before)
    model = bridge(arrays)
    model.embedding.renormalise()
    assert torch.allclose(model.embedding.whole, arrays["renormed_embedding"], atol=1e-6)


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_decoding(name: str, arrays: dict[str, Tensor]) -> None:
    least, *scales = arrays[f"generate.{name}.min_ret_gen"].tolist()
    writer = Writer(
        language=Means(arrays["lm_head"]), img=img(arrays), least=int(least), scales=tuple(round(s, 4) for s in scales)
    )
    seen: list[Tensor] = []
    measured = arrays[f"generate.{name}.logits"]
    ids = writer(bridge(arrays).embedding, arrays[f"generate.{name}.prefix"], len(measured), seen.append)
    assert ids == arrays[f"generate.{name}.ids"][0].tolist()
    found = torch.stack(seen)
    allowed = found.isfinite()
    assert torch.allclose(found[allowed], measured[allowed], atol=1e-4)


def test_ranking(arrays: dict[str, Tensor]) -> None:
    model = bridge(arrays)
    scores = model.rank(arrays["rank.states"], arrays["rank.features"])[0]
    best = arrays["rank.top3"]
    assert torch.allclose(scores, arrays["rank.scores"], atol=1e-4)
    assert torch.equal(scores.topk(len(best))[1], best)
    again = model.rank(arrays["rank.states"], arrays["rank.features"], seen=[int(best[0])])[0]
    assert int(again.argmax()) == int(best[1])


def test_a_decision_reads_the_first_state() -> None:
    states, decision = torch.randn(2, 3, 8, generator=generator("d")), Decision(8).eval()
    other = torch.cat([states[:, :1], torch.zeros(2, 2, 8)], 1)
    assert decision(states).shape == (2, 2) and torch.equal(decision(states), decision(other))


def test_an_odd_number_of_captions_cannot_be_joined(arrays: dict[str, Tensor]) -> None:
    one = batch(arrays)
    odd = Pictured(ids=one.ids[:3], length=one.length[:3], features=one.features[:3], target=one.target[:3])
    with pytest.raises(ValueError, match="joined in pairs, got 3"):
        passes(arrays, True)(bridge(arrays), odd, generator(0))
