"""Sound in front of an answer: DIFFA's prompt, with the tokens of a sound spliced into its text (arXiv 2507.18452, section 3).

Public ideas: ``heard(reader, waveform)`` are the features of a sound, ``spliced(sequence, at, features)`` puts them into a sequence, and
``LEAD``, ``MARK`` are the words of the prompt around them.

Shapes: N samples · R feature rows · D width of the trunk · L tokens.
"""

from __future__ import annotations

import os
from dataclasses import replace

import torch
from torch import Tensor

from unmask.models.speech import SpeechReader
from unmask.sequence import Kind, Sequence, Span
from unmask.tokens.sound import RATE, log_mel, read_sound

Sound = str | os.PathLike[str] | Tensor
"""A WAV file, or samples [N] at 16 kHz."""
SOUND = "sound"  # the span of a sound
LEAD, MARK = "This is the audio: ", "<audio>. "
SYSTEM = "You are a helpful voice assistant."


@torch.no_grad()
def heard(reader: SpeechReader, waveform: Tensor) -> Tensor:
    """Features [R, D] of samples [N] at 16 kHz; what is longer than the encoder reads (30 s) is cut off."""
    config = reader.config
    mel, frames = log_mel(waveform, mels=config.mels, frames=config.frames)
    weight = reader.trainable_prompts.weight
    return reader.heard(mel[None].to(weight), torch.tensor([frames], device=weight.device))[0]


def sound_features(reader: SpeechReader | None, audio: Sound | None) -> Tensor | None:
    """``heard`` of a file or of samples, on the CPU; None without a sound. ValueError for a model without a reader."""
    if audio is None:
        return None
    if reader is None:
        raise ValueError("this model reads text alone and hears no sound; leave out audio, or use a DIFFA model")
    waveform = audio if isinstance(audio, Tensor) else read_sound(audio)
    if waveform.dim() != 1 or not len(waveform):
        raise ValueError(f"a sound is samples [N] at {RATE} Hz, got the shape {tuple(waveform.shape)}")
    return heard(reader, waveform).cpu()


def spliced(sequence: Sequence, at: int, features: Tensor) -> Sequence:
    """The sequence with a span of FEATURE tokens before token ``at``, which must not be inside a span that is written.

    It may have the features of a picture, as rows that its tokens number. ValueError where it has pixels, or a sound already, or ``at`` is
    outside.
    """
    if sequence.pixels is not None or any(span.name == SOUND for span in sequence.spans):
        raise ValueError("the sequence has pixels or a sound already; encode its picture first, and give one sound")
    if not 0 <= at <= len(sequence.ids):
        raise ValueError(f"a sound goes before a token in 0..{len(sequence.ids)}, got {at}")
    rows, spans = len(features), list[Span]()
    for span in sequence.spans:
        before, behind = min(span.stop, at) - span.start, span.stop - max(span.start, at)
        if before > 0:
            spans.append(replace(span, stop=span.start + before))
        if behind > 0:
            spans.append(replace(span, start=max(span.start, at) + rows, stop=span.stop + rows))
    spans.append(Span(name=SOUND, kind=Kind.FEATURE, start=at, stop=at + rows))
    ids, masked = (torch.cat([x[:at], x.new_zeros(rows), x[at:]]) for x in (sequence.ids, sequence.masked))
    ordered, known = tuple(sorted(spans, key=lambda span: span.start)), sequence.features
    number = None
    if known is not None:  # the rows of the picture, then those of the sound
        number = torch.zeros_like(ids)
        for span in ordered:
            if span.kind == Kind.FEATURE:
                number[span.start : span.stop] = torch.arange(len(span)) + (len(known) if span.name == SOUND else 0)
    whole = features if known is None else torch.cat([known, features])
    return replace(
        sequence, ids=ids, masked=masked, spans=ordered, features=whole, feature=number, feature_rows=len(whole)
    )
