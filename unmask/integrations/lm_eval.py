"""The model type ``unmask`` of lm-eval, for text models in the layouts of LLaDA and Dream.

Public idea: ``python -m unmask.integrations.lm_eval --model unmask --model_args pretrained=FOLDER --tasks arc_easy`` is ``lm_eval`` with
this model type; importing this file registers it. A log-likelihood is the lower bound of masked diffusion (``objectives.likelihood``),
in nats, estimated with ``samples`` masks (Nie et al. 2025 use 128). A text is generated on one canvas; several requests share a forward,
and a request's text does not depend on the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from unmask.checkpoints.device import AUTO
from unmask.checkpoints.elastic import WeightStorage
from unmask.checkpoints.stream import DTYPES
from unmask.integrations import missing
from unmask.objectives.likelihood import bound
from unmask.pipeline.opening import load
from unmask.pipeline.text_model import Continue, Reply, TextModel
from unmask.sampling.guidance import ClassifierFree
from unmask.sampling.stopping import Never
from unmask.sequence import Sequence as Tokens
from unmask.tasks.lengths import Extent, read_words
from unmask.tasks.running import check_context
from unmask.tasks.sampler_options import with_options
from unmask.tokens.build import PROMPT
from unmask.tokens.text import EOS, MASK

try:
    import lm_eval.models  # registers the other model types  # noqa: F401
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    from tqdm import tqdm
except ModuleNotFoundError as error:
    raise missing("lm_eval", "lm-eval") from error

_ROWS = 16  # of a forward, where the batch size is "auto"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One text to generate. ``number``: of its request · ``canvas``: its masked tokens · ``most``: most tokens of the text ·
    ``stop``: it ends before the first of these · ``temperature``: 0 is greedy.
    """

    number: int
    prompt: str
    canvas: int
    most: int
    stop: tuple[str, ...]
    temperature: float

    @property
    def alike(self) -> tuple[int, float]:
        """Requests for which this is equal can share a batch."""
        return self.canvas, self.temperature


@register_model("unmask")
class UnmaskLM(LM):
    """``pretrained``: a folder, or owner/name on the hub · ``samples``: masks of a likelihood · ``scale``: text guidance, of likelihoods
    and texts · ``length``: tokens of the canvas of a text (None: the request's ``max_gen_toks``) · ``steps``: of the sampler (None: its
    own) · ``chat``: use the family's chat template for texts · ``max_gen_toks``: where a request does not say it · ``batch_size``: masks or
    texts of a forward · ``device``, ``dtype``, ``download``: as of ``unmask.load``. ValueError for a model that is not a text model.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        samples: int = 128,
        scale: float = 0.0,
        seed: int = 0,
        length: int | None = None,
        steps: int | None = None,
        chat: bool = False,
        max_gen_toks: int = 128,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
        lora: str = "",
        download: bool = False,
    ) -> None:
        super().__init__()
        if dtype not in (None, *DTYPES):
            raise ValueError(f"dtype {dtype!r} is not supported; use one of {', '.join(DTYPES)}")
        storage = WeightStorage(dtype=DTYPES[dtype]) if dtype else None
        opened = load(pretrained, device=device or AUTO, storage=storage, lora=lora or (), download=download)
        if not isinstance(opened, TextModel):
            raise ValueError(f"{pretrained} is not a text model; use a model in the layout of LLaDA or Dream")
        rows = int(batch_size or 0) if str(batch_size).isdecimal() else _ROWS
        self.model, self.rows = opened, min(rows, max_batch_size or rows)
        self.samples, self.scale, self.seed = samples, scale, seed
        self.length, self.steps, self.chat, self.max_gen_toks = length, steps, chat, max_gen_toks
        self._device = opened.device

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(bound of ln p(continuation | context) in nats, whether greedy decoding one token a step writes it) of every request."""
        found = []
        for request in tqdm(requests, desc="likelihoods", disable=disable_tqdm):
            context, continuation = request.args
            row = self._scored(*self._pair(context, continuation))
            found.append((self._bound(row), self._greedy(row)))
            self.cache_hook.add_partial("loglikelihood", request.args, found[-1])
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """The bound of ln p(text) of every text, in windows of the model's context that do not overlap."""
        text, found = self.model.parts.text, []
        for request in tqdm(requests, desc="likelihoods of texts", disable=disable_tqdm):
            windows = get_rolling_token_windows(
                text.encode(request.args[0]), text[EOS], self.model.parts.context - 1, 1
            )
            rows = [self._scored(*make_disjoint_window(window)) for window in windows]
            found.append(sum(self._bound(row) for row in rows))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, found[-1])
        return found

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The text of every request, ``batch_size`` of them at a time."""
        wanted = [self._wanted(number, *request.args) for number, request in enumerate(requests)]
        found = [""] * len(wanted)
        with tqdm(total=len(wanted), desc="texts", disable=disable_tqdm) as bar:
            for batch in _batches(wanted, self.rows):
                for one, said in zip(batch, self._texts(batch), strict=True):
                    found[one.number] = said
                    self.cache_hook.add_partial("generate_until", requests[one.number].args, said)
                bar.update(len(batch))
        return found

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """ValueError: control tokens cannot be written in a text."""
        raise ValueError("chat templates are applied to tokens; leave out --apply_chat_template and use chat=true")

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The ids of both, encoded together; spaces between them belong to the continuation. Without a context: the end of a text."""
        text = self.model.parts.text
        given = text.encode(context.rstrip())
        if not given:
            return [text[EOS]], text.encode(context + continuation)
        return given, text.encode(context + continuation)[len(given) :]

    def _scored(self, given: Sequence[int], answer: Sequence[int]) -> Tokens:
        """A row whose answer is scored. What is too long for the model's context loses its beginning."""
        if not answer:
            raise ValueError("the continuation has no tokens; give a text")
        parts = self.model.parts
        room = parts.context - len(answer)
        if room < 1:
            raise ValueError(
                f"the continuation has {len(answer)} tokens and the model's context is {parts.context}; shorten it"
            )
        return parts.builder().say("prompt", *given[-room:]).write("answer", list(answer)).build("")

    def _bound(self, row: Tokens) -> float:
        guidance = ClassifierFree(scale=self.scale, drop=PROMPT, null_id=self.model.parts.text[MASK])
        more: dict[str, Any] = {
            "samples": self.samples,
            "seed": self.seed,
            "rows": self.rows,
            "device": self.model.device,
        }
        return bound(self.model.parts.net, row, guidance=guidance, **more).value

    def _greedy(self, row: Tokens) -> bool:
        span = row.span("answer")
        masked = torch.zeros_like(row.masked)
        masked[span.start : span.stop] = True
        parts = self.model.parts
        preset = replace(parts.family.base(parts.text, len(span)), stopping=Never())
        sampler = with_options(preset, (), len(span), self.scale or None, 0.0)
        (done,) = self.model.run([replace(row, masked=masked)], [self.seed], sampler).rows
        return bool(torch.equal(done.ids[span.start : span.stop], row.ids[span.start : span.stop]))

    def _wanted(self, number: int, prompt: str, options: dict[str, Any]) -> Wanted:
        until = options.get("until") or ()
        most = int(options.get("max_gen_toks") or options.get("max_tokens") or self.max_gen_toks)
        samples = options.get("do_sample", bool(options.get("temperature")))
        canvas = self.length or most
        return Wanted(
            number=number,
            prompt=prompt,
            canvas=canvas,
            most=min(most, canvas),
            stop=(until,) if isinstance(until, str) else tuple(word for word in until if word),
            temperature=float(options.get("temperature") or 0.0) if samples else 0.0,
        )

    def _texts(self, batch: Sequence[Wanted]) -> list[str]:
        """The texts of requests that are ``alike``."""
        parts, first = self.model.parts, batch[0]
        built = [self._built(one) for one in batch]
        preset = (parts.family.chat if self.chat else parts.family.base)(parts.text, first.canvas)
        sampler = with_options(preset, (), self.steps, self.scale or None, first.temperature)
        done = self.model.run(built, [self.seed] * len(batch), sampler)
        texts = []
        for one, row in zip(batch, done.rows, strict=True):
            span = row.span("answer")
            extent = Extent(length=one.canvas, max_tokens=one.most, stop=one.stop)
            texts.append(read_words(row.ids[span.start : span.stop].tolist(), parts.text, extent).text)
        return texts

    def _built(self, one: Wanted) -> Tokens:
        parts = self.model.parts
        if self.chat:
            row = Reply(question=one.prompt, length=one.canvas).build(parts)
            check_context(row, parts.context)
            return row
        spare = parts.context - one.canvas - len(parts.family.template.before(parts.text))
        if spare < 1:
            raise ValueError(
                f"{one.canvas} masked tokens leave no room for a prompt in a context of {parts.context}; use fewer"
            )
        ids = parts.text.encode(one.prompt)
        prompt = one.prompt if len(ids) <= spare else tuple(ids[-spare:])
        return Continue(prompt=prompt, length=one.canvas).build(parts)


def _batches(wanted: Iterable[Wanted], rows: int) -> Iterator[list[Wanted]]:
    """Requests that are alike, up to ``rows`` at a time, in their order."""
    groups: dict[tuple[int, float], list[Wanted]] = {}
    for one in wanted:
        groups.setdefault(one.alike, []).append(one)
    for group in groups.values():
        yield from (group[at : at + rows] for at in range(0, len(group), rows))


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
