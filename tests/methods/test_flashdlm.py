"""FlashDLM: the acceptance rules, the guided loop and the frozen keys and values, measured with the official code."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import unmask
from tests import tiny_dream, tiny_llada
from unmask.checkpoints.stream import CheckpointError
from unmask.cli.main import main
from unmask.evaluation.sampler_axes import variants
from unmask.methods.flashdlm import Accept, GuidedPrefix, accepted, guided
from unmask.pipeline.guides import open_guide
from unmask.sampling.blocks import Blocks
from unmask.sampling.cache import NoCache
from unmask.sampling.free_cache import FreeCache, ReleasedFreeCache
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Equal
from unmask.sampling.selection import Confident
from unmask.sampling.stopping import EndOfTurn, Never
from unmask.sampling.token_sampler import Greedy
from unmask.sequence import Batch, Kind, Sequence, Span, collate
from unmask.step import Prediction, Reuse, Scored, State

torch.set_num_threads(1)
Golden = Callable[[str], dict[str, Tensor]]
RULES = {
    "relative_k2_05": Accept(k=2, ratio=0.5),
    "relative_k3_01": Accept(k=3, ratio=0.1),
    "topk2": Accept(k=2, ratio=0.0),
    "exact": Accept(k=1, ratio=1.0),
}
RUNS = {
    "k2": (Accept(k=2, ratio=0.5), 32),
    "k8_loose": (Accept(k=8, ratio=0.3), 32),
    "topk5": (Accept(k=5, ratio=0.0), 32),
    "exact": (Accept(k=1, ratio=1.0), 32),
    "chunk3": (Accept(k=10, ratio=0.1), 3),
    "eos": (Accept(k=2, ratio=0.5), 32),
}
PLAIN = Sampler(schedule=Equal(steps=1), token_sampler=Greedy(), selection=Confident())


def request(prompt: Tensor, places: int) -> Batch:
    start = len(prompt)
    length = start + places
    spans = (
        Span(name="prompt", kind=Kind.TEXT, start=0, stop=start),
        Span(name="answer", kind=Kind.TEXT, start=start, stop=length, writable=True),
    )
    ids = torch.cat([prompt, prompt.new_zeros(places)])
    return collate([Sequence(ids=ids, masked=torch.arange(length) >= start, spans=spans)], [0])


def shown(batch: Batch, mask: int) -> Tensor:
    return batch.ids.masked_fill(batch.masked, mask)


def text(predict: Tensor, logits_BLV: Tensor, state: State | None = None) -> Prediction:
    at = predict.flatten().nonzero()[:, 0]
    return Prediction(scored={Kind.TEXT: Scored(at=at, logits=logits_BLV.flatten(0, 1)[at])}, state=state)


def without_mask(logits: Tensor, mask: int) -> Tensor:
    return logits.index_fill(-1, torch.tensor([mask]), -torch.inf)


@dataclass(frozen=True)
class Draft:
    """The table model: place i predicts token i + 1 from itself and the mean of all visible places."""

    arrays: dict[str, Tensor]
    mask: int

    def __call__(self, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
        x, a = shown(batch, self.mask), self.arrays
        seen = (~batch.masked)[..., None].double()
        mean = (a["draft_U"][x] * seen).sum(1, keepdim=True) / seen.sum(1, keepdim=True)
        logits = without_mask(a["draft_W"][x] + mean + a["draft_P"][: x.shape[1]], self.mask)
        assert predict is not None
        return text(predict, torch.cat([logits[:, :1], logits[:, :-1]], 1))


@dataclass(frozen=True)
class Guide:
    """The table guide: a token from the one before it. ``calls``: how often it was asked."""

    bigram: Tensor
    mask: int
    calls: list[int] = field(default_factory=list)

    def __call__(self, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
        assert predict is not None and reuse is not None and not bool((predict & ~reuse.compute).any())
        assert not bool((batch.masked & reuse.compute).any()), "the guide reads drafts, not masks"
        self.calls.append(int(predict.sum()))
        logits = without_mask(self.bigram[batch.ids], self.mask)
        return text(predict, torch.cat([logits[:, :1], logits[:, :-1]], 1))


@pytest.mark.parametrize("name", RULES)
def test_acceptance_rules(golden: Golden, name: str) -> None:
    a = golden("flashdlm")
    probs, drafts = a["verify_probs"], a["verify_drafts"]
    found = accepted(RULES[name], probs.log(), drafts)
    assert found.tolist() == a[f"verify_{name}_accepted"].tolist()
    chosen = torch.full_like(drafts, -1)
    for row, n in enumerate(found.tolist()):
        best = [] if n == drafts.shape[1] else [int(probs[row, n].argmax())]
        kept = [*drafts[row, :n].tolist(), *best]
        chosen[row, : len(kept)] = torch.tensor(kept)
    assert chosen.equal(a[f"verify_{name}_chosen"])


@pytest.mark.parametrize("name", RUNS)
def test_guided_runs(golden: Golden, name: str) -> None:
    a = golden("flashdlm")
    mask = a["draft_W"].shape[1] - 1
    rule, chunk = RUNS[name]
    guide = Guide(a["guide_bigram"], mask)
    end = int(a[f"guided_{name}_eos"])
    base = replace(PLAIN, stopping=EndOfTurn(ids=(end,)))
    sampler = guided(base, guide, k=rule.k, ratio=rule.ratio, chunk=chunk)
    wanted = a[f"guided_{name}_tokens"]
    batch = request(a["prompt"], wanted.shape[1] - len(a["prompt"]))
    seen = [shown(batch, mask)[0]]
    done = sampler.sample(Draft(a, mask), batch, on_step=lambda step: seen.append(shown(step.batch, mask)[0]))
    assert torch.stack(seen).equal(wanted)
    assert done.ids[0].equal(a[f"guided_{name}_final"])
    assert len(guide.calls) == int(a[f"guided_{name}_guide_calls"])
    new = [int((before != after).sum()) for before, after in zip(seen, seen[1:], strict=False)]
    if name != "eos":  # there the last step also fills what is behind the end
        assert new == a[f"guided_{name}_new_per_step"].tolist()


@dataclass(frozen=True)
class Attentive:
    """The table model with one attention layer that lends keys and values; ``written``: the token of each place's keys and values."""

    arrays: dict[str, Tensor]
    mask: int
    steps: list[list[int]] = field(default_factory=list)

    def __call__(self, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
        a, x = self.arrays, shown(batch, self.mask)
        h = a["cache_embed"][x] + a["cache_pos"][: x.shape[1]]
        k, v, token = h @ a["cache_Wk"], h @ a["cache_Wv"], x
        assert predict is not None
        if reuse is not None and reuse.state is not None:
            assert not bool((predict & ~reuse.compute).any())
            lent = reuse.state.held & ~reuse.compute
            k, v = (torch.where(lent[..., None], reuse.state.tensors[n], t) for n, t in (("k", k), ("v", v)))
            token = torch.where(lent, reuse.state.tensors["token"][..., 0], x)
        score = (h @ a["cache_Wq"]) @ k.transpose(1, 2) / math.sqrt(k.shape[-1])
        out = without_mask((h + score.softmax(-1) @ v) @ a["cache_out"], self.mask)
        self.steps.append(token[0].tolist())
        state = None
        if reuse is not None:
            held = reuse.keep if reuse.state is None else (reuse.state.held & ~reuse.compute) | reuse.keep
            state = State(held=held, tensors={"k": k, "v": v, "token": token[..., None]})
        return text(predict, out, state)


def blockwise(steps: int, places: int, blocks: int) -> Sampler:
    return replace(PLAIN, schedule=Equal(steps=steps // blocks), blocks=Blocks(length=places // blocks))


def runs(a: dict[str, Tensor]) -> list[int]:
    return [int(name.split("_")[1]) for name in a if name.startswith("freecache_") and name.endswith("_final")]


def test_frozen_keys_and_values_of_the_released_code(golden: Golden) -> None:
    a = golden("flashdlm")
    mask, places = a["cache_embed"].shape[0] - 1, len(a["freecache_12_final"]) - len(a["prompt"])
    assert (
        Equal(steps=a["transfer_counts"].shape[1]).counts(int(a["transfer_counts"].sum()))
        == a["transfer_counts"][0].tolist()
    )
    assert len(runs(a)) == 2
    for steps in runs(a):
        blocks = places // int(a["transfer_counts"].sum())
        plain, batch = blockwise(steps, places, blocks), request(a["prompt"], places)
        net = Attentive(a, mask)
        done = plain.sample(net, batch)
        assert done.ids[0].equal(a[f"nocache_{steps}_final"])
        net = Attentive(a, mask)
        done = replace(plain, cache=ReleasedFreeCache()).sample(net, batch)
        assert done.ids[0].equal(a[f"freecache_{steps}_final"])
        assert net.steps == a[f"freecache_{steps}_kv_token_per_step"].tolist()


def test_refreshed_blocks_keep_no_mask(golden: Golden) -> None:
    """With refresh, what is frozen was computed with its own token; without, the last tokens of a block keep the mask's."""
    a = golden("flashdlm")
    mask, places = a["cache_embed"].shape[0] - 1, len(a["freecache_12_final"]) - len(a["prompt"])
    batch, stale = request(a["prompt"], places), {}
    for refresh in (True, False):
        net = Attentive(a, mask)
        sampler = replace(blockwise(places, places, 3), cache=FreeCache() if refresh else ReleasedFreeCache())
        done = sampler.sample(net, batch)
        last = torch.tensor(net.steps[-1])[: -places // 3]  # all but the last block
        stale[refresh] = int((last != done.ids[0, : -places // 3]).sum())
        assert len(net.steps) == places
    assert stale == {True: 0, False: 2}


def test_nothing_frozen_is_computed_again() -> None:
    g = torch.Generator().manual_seed(0)
    width, vocabulary, prompt, places = 8, 12, 6, 8
    a = {f"cache_W{n}": torch.randn(width, width, generator=g).double() for n in "qkv"}
    a |= {"cache_embed": torch.randn(vocabulary, width, generator=g).double()}
    a |= {"cache_pos": torch.randn(prompt + places, width, generator=g).double()}
    a |= {"cache_out": torch.randn(width, vocabulary, generator=g).double()}
    computed: list[int] = []
    net = Attentive(a, vocabulary - 1)

    def counted(batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
        assert reuse is not None
        computed.append(int(reuse.compute.sum()))
        return net(batch, predict=predict, reuse=reuse)

    batch = request(torch.arange(prompt), places)
    replace(blockwise(8, places, 2), cache=FreeCache()).sample(counted, batch)
    assert computed == [prompt + places, 8, 8, 8, 8, 4, 4, 4]


def test_a_guide_that_accepts_all_drafts_takes_one_step_and_one_that_refuses_all_takes_one_token(
    golden: Golden,
) -> None:
    a = golden("flashdlm")
    mask, places = a["draft_W"].shape[1] - 1, 9
    batch, steps = request(a["prompt"], places), []
    for rule in (Accept(k=mask + 1, ratio=0.0), Accept(k=1, ratio=1.0)):
        never = Guide(torch.zeros_like(a["guide_bigram"]).index_fill(1, torch.tensor([3]), 9.0), mask)
        guide = Guide(a["guide_bigram"], mask) if rule.k > 1 else never
        sampler = replace(PLAIN, selection=GuidedPrefix(guide=guide, rule=rule), stopping=Never())
        run, net = sampler.start(batch), Draft(a, mask)
        while (query := run.query) is not None:
            run.advance(net(query.batch, predict=query.predict))
        assert not bool(run.batch.masked.any())
        steps.append(run.step.number)
    assert steps[0] == 1 and steps[1] > places // 2


def test_rows_of_a_batch_are_guided_apart(golden: Golden) -> None:
    a = golden("flashdlm")
    mask = a["draft_W"].shape[1] - 1
    one, other = request(a["prompt"], 8), request(a["prompt"].flip(0), 8)
    sampler = guided(replace(PLAIN, cache=NoCache()), Guide(a["guide_bigram"], mask), k=8, ratio=0.3, chunk=3)
    apart = [sampler.sample(Draft(a, mask), batch).ids for batch in (one, other)]
    ids = torch.cat([one.ids, other.ids])
    rows = [Sequence(ids=row, masked=one.masked[0], spans=one.span_table[0]) for row in ids]
    assert sampler.sample(Draft(a, mask), collate(rows, [0, 0])).ids.equal(torch.cat(apart))


@pytest.mark.parametrize("wrong", [{"k": 0}, {"ratio": 1.5}, {"ratio": -0.1}])
def test_wrong_rules_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="k counts|ratio must be"):
        Accept(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="chunk counts drafts"):
        GuidedPrefix(guide=Guide(torch.zeros(1, 1), 0), chunk=0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model in Dream's layout, and a causal one in that of Qwen2.5 with the same tokens."""
    place = tmp_path_factory.mktemp("guided")
    model, guide = tiny_dream.make(place / "dream"), tiny_dream.make(place / "qwen", seed=1)
    raw = json.loads((guide / "config.json").read_text())
    (guide / "config.json").write_text(json.dumps(raw | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}))
    return model, guide


def test_the_command_line(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    model, guide = folders
    asked = ["ask", "why is the sky blue?", "--model", str(model), "--max-tokens", "8", "--quiet"]
    said = []
    for more in (["--guide-model", str(guide)], ["--sampler", "guided"]):
        assert main([*asked, *more, "-o", "k=400", "-o", "ratio=0"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1], "a rule that accepts everything does not depend on the guide"
    assert main([*asked, "--guide-model", str(guide), "-o", "k=1", "-o", "token_sampler.temperature=0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] is not None


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--sampler", "remdm"], "leave out --sampler"),
        (["-o", "kk=1"], "has no argument 'kk'"),
    ],
)
def test_wrong_options_are_refused(
    folders: tuple[Path, Path], more: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, guide = folders
    assert main(["ask", "why?", "--model", str(model), "--guide-model", str(guide), *more]) == 2
    assert told in capsys.readouterr().err


def test_wrong_guides_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    model, guide = folders
    other = tiny_llada.make(tmp_path / "llada")
    text = unmask.load(model).parts.text
    with pytest.raises(CheckpointError, match="model_type 'llada' cannot guide"):
        open_guide(str(other), text, "cpu")
    with pytest.raises(ValueError, match="another tokenizer"):
        open_guide(str(guide), unmask.load(other).parts.text, "cpu")


def test_a_model_of_pictures_takes_no_guide(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a dog", "--guide-model", str(folders[1]), "--steps", "1"]) == 2
    assert "mini is not a text model" in capsys.readouterr().err


def test_the_cache_by_name(folders: tuple[Path, Path]) -> None:
    net = unmask.load(folders[0]).parts.net
    for name, cache in (("free", FreeCache()), ("free:refresh=0", ReleasedFreeCache())):
        _, found = variants(("own",), ("own",), (name,), ("none",), net)
        assert found(PLAIN, Span(name="answer", kind=Kind.TEXT, start=0, stop=8)).cache == cache
    with pytest.raises(ValueError, match="refresh is 0 or 1"):
        variants(("own",), ("own",), ("free:refresh=3",), ("none",), net)
