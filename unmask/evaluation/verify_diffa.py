"""Numerical parity of DIFFA: recompute the arrays of diffa_tiny.

Public idea: ``DiffaReference(arrays, ..).reproduce(net) -> Arrays``: layers of the encoder, both adapters, logits behind a sound, greedy
answers and both training losses. ``verify.py`` compares them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.evaluation.verify_lavida import every_logit
from unmask.models.elastic import Elastic
from unmask.models.speech import SpeechReader, steps_of
from unmask.objectives.answers import mean_answer_loss
from unmask.sampling.blocks import Blocks
from unmask.sampling.guidance import ClassifierFree
from unmask.sampling.sampler import Sampler, Step
from unmask.sampling.schedule import Equal
from unmask.sampling.selection import Confident
from unmask.sampling.token_sampler import GumbelText
from unmask.sequence import Batch, Kind, Sequence, Span, collate
from unmask.tasks.hearing import spliced

Arrays = dict[str, Tensor]
DIFFA_INPUTS = frozenset(
    {"audio.mel", "audio.mask", "qa.ids", "qa.audio_at", "train.ids", "train.mask", "train.prompt_lengths", "train.t"}
)
_TRAINED_AT = 9  # the token before which the sounds of ``train.ids`` stand
_RUNS = {  # name: tokens, steps, block, guidance scale
    "gen.four": (4, 4, 4, 0.0),
    "gen.blocks": (24, 12, 8, 0.0),
    "gen.one": (16, 16, 16, 0.0),
    "gen.guided": (8, 8, 8, 1.5),
}


@dataclass(frozen=True, kw_only=True)
class DiffaReference:
    """The arrays of expected.safetensors, and encoder and adapters."""

    arrays: Arrays
    speech: SpeechReader

    @torch.no_grad()
    def reproduce(self, net: Elastic) -> Arrays:
        """Our version of every output array."""
        out = self.sound()
        ids = self.arrays["qa.ids"][0]
        out["qa.logits"] = every_logit(net, self._batch([ids], out["audio.stage2"]))[None]
        for name, run in _RUNS.items():
            out |= self._run(net, name, *run, sound=out["audio.stage2"])
        return out | self._training(net, out["audio.acoustic"], out["audio.semantic"])

    def sound(self) -> Arrays:
        """Layers of the encoder and tokens of both adapters."""
        mel, mask = self.arrays["audio.mel"], self.arrays["audio.mask"]
        frames = mask.sum(1)
        states = self.speech.whisper_model(mel)
        lengths = torch.tensor([steps_of(int(n)) for n in frames], device=mel.device)
        out = {f"audio.hidden_{tap}": states[tap] for tap in self.speech.config.taps} | {"audio.lengths": lengths}
        out["audio.encoded"] = states[-1][:, : int(lengths.max())]
        out["audio.semantic"], out["audio.acoustic"] = (
            self.speech.semantic(states, frames),
            self.speech.acoustic(states),
        )
        out["audio.stage1"] = self.speech.prompted(mel[:1], frames[:1])
        out["audio.stage2"] = self.speech.heard(mel[:1], frames[:1])
        return out

    def _batch(self, rows: list[Tensor], sounds: Tensor, *, at: int | None = None, new: int = 0) -> Batch:
        """Rows of text with a sound each, and ``new`` masked tokens behind."""
        place = int(self.arrays["qa.audio_at"]) if at is None else at
        made = [spliced(_text(ids.cpu(), new), place, sound.cpu()) for ids, sound in zip(rows, sounds, strict=True)]
        return collate(made, range(len(made))).to(sounds.device)

    def _run(self, net: Elastic, name: str, new: int, steps: int, block: int, scale: float, *, sound: Tensor) -> Arrays:
        """Greedy ids of an answer, and the number of steps."""
        sampler = Sampler(
            schedule=Equal(steps=steps // (new // block)),
            token_sampler=GumbelText(temperature=0.0),
            selection=Confident(),
            blocks=Blocks(length=block),
            guidance=ClassifierFree(scale=scale, drop=frozenset({"prompt"}), null_id=net.mask_id),
        )
        taken: list[Step] = []
        done = sampler.sample(net, self._batch([self.arrays["qa.ids"][0]], sound, new=new), on_step=taken.append)
        return {f"{name}.ids": done.ids[:, -new:], f"{name}.nfe": torch.tensor(len(taken), device=sound.device)}

    def _training(self, net: Elastic, acoustic: Tensor, semantic: Tensor) -> Arrays:
        """The losses of both stages."""
        prompts = self.speech.trainable_prompts.weight.expand(len(semantic), -1, -1)
        sounds = {"stage1": [prompts, semantic], "stage2": [acoustic, semantic]}
        return {f"train.loss_{stage}": self._loss(net, torch.cat(parts, dim=1)) for stage, parts in sounds.items()}

    def _loss(self, net: Elastic, sounds: Tensor) -> Tensor:
        ids, at, rows = self.arrays["train.ids"], _TRAINED_AT, sounds.shape[1]
        batch = self._batch(list(ids), sounds, at=at)

        def beside(x: Tensor) -> Tensor:
            return torch.cat([x[:, :at], x.new_zeros(len(x), rows), x[:, at:]], dim=1)

        masked, time = beside(self.arrays["train.mask"]), beside(self.arrays["train.t"])
        count = ids.numel() - int(self.arrays["train.prompt_lengths"].sum())
        return mean_answer_loss(net, batch.replace(masked=masked, time=time), count)


def _text(ids: Tensor, new: int) -> Sequence:
    spans = [Span(name="prompt", kind=Kind.TEXT, start=0, stop=len(ids))]
    if new:
        spans.append(Span(name="answer", kind=Kind.TEXT, start=len(ids), stop=len(ids) + new, writable=True))
    whole = torch.cat([ids, ids.new_zeros(new)])
    return Sequence(ids=whole, masked=torch.arange(len(whole)) >= len(ids), spans=tuple(spans))
