"""Numerical parity: recompute the measured arrays of a folder of weights and compare.

Public idea: ``verify(folder) -> [Difference]``. Such a folder is a checkpoint in the released layout (config.json, model.safetensors,
vqvae/) with ``expected.safetensors`` beside it: inputs (``und.ids``, ``t2i.codes``, ``vq.image`` …) and what the official
implementation made of them (``und.logits``, ``t2i.hidden``, ``sample.codes``, ``vq.decoded`` …), as in tests/golden/lavida_o_tiny.
Every array that is no input is computed anew from the folder's weights by the code that serves users. Folders of MMaDA and
Lumina-DiMOO have arrays of their own (``verify_mmada``, ``verify_dimoo``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from unmask.checkpoints.device import find_device
from unmask.checkpoints.families import is_dimoo, refuse_foreign
from unmask.checkpoints.lavida_o import load_lavida_o
from unmask.checkpoints.loading import load_everything
from unmask.checkpoints.lumina_dimoo import survey_dimoo
from unmask.checkpoints.mmada import is_mmada, survey_mmada
from unmask.checkpoints.schema import read_json
from unmask.checkpoints.store import CheckpointError, read_tensors
from unmask.evaluation.thinned import Thinning
from unmask.evaluation.verify_dimoo import DIMOO_INPUTS, dimoo_arrays
from unmask.evaluation.verify_families import REPRODUCE, TOLERANCES
from unmask.evaluation.verify_mmada import MMADA_INPUTS, mmada_arrays
from unmask.evaluation.verify_sparse import SPARSE_INPUTS, SparseReference
from unmask.json_types import Json
from unmask.models.elastic import Elastic
from unmask.models.exact import double
from unmask.pipeline.loading import Format, format_in
from unmask.sampling.guidance import ClassifierFree
from unmask.sampling.orders import stratified
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Shift
from unmask.sampling.selection import InOrder
from unmask.sampling.token_sampler import Greedy
from unmask.sequence import Batch, Kind, Sequence, Span, collate
from unmask.tasks.parts import Parts
from unmask.tasks.released import PRESETS, published
from unmask.tasks.understand import Ask
from unmask.tokens.magvit import Magvit
from unmask.tokens.prompts import RELEASED
from unmask.tokens.text import CONTROL, Text
from unmask.tokens.vq import VQ

Arrays = dict[str, Tensor]
INPUTS = frozenset(
    {"und.ids", "t2i.ids", "t2i.is_gen", "t2i.codes", "edit.ids", "edit.is_source", "edit.is_target", "vq.image"}
    | {"edit.source_codes", "edit.target_codes", "sample.null_prefix"}
)
_WORD = "word"
_SHIFT, _GUIDANCE, _SEED = 5.0, 4.0, 42  # of ``sample.codes``


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One array. ``worst``: largest absolute difference · ``mean``: mean difference · ``wrong``: entries beyond the tolerance (for
    integers: unequal ones) of ``size``."""

    name: str
    shape: tuple[int, ...]
    exact: bool
    worst: float
    mean: float
    wrong: int
    size: int

    @property
    def ok(self) -> bool:
        return self.wrong == 0

    def to_json(self) -> Json:
        return {**vars(self), "shape": list(self.shape), "ok": self.ok}


def verify(
    folder: Path, *, tolerance: float | None = None, dtype: torch.dtype | None = None, device: str = "auto"
) -> list[Difference]:
    """Every measured array of ``folder`` compared with ours, sorted by name.

    ``tolerance``: the largest absolute difference of real numbers that passes, None for that of the family (1e-4; Dimple, whose values are
    larger, 2e-4); integers must be equal. ``dtype``: compute in this
    type instead of the one of the files. CheckpointError where the folder is of another family or not in this form.
    """
    if folder.exists():
        refuse_foreign(folder)
    found_as, tolerance = format_in(folder), default_tolerance(folder) if tolerance is None else tolerance
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"the tolerance must be at least 0 and finite, got {tolerance}; 1e-4 is usual for float32")
    device = find_device(device)
    if reproduce := REPRODUCE.get(found_as):
        ours, arrays, inputs = reproduce(folder, dtype, device)
        return _compared(ours, arrays, inputs, folder, tolerance)
    if found_as in (Format.LLADA, Format.REDIFF):
        raise CheckpointError(
            f"{folder} has the layout {found_as.value}, whose measured arrays verify does not recompute; "
            "the layouts that it verifies are listed in docs/models.md"
        )
    raw = read_json(folder / "config.json")
    dimoo, mmada = is_dimoo(raw, folder), is_mmada(raw)
    survey = survey_dimoo if dimoo else survey_mmada
    net, vq = load_everything(survey(folder)) if dimoo or mmada else load_lavida_o(folder)
    net, vq = net.to(device=device, dtype=dtype), vq.to(device=device, dtype=dtype)
    arrays = {name: array.to(device) for name, array in read_tensors(folder, "expected").items()}
    if dimoo and isinstance(vq, VQ):
        return _compared(dimoo_arrays(folder, arrays, net, vq), arrays, DIMOO_INPUTS, folder, tolerance)
    if isinstance(vq, Magvit):
        return _compared(mmada_arrays(folder, arrays, net, vq), arrays, MMADA_INPUTS, folder, tolerance)
    if net.has_registers:
        return _verify_sparse(net, arrays, folder, tolerance)
    reference = Reference(arrays=arrays, mask_id=net.mask_id, mask_code=net.config.mask_code)
    # By default cuDNN rounds the inputs of float32 convolutions to TF32: decoded pixels were 3e-3 off on an H200.
    assert isinstance(vq, VQ)
    with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
        ours = reference.reproduce(net, vq)
    return _compared(ours, arrays, INPUTS, folder, tolerance)


def default_tolerance(folder: Path) -> float:
    """The largest difference of real numbers that the arrays of a folder's family allow."""
    return TOLERANCES.get(format_in(folder), 1e-4)


def _verify_sparse(net: Elastic, arrays: Arrays, folder: Path, tolerance: float) -> list[Difference]:
    if missing := sorted(SPARSE_INPUTS - set(arrays)):
        raise CheckpointError(f"expected.safetensors lacks {', '.join(missing)}; is it complete?")
    side = math.isqrt(len(arrays["train.codes"]))
    reference = SparseReference(arrays=arrays, mask_id=net.mask_id, side=side)
    return _compared(reference.reproduce(net), reference.comparable(), SPARSE_INPUTS, folder, tolerance)


def _compared(ours: Arrays, arrays: Arrays, inputs: frozenset[str], folder: Path, tolerance: float) -> list[Difference]:
    if wrong := sorted(set(ours) ^ (set(arrays) - inputs)):
        missing, unknown = [n for n in wrong if n in ours], [n for n in wrong if n not in ours]
        said = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(unknown)}"] * bool(unknown)
        raise CheckpointError(f"{folder / 'expected.safetensors'} {' and '.join(said)}; was it made for this version?")
    kept = Thinning.read(folder / "expected.safetensors")
    ours = {name: kept.thin(name, array) for name, array in ours.items()}
    return [compare(name, ours[name].to(arrays[name].device), arrays[name], tolerance) for name in sorted(ours)]


def compare(name: str, got: Tensor, wanted: Tensor, tolerance: float) -> Difference:
    """One array, ours and the measured one. CheckpointError if their shapes differ."""
    if got.shape != wanted.shape:
        raise CheckpointError(
            f"{name} is {tuple(got.shape)}, and measured {tuple(wanted.shape)}; do they belong together?"
        )
    exact = not wanted.is_floating_point()
    apart = (double(got) - double(wanted)).abs().nan_to_num(nan=math.inf)
    return Difference(
        name=name,
        shape=tuple(wanted.shape),
        exact=exact,
        worst=float(apart.max()),
        mean=float(apart.mean()),
        wrong=int((apart > (0 if exact else tolerance)).sum()),
        size=wanted.numel(),
    )


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The arrays of expected.safetensors, and the sequences that they were measured on."""

    arrays: Arrays
    mask_id: int
    mask_code: int

    @torch.no_grad()
    def reproduce(self, net: Elastic, vq: VQ) -> Arrays:
        """Our version of every output array. CheckpointError if an input is missing."""
        if missing := sorted(INPUTS - set(self.arrays)):
            raise CheckpointError(f"expected.safetensors lacks {', '.join(missing)}; is it complete?")
        return {
            "und.logits": self.texts(net),
            "prefix.logits": self.answers(net, vq),
            **self.drawings(net),
            "edit.code_logits": self.edits(net, self.editing()),
            **self.sampled(net),
            **self.tokenized(vq),
        }

    def texts(self, net: Elastic) -> Tensor:
        """Text logits where every token attends to every other, [B, L, V]."""
        ids = self.arrays["und.ids"]
        batch = self._batch([self._row(("text", row)) for row in ids])
        return net(batch, predict=batch.valid).logits(Kind.TEXT).unflatten(0, ids.shape)

    def answers(self, net: Elastic, vq: VQ) -> Tensor:
        """Logits of the last tokens of ``und.ids`` as an answer behind a cached prompt, [B, answer, V]: those of the second step of the
        published task and sampler, at which no token of the prompt is computed.
        """
        ids, parts = self.arrays["und.ids"], _published(net, vq)
        tail = self.arrays["prefix.logits"].shape[1] if "prefix.logits" in self.arrays else ids.shape[1] // 2
        built = [_question(parts, len(row) - tail, tail) for row in ids]
        rows = [
            replace(one, ids=torch.where(one.masked, one.ids, row.cpu())) for one, row in zip(built, ids, strict=True)
        ]
        first = self._batch(rows)
        run = PRESETS.ask(parts).start(first)
        if run.query is not None:
            run.advance(net(run.query.batch, predict=run.query.predict, reuse=run.query.reuse))
        if run.query is None:
            raise CheckpointError(f"prefix.logits has {tail} tokens; an answer needs at least two")
        given = run.query.batch.replace(ids=ids, masked=torch.zeros_like(first.masked))
        return net(given, predict=first.masked, reuse=run.query.reuse).logits(Kind.TEXT).unflatten(0, (len(ids), tail))

    def drawings(self, net: Elastic) -> Arrays:
        """Text and masked codes: embeddings, inputs of the heads, and the logits of both heads."""
        ids, is_gen, codes = (self.arrays[f"t2i.{name}"] for name in ("ids", "is_gen", "codes"))
        batch = self._batch([self._drawing(b) for b in range(len(ids))])
        seen: list[Tensor] = []
        hooks = [
            module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
            for module in (net.text_head, net.code_head.unfold_norm)
        ]
        try:
            prediction = net(batch, predict=batch.valid)
        finally:
            for hook in hooks:
                hook.remove()
        und, gen = seen  # heads are padded to more rows than there are tokens
        und, gen = und[: int((~is_gen).sum())], gen[: int(is_gen.sum())]
        # The released model carries one stream, in which the upper channels of a generation position are zero (spec 1.3).
        hidden = und.new_zeros(*ids.shape, und.shape[-1])
        hidden[~is_gen] = und
        hidden[is_gen] = torch.nn.functional.pad(gen, (0, und.shape[-1] - gen.shape[-1]))
        text = und.new_zeros(*ids.shape, prediction.logits(Kind.TEXT).shape[-1])
        text[~is_gen] = prediction.logits(Kind.TEXT)
        text[is_gen] = net.text_head(hidden[is_gen])
        return {
            "t2i.code_embeddings": net.code_embedding(
                codes, self._squares().to(codes.device).expand(len(codes), -1, -1)
            ),
            "t2i.hidden": hidden,
            "t2i.text_logits": text,
            "t2i.code_logits": prediction.logits(Kind.CODE).unflatten(0, codes.shape),
        }

    def _squares(self) -> Tensor:
        """The places of each position's four codes in a picture's codes, [positions, 4]."""
        places = torch.arange(self.grid[0] * self.grid[1]).view(self.grid[0] // 2, 2, self.grid[1] // 2, 2)
        return places.permute(0, 2, 1, 3).reshape(-1, 4)

    def editing(self) -> Batch:
        """Rows with source and target codes; every row but the first has its source dropped."""
        source, target = self.arrays["edit.source_codes"][0], self.arrays["edit.target_codes"][0]
        rows = []
        for ids, is_source, is_target in zip(
            self.arrays["edit.ids"], self.arrays["edit.is_source"], self.arrays["edit.is_target"], strict=True
        ):
            (a, b), (c, d) = _stretch(is_source), _stretch(is_target)
            parts = (("prompt", ids[:a]), ("source", source), ("prompt", ids[b:c]), ("image", target), ("end", ids[d:]))
            rows.append(self._row(*parts))
        batch = self._batch(rows)
        gone = torch.zeros_like(batch.masked)
        for b, sequence in enumerate(rows[1:], start=1):
            span = sequence.span("source")
            gone[b, span.start : span.stop] = True
        return batch.drop_tokens(gone, self.mask_id)

    def edits(self, net: Elastic, batch: Batch) -> Tensor:
        """Code logits of the target picture of every row, [B, codes, V]."""
        target = torch.zeros_like(batch.masked)
        for b, table in enumerate(batch.span_table):
            span = next(s for s in table if s.name == "image")
            target[b, span.start : span.stop] = True
        return net(batch, predict=target).logits(Kind.CODE).unflatten(0, (batch.rows, -1))

    def sampled(self, net: Elastic) -> Arrays:
        """A picture decoded greedily: codes per step, and their ids."""
        sequence = self._drawing(0)
        spans = tuple(replace(span, writable=span.name == "image") for span in sequence.spans)
        image = sequence.span("image")
        masked = torch.zeros_like(sequence.masked)
        masked[image.start : image.stop] = True
        steps = len(self.arrays["sample.counts"]) if "sample.counts" in self.arrays else 6
        schedule = Shift(steps=steps, shift=_SHIFT)
        sampler = Sampler(
            schedule=schedule,
            guidance=ClassifierFree(scale=_GUIDANCE, drop=frozenset({"prompt"}), null_id=self.mask_id),
            token_sampler=Greedy(),
            selection=InOrder(order=tuple(stratified(self.grid[0], _SEED))),
        )
        done = sampler.sample(net, self._batch([replace(sequence, masked=masked, spans=spans)]))
        counts = torch.tensor(schedule.counts(len(image)), device=done.device)
        return {"sample.counts": counts, "sample.codes": done.ids[:, image.start : image.stop]}

    def tokenized(self, vq: VQ) -> Arrays:
        """A picture's codes, and the pixels (not clipped) that the measured codes decode to by our decoder."""
        codes = vq.encode(self.arrays["vq.image"].to(vq.quant_conv.weight.dtype))
        measured = self.arrays.get("vq.codes", codes)
        latents = vq.quantize.embedding(measured.reshape(codes.shape)).permute(0, 3, 1, 2)
        return {"vq.codes": codes.flatten(1), "vq.decoded": vq.from_latents(latents)}

    @property
    def grid(self) -> tuple[int, int]:
        side = math.isqrt(self.arrays["t2i.codes"].shape[1])
        return side, side

    def _drawing(self, b: int) -> Sequence:
        ids, first = self.arrays["t2i.ids"][b], int(self.arrays["sample.null_prefix"])
        start, stop = _stretch(self.arrays["t2i.is_gen"][b])
        image = self.arrays["t2i.codes"][b]
        return self._row(
            ("prompt", ids[:first]), ("assistant", ids[first:start]), ("image", image), ("end", ids[stop:])
        )

    def _row(self, *parts: tuple[str, Tensor]) -> Sequence:
        """Spans of text ids, or (by their names) of codes, of which the mask code is masked."""
        spans: list[Span] = []
        masked = []
        for name, values in parts:
            start = spans[-1].stop if spans else 0
            place = {"name": name, "start": start, "stop": start + len(values)}
            if name in ("source", "image"):
                spans.append(Span(kind=Kind.CODE, grid=self.grid, fold=2, **place))
                masked.append(values == self.mask_code)
            else:
                spans.append(Span(kind=Kind.TEXT, **place))
                masked.append(torch.zeros_like(values, dtype=torch.bool))
        ids = torch.cat([values for _, values in parts])
        return Sequence(ids=ids, masked=torch.cat(masked), spans=tuple(spans))

    def _batch(self, rows: list[Sequence]) -> Batch:
        return collate(rows, [0] * len(rows)).to(self.arrays["t2i.ids"].device)


def _published(net: Elastic, vq: VQ) -> Parts:
    """The parts of a released model whose tokenizer has one token a word, with ids that the network does not have."""
    first = net.config.vocab_size
    vocabulary = {name: first + i for i, name in enumerate((_WORD, *CONTROL))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_WORD))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wording = replace(RELEASED, system="", newlines="", after_image="")  # the measured prompt is short
    parts = Parts(text=Text(tokenizer), net=net, vq=vq, wording=wording, side=0, fold=2)
    return published(parts, {})


def _question(parts: Parts, prompt: int, answer: int) -> Sequence:
    """The sequence of a question whose prompt has ``prompt`` tokens, with ``answer`` masked tokens. CheckpointError for a short prompt."""

    def asked(words: int) -> Sequence:
        return Ask(pixels=None, question=" ".join([_WORD] * words), length=answer).build(parts)

    words = prompt + answer - len(asked(0).ids)
    if words < 1:
        raise CheckpointError(f"the prompt of prefix.logits has {prompt} tokens; a question needs {prompt - words + 1}")
    return asked(words)


def _stretch(chosen_L: Tensor) -> tuple[int, int]:
    """First and last (exclusive) of the chosen tokens, which are contiguous."""
    at = chosen_L.nonzero().flatten()
    return int(at[0]), int(at[-1]) + 1
