"""Numerical parity of step-causal checkpoints (Sparse-LaViDa, arXiv 2512.14008): recompute the arrays of sparse_lavida_tiny.

Public idea: ``SparseReference(arrays, mask_id=..).reproduce(net) -> Arrays``: a training row with its registers, a drawing with and without
guidance, an edit and a text, each by the parts that serve users. ``verify.py`` compares them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unmask.evaluation.verify_runs import Seen
from unmask.models.elastic import Elastic
from unmask.models.registers import with_registers
from unmask.models.streams import attend, stream
from unmask.sampling.blocks import Blocks
from unmask.sampling.guidance import ClassifierFree, EditGuidance
from unmask.sampling.sampler import Sampler, SamplingRun
from unmask.sampling.schedule import Equal, Shift
from unmask.sampling.selection import Confident
from unmask.sampling.step_causal import position_order, sparse_image, sparse_text
from unmask.sampling.token_sampler import Greedy
from unmask.sequence import ON_UNMASK, Batch, Branch, Kind, Sequence, Span, collate
from unmask.step import Prediction, Query, Reuse

Arrays = dict[str, Tensor]
SPARSE_INPUTS = frozenset(
    {f"train.{name}" for name in ("ids", "kind", "codes", "masked", "block", "clean_blocks", "groups")}
    | {f"t2i.{name}" for name in ("prompt_ids", "suffix_ids", "null_prefix", "steps", "shift", "guidance", "step")}
    | {f"edit.{name}" for name in ("prompt_ids", "kind", "suffix_ids", "source_codes", "null_prefix", "guidance")}
    | {"edit.image_guidance"}
    | {f"text.{name}" for name in ("prompt_ids", "answer", "block", "steps")}
)


@dataclass(frozen=True, kw_only=True)
class Record:
    """A finished run: its queries, the model's predictions, the merged ones, and the batch after each step."""

    queries: list[Query]
    predictions: list[Prediction]
    merged: list[Prediction]
    batches: list[Batch]


@dataclass(frozen=True, kw_only=True)
class SparseReference:
    """The arrays of expected.safetensors, and the sequences that they were measured on. ``side``: codes along one side."""

    arrays: Arrays
    mask_id: int
    side: int

    def comparable(self) -> Arrays:
        """The measured arrays without the registers of groups that have no token: nothing reads them, and we make none."""
        block, rows = self.arrays["train.block"], len(self.arrays["train.ids"])
        used = block[: len(self.arrays["train.masked"])][self.arrays["train.masked"]]
        real = torch.isin(block, used) | (torch.arange(len(block), device=block.device) < rows)
        out = dict(self.arrays)
        for name in ("position", "is_gen", "allowed", "allowed_split", "influence"):
            array = out[f"train.{name}"][real]
            out[f"train.{name}"] = array if array.dim() == 1 else array[:, real]
        return out

    @torch.no_grad()
    def reproduce(self, net: Elastic) -> Arrays:
        return {**self.training(net), **self.drawing(net), **self.guided(net), **self.edits(net), **self.texts(net)}

    def training(self, net: Elastic) -> Arrays:
        """One row in random blocks and groups: logits, losses, who reads whom, and what changes what."""
        batch = self._training_batch()
        whole, _, _ = with_registers(batch, batch.valid, None, net.config)
        prediction = net(batch, predict=batch.valid)
        found = {Kind.TEXT: "text", Kind.CODE: "code"}
        out: Arrays = {f"train.{name}_logits": prediction.logits(kind) for kind, name in found.items()}
        for kind, name in found.items():
            scored = prediction.scored[kind]
            of_masked = batch.masked.flatten()[scored.at]
            logits, ids = prediction.logits(kind)[of_masked], batch.ids.flatten()[scored.at][of_masked]
            out[f"train.loss_{name}"] = torch.nn.functional.cross_entropy(logits.float(), ids)
        leaders = whole.leader[0]
        is_gen = (whole.branch[0] == Branch.GEN)[leaders]
        allowed = _allowed(whole)
        out |= {"train.position": whole.position[0][leaders], "train.is_gen": is_gen, "train.allowed": allowed}
        out["train.allowed_split"] = allowed & (is_gen[:, None] == is_gen)
        return {**out, "train.influence": _influence(net, batch, whole)}

    def drawing(self, net: Elastic) -> Arrays:
        """A greedy drawing without guidance: its codes, and one step with and without the cache."""
        k = int(self.arrays["t2i.step"])
        record = self._run(net, self._sequence("t2i"), self._image_sampler())
        query, order = record.queries[k], self._positions()
        counts = [int(q.predict.sum()) // 4 for q in record.queries]
        first, done = sum(counts[: k - 1]), sum(counts[:k])
        new, todo = order[first:done], order[done : done + counts[k]]
        start = len(self.arrays["t2i.prompt_ids"])
        assert query.reuse is not None and query.reuse.state is not None
        held = query.reuse.state.held
        uncached = net(query.batch, predict=query.predict, reuse=_at_once(query.reuse))
        cached = [*range(start), *(start + len(order) + i for i in range(len(self.arrays["t2i.suffix_ids"])))]
        cached += [start + p for p in order[:first]]
        assert int((held & query.batch.leader).sum()) == len(cached)
        whole, _, _ = with_registers(query.batch, query.predict, None, net.config)
        registers = list(range(start + len(order) + 2, start + len(order) + 2 + net.config.code_registers))
        rows = [start + p for p in (*new, *todo)] + registers
        return {
            "t2i.counts": torch.tensor(counts),
            "t2i.order": torch.tensor(order),
            "t2i.codes": self._codes(record.batches[-1]),
            "t2i.first_logits": self._of_positions(record.predictions[0], order[: counts[0]]),
            "t2i.step_new": torch.tensor(new),
            "t2i.step_todo": torch.tensor(todo),
            "t2i.step_cached_position": torch.tensor(cached + [start + p for p in new]),
            "t2i.step_allowed": _allowed(whole)[rows][:, cached + rows],
            "t2i.step_logits": self._of_positions(record.predictions[k], todo),
            "t2i.step_logits_uncached": self._of_positions(uncached, todo),
        }

    def guided(self, net: Elastic) -> Arrays:
        """The drawing with two streams."""
        scale = float(self.arrays["t2i.guidance"])
        guidance = ClassifierFree(scale=scale, drop=frozenset({"prompt"}), null_id=self.mask_id)
        record = self._run(net, self._sequence("t2i"), replace(self._image_sampler(), guidance=guidance))
        return {
            "t2i.codes_guided": self._codes(record.batches[-1]),
            "t2i.guided_first_logits": self._step(record, 0),
            "t2i.guided_step_logits": self._step(record, int(self.arrays["t2i.step"])),
        }

    def edits(self, net: Elastic) -> Arrays:
        """An edit with three streams, and one without guidance."""
        scale, image_scale = (float(self.arrays[f"edit.{name}"]) for name in ("guidance", "image_guidance"))
        drop, keep = frozenset({"prompt", "source"}), frozenset({"source"})
        guidance = EditGuidance(scale=scale, image_scale=image_scale, drop=drop, keep=keep, null_id=self.mask_id)
        record = self._run(net, self._sequence("edit"), replace(self._image_sampler(), guidance=guidance))
        plain = self._run(net, self._sequence("edit"), self._image_sampler())
        query, scored = record.queries[0], record.predictions[0].scored[Kind.CODE]
        assert scored.logits is not None
        views = scored.logits.chunk(3)  # c, e, u
        todo = self._positions()[: int(query.predict[0].sum()) // 4]
        order = [sorted(todo).index(p) for p in todo]
        return {
            "edit.first_logits_streams": torch.stack(
                [_by_position(view, todo, self.side)[order] for view in reversed(views)]
            ),
            "edit.step_logits": self._step(record, int(self.arrays["t2i.step"])),
            "edit.codes": self._codes(record.batches[-1]),
            "edit.codes_unguided": self._codes(plain.batches[-1]),
        }

    def texts(self, net: Elastic) -> Arrays:
        """A text in blocks, the surest tokens first."""
        answer, block, steps = (int(self.arrays[f"text.{name}"]) for name in ("answer", "block", "steps"))
        base = Sampler(
            schedule=Equal(steps=steps),
            token_sampler=Greedy(),
            selection=Confident(),
            blocks=Blocks(length=block),
        )
        ids = self.arrays["text.prompt_ids"]
        parts: list[_Part] = [("prompt", Kind.TEXT, ids, False), ("answer", Kind.TEXT, ids.new_zeros(answer), True)]
        record = self._run(net, self._row(parts), sparse_text(base))
        last = record.batches[-1]
        return {
            "text.out": last.ids[0, -answer:],
            "text.order": last.order[0, -answer:] - 1,
            "text.first_logits": record.predictions[0].logits(Kind.TEXT),
            "text.second_logits": record.predictions[1].logits(Kind.TEXT),
        }

    def _image_sampler(self) -> Sampler:
        schedule = Shift(steps=int(self.arrays["t2i.steps"]), shift=float(self.arrays["t2i.shift"]))
        base = Sampler(schedule=schedule, token_sampler=Greedy(), selection=Confident())
        return sparse_image(base, grid=(self.side, self.side), fold=2)

    def _positions(self) -> list[int]:
        """Positions of the picture in the order in which they are unmasked."""
        order = position_order((self.side, self.side), 2)
        return [(code // self.side // 2) * (self.side // 2) + code % self.side // 2 for code in order[::4]]

    def _sequence(self, name: str) -> Sequence:
        """The request of a drawing or an edit: the prompt, of which guidance drops the first tokens, the picture and the suffix."""
        ids, dropped = self.arrays[f"{name}.prompt_ids"], int(self.arrays[f"{name}.null_prefix"])
        parts: list[_Part] = []
        if name == "edit":
            at = (self.arrays["edit.kind"] == 2).nonzero().flatten()
            first, last = int(at[0]), int(at[-1]) + 1
            parts += [("prompt", Kind.TEXT, ids[:first], False)]
            parts += [("source", Kind.CODE, self.arrays["edit.source_codes"], False)]
            parts += [("prompt", Kind.TEXT, ids[last:dropped], False)]
        else:
            parts += [("prompt", Kind.TEXT, ids[:dropped], False)]
        codes = ids.new_zeros(self.side**2)
        parts += [("assistant", Kind.TEXT, ids[dropped:], False), ("image", Kind.CODE, codes, True)]
        return self._row([*parts, ("end", Kind.TEXT, self.arrays[f"{name}.suffix_ids"], False)])

    def _row(self, parts: list[_Part]) -> Sequence:
        """Spans one behind the other; writable ones are masked."""
        spans: list[Span] = []
        for name, kind, ids, writable in parts:
            start = spans[-1].stop if spans else 0
            folded: dict[str, object] = {"grid": (self.side, self.side), "fold": 2} if kind == Kind.CODE else {}
            place = {"start": start, "stop": start + len(ids), "writable": writable}
            spans.append(Span(name=name, kind=kind, **place, **folded))  # type: ignore[arg-type]
        masked = torch.cat([torch.full((len(span),), span.writable) for span in spans])
        return Sequence(ids=torch.cat([ids for _, _, ids, _ in parts]), masked=masked, spans=tuple(spans))

    def _training_batch(self) -> Batch:
        ids, kind, block = (self.arrays[f"train.{name}"] for name in ("ids", "kind", "block"))
        at = kind.nonzero().flatten()
        first, last = int(at[0]), int(at[-1]) + 1
        parts: list[_Part] = [("text", Kind.TEXT, ids[:first], False)]
        parts += [
            ("image", Kind.CODE, self.arrays["train.codes"], True),
            ("text", Kind.TEXT, ids[last:], False),
        ]
        batch = collate([self._row(parts)], [0]).to(ids.device)
        rank = (batch.leader.long().cumsum(1) - 1)[0]
        half = self.side // 2
        code = torch.arange(self.side**2, device=ids.device)
        rank[first : first + len(code)] = first + code // self.side // 2 * half + code % self.side // 2
        masked, number = self.arrays["train.masked"][rank], block[rank]
        return batch.replace(
            masked=masked[None],
            order=number.masked_fill(masked, ON_UNMASK)[None],
            segment=number.masked_fill(~masked, 0)[None],
        )

    def _run(self, net: Elastic, sequence: Sequence, sampler: Sampler) -> Record:
        seen = Seen(token_sampler=sampler.token_sampler)
        batch = collate([sequence], [0]).to(self.arrays["train.ids"].device)
        run = SamplingRun(replace(sampler, token_sampler=seen), batch)
        queries, predictions, batches = [], [], []
        while (query := run.query) is not None:
            queries.append(query)
            predictions.append(net(query.batch, predict=query.predict, reuse=query.reuse))
            run.advance(predictions[-1])
            batches.append(run.batch)
        return Record(queries=queries, predictions=predictions, merged=seen.predictions, batches=batches)

    def _step(self, record: Record, number: int) -> Tensor:
        """The merged logits of a step's positions, in the order of unmasking."""
        counts = [int(query.predict[0].sum()) // 4 for query in record.queries]
        done = sum(counts[:number])
        return self._of_positions(record.merged[number], self._positions()[done : done + counts[number]])

    def _of_positions(self, prediction: Prediction, todo: list[int]) -> Tensor:
        """Logits of the positions ``todo``, [positions, 4, V]."""
        order = [sorted(todo).index(p) for p in todo]
        return _by_position(prediction.logits(Kind.CODE), todo, self.side)[order]

    def _codes(self, batch: Batch) -> Tensor:
        image = next(span for span in batch.span_table[0] if span.name == "image")
        return batch.ids[0, image.start : image.stop]


_Part = tuple[str, int, Tensor, bool]  # name, kind, ids, whether it is masked


def _by_position(logits_NV: Tensor, todo: list[int], side: int) -> Tensor:
    """Logits of codes in rising order of their numbers -> those of each position in ``todo``, sorted, [positions, 4, V]."""
    half = side // 2
    corner = [(2 * (p // half) + r) * side + 2 * (p % half) + c for p in sorted(todo) for r in (0, 1) for c in (0, 1)]
    rank = torch.tensor(corner).argsort().argsort()
    return logits_NV[rank.to(logits_NV.device)].unflatten(0, (len(todo), 4))


def _at_once(reuse: Reuse) -> Reuse:
    """The same tokens without what is held: all of them are computed."""
    assert reuse.state is not None
    return Reuse(compute=reuse.compute | reuse.state.held, keep=torch.zeros_like(reuse.keep))


def _allowed(whole: Batch) -> Tensor:
    """Which position reads which, [positions, positions], in the order of the row and its registers."""
    leaders = whole.leader & whole.valid
    everything = stream(leaders, None)
    assert everything is not None
    mask = attend(whole, [everything], True)
    assert mask is not None
    return mask[0, 0]


def _influence(net: Elastic, batch: Batch, whole: Batch) -> Tensor:
    """Whether a change of the embedding of position j changes the last hidden state of position i, [i, j]."""
    streams = [stream(whole.leader & whole.valid & (whole.branch == b), None) for b in (Branch.UND, Branch.GEN)]
    rank = whole.leader[0].long().cumsum(0) - 1
    und, gen = (rank[s.index[0]] for s in streams if s is not None)
    before = _hidden(net, batch, None)
    n = len(und) + len(gen)
    out = torch.zeros(n, n, dtype=torch.bool, device=batch.device)
    for branch, places in enumerate((und, gen)):
        for place, position in enumerate(places.tolist()):
            after = _hidden(net, batch, (branch, place))
            for own, a, b in zip((und, gen), after, before, strict=True):
                out[own, position] = (a != b).any(-1)
    return out


def _hidden(net: Elastic, batch: Batch, changed: tuple[int, int] | None) -> tuple[Tensor, ...]:
    """The streams behind the last layer, with one position of the first layer's input changed."""
    found: list[tuple[Tensor, ...]] = []

    def change(_: object, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if changed is None:
            return given
        x = given[changed[0]].detach().clone()
        x[changed[1]] += 1.0
        return tuple(x if i == changed[0] else other for i, other in enumerate(given))

    keep: Callable[..., None] = lambda _, given, out: found.append(out)  # noqa: E731
    hooks = [net.blocks[0].register_forward_pre_hook(change), net.blocks[-1].register_forward_hook(keep)]
    try:
        with torch.enable_grad():  # without gradients the last layer leaves out what no head reads, such as registers
            net(batch, predict=batch.valid)
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(stream.detach() for stream in found[0])
