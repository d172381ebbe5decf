"""How a sample came about: what was unmasked when, how sure the model was, and what it wrote again.

Public idea: ``trace(model, lambda m: m.generate("two apples")) -> Trace``, on any model that opens and any of its methods. ``to_json()``
has every number, ``page(trace)`` (``trace_page.py``) shows them to people.

Nothing is computed twice: a token sampler that looks at each prediction before it is drawn from (``Watched``) and the steps of the run are
all there is, so the sample is the one that the same call gives without a trace. Entropies are those of the prediction that the step drew
from, guidance and constraints of the sampler included, in nats.

Shapes: S steps · L tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from unmask.json_types import Json
from unmask.sampling.sampler import Sampler
from unmask.sampling.spans import wished
from unmask.sequence import Kind, writable_tokens
from unmask.sequence import Sequence as Tokens
from unmask.tasks.parts import Parts
from unmask.tasks.running import Decoded, OnStep, StepEvent, decide

if TYPE_CHECKING:
    from unmask.pipeline.model import Model
    from unmask.pipeline.text_model import TextModel
    from unmask.protocols import TokenSampler
    from unmask.sequence import Batch
    from unmask.step import Prediction, Progress, Proposal

_KINDS = {Kind.TEXT: "text", Kind.CODE: "picture"}


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A token sampler that notes the entropy of each prediction, and how probable the token is that is drawn of it."""

    inner: TokenSampler
    seen: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, batch: Batch, prediction: Prediction, progress: Progress) -> Proposal:
        proposal = self.inner(batch, prediction, progress)
        entropy, chosen = (torch.full((batch.ids.numel(),), torch.nan) for _ in range(2))
        for scored in prediction.scored.values():
            logits = scored.logits
            if logits is None and scored.head is not None and scored.hidden is not None:
                logits = scored.head(scored.hidden)
            if len(scored.at) and logits is not None:
                log_p, at = logits.float().log_softmax(-1), scored.at.cpu()
                entropy[at] = torch.special.entr(log_p.exp()).sum(-1).cpu()
                drawn = proposal.ids.flatten()[scored.at].clamp(max=log_p.shape[1] - 1)
                chosen[at] = log_p.gather(1, drawn[:, None])[:, 0].exp().cpu()
        self.seen.update(entropy=entropy.view(batch.ids.shape), chosen=chosen.view(batch.ids.shape))
        return proposal

    def predict(self, batch: Batch, block: Tensor, counts: Tensor) -> Tensor | None:
        return wished(self.inner, batch, block, counts)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of the sampler: a plan, a picture, an answer. All of the writable tokens, in their order.

    ``ids``, ``masked`` [S + 1, L] · ``entropy`` [S, L]: of the predictions before each step, nan where none was asked for ·
    ``probability`` [S, L]: of the token that was drawn · ``shown``: the canvas or the text after every step · ``names``: of the tokens ·
    ``grid``: rows and columns of a picture.
    """

    kind: str
    ids: Tensor
    masked: Tensor
    entropy: Tensor
    probability: Tensor
    shown: tuple[Image.Image | str, ...]
    names: tuple[str, ...]
    grid: tuple[int, int] | None

    @property
    def steps(self) -> int:
        return len(self.entropy)

    @property
    def order(self) -> Tensor:
        """[L] the step, from 1, after which each token was never masked again; 0 for one that was given or never unmasked."""
        was, now = self.masked[:-1], ~self.masked[1:]
        step = torch.arange(1, self.steps + 1)[:, None]
        return (
            (was & now).long().mul(step).amax(0) if self.steps else torch.zeros(self.masked.shape[1], dtype=torch.long)
        )

    @property
    def rewrites(self) -> Tensor:
        """[S, L] bool: tokens that a step masked again, or whose id it changed."""
        remasked = ~self.masked[:-1] & self.masked[1:]
        changed = ~self.masked[:-1] & ~self.masked[1:] & (self.ids[:-1] != self.ids[1:])
        return remasked | changed

    def summary(self) -> list[Json]:
        """Of every step: how many tokens it unmasked and rewrote, how many are left, and their mean entropy before it."""
        found = []
        for s in range(self.steps):
            open_ = self.masked[s] & ~self.entropy[s].isnan()
            mean = float(self.entropy[s][open_].mean()) if bool(open_.any()) else math.nan
            found.append(
                {
                    "step": s + 1,
                    "unmasked": int((self.masked[s] & ~self.masked[s + 1]).sum()),
                    "rewritten": int(self.rewrites[s].sum()),
                    "left": int(self.masked[s + 1].sum()),
                    "entropy": None if math.isnan(mean) else round(mean, 4),
                }
            )
        return found

    def to_json(self) -> Json:
        order = self.order
        taken = [(int(s), i) for i, s in enumerate(order.tolist())]
        sure = [None if not s else _number(self.probability[s - 1, i]) for s, i in taken]
        before = [None if not s else _number(self.entropy[s - 1, i]) for s, i in taken]
        rewritten = self.rewrites.sum(0).tolist() if self.steps else []
        return {
            "kind": self.kind,
            "grid": list(self.grid) if self.grid else None,
            "steps": self.summary(),
            "tokens": [
                {"token": name, "step": s, "probability": p, "entropy": e, "rewrites": r}
                for name, (s, _), p, e, r in zip(self.names, taken, sure, before, rewritten, strict=True)
            ],
        }


@dataclass(frozen=True, kw_only=True)
class Trace:
    """``result``: what the call returned · ``runs``: of the sampler, in their order · ``about``: what was asked."""

    result: Any
    runs: tuple[Run, ...]
    about: str = ""

    def to_json(self) -> Json:
        return {"about": self.about, "runs": [run.to_json() for run in self.runs]}


class _Watcher:
    """The executor of a traced call: decodes with the model's own network and notes everything."""

    def __init__(self, model: Model | TextModel) -> None:
        self.model, self.runs = model, list[Run]()

    def run(
        self, sequences: Items[Tokens], seeds: Items[int], sampler: Sampler, on_step: OnStep | None = None
    ) -> Decoded:
        """As ``Model.run``, one sequence after the other, which gives each the result that it has beside the others."""
        rows, seconds = [], 0.0
        for sequence, seed in zip(sequences, seeds, strict=True):
            done = self._one(sequence, seed, sampler, on_step)
            rows, seconds = [*rows, *done.rows], seconds + done.seconds
        return Decoded(rows=rows, seconds=seconds)

    def _one(self, sequence: Tokens, seed: int, sampler: Sampler, on_step: OnStep | None) -> Decoded:
        watched = Watched(inner=sampler.token_sampler)
        events: list[tuple[StepEvent, dict[str, Tensor]]] = []

        def follow(event: StepEvent) -> None:
            events.append((event, {name: t[0].clone() for name, t in watched.seen.items()}))
            if on_step:
                on_step(event)

        parts = self.model.parts
        known = sequence
        if isinstance(parts, Parts):
            (known,) = parts.features.known([sequence], parts.net, self.model.device)
        traced = replace(sampler, token_sampler=watched)
        done = decide(parts.net, [known], [seed], traced, device=self.model.device, on_step=follow)
        self.runs.append(_run(parts, sequence, events))
        return done

    def emit(self, row: int, event: object) -> None:
        """Layouts and attempts are seen in their runs."""


def trace(model: Model | TextModel, call: Callable[[Any], Any], about: str = "") -> Trace:
    """What ``call`` makes of the model, and how it came about. ``call`` uses the model that it is given.

    The result is that of ``call(model)``. It takes one forward a step and sequence, so several pictures take longer than without a trace.
    """
    watcher = _Watcher(model)
    result = call(_executed(model, watcher))
    return Trace(result=result, runs=tuple(watcher.runs), about=about)


def _executed(model: Model | TextModel, watcher: _Watcher) -> Model | TextModel:
    from unmask.pipeline.model import Model
    from unmask.pipeline.text_model import TextModel

    if isinstance(model, Model):
        return Model(model.parts, model.presets, executor=watcher)
    return TextModel(model.parts, executor=watcher, change=model.change, fast=model.fast)


def _run(parts: Any, sequence: Tokens, events: Items[tuple[StepEvent, dict[str, Tensor]]]) -> Run:
    at = writable_tokens(sequence)
    spans = [span for span in sequence.spans if span.writable]
    picture = all(span.kind == Kind.CODE for span in spans)
    states = [sequence, *(event.sequence for event, _ in events)]
    grid = None
    if picture and all(span.grid for span in spans):
        columns = spans[0].grid[1] if spans[0].grid else 1
        grid = (len(at) // columns, columns)
    shown: list[Image.Image | str] = []
    for state in states:
        ids, masked = state.ids[at], state.masked[at]
        shown.append(parts.canvas(ids.view(grid), masked.view(grid)) if grid else " ".join(_words(parts, ids, masked)))
    last = states[-1]
    names = [str(int(i)) for i in last.ids[at]] if picture else _words(parts, last.ids[at], last.masked[at])
    kinds = {_KINDS.get(span.kind, str(int(span.kind))) for span in spans}
    return Run(
        kind=" and ".join(sorted(kinds)) if spans else "text",
        ids=torch.stack([state.ids[at] for state in states]),
        masked=torch.stack([state.masked[at] for state in states]),
        entropy=_stacked([seen["entropy"][at] for _, seen in events], len(at)),
        probability=_stacked([seen["chosen"][at] for _, seen in events], len(at)),
        shown=tuple(shown),
        names=tuple(names),
        grid=grid,
    )


def _words(parts: Any, ids: Tensor, masked: Tensor) -> list[str]:
    return ["_" if m else parts.text.show([i]) for i, m in zip(ids.tolist(), masked.tolist(), strict=True)]


def _stacked(rows: list[Tensor], tokens: int) -> Tensor:
    return torch.stack(rows) if rows else torch.zeros(0, tokens)


def _number(value: Tensor) -> float | None:
    return None if math.isnan(float(value)) else round(float(value), 5)
