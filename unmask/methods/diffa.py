"""DIFFA: a frozen masked language model hears through two small adapters on a frozen Whisper encoder.

Paper: Zhou et al., "DIFFA: Large Language Diffusion Models Can Listen and Understand", 2025, arXiv 2507.18452.

Equations: of a sound with n encoder steps, the semantic adapter makes n // 4 tokens (what is said: two convolutions, the second with
stride 4), the acoustic one 64 (how it sounds: queries that read the outputs of four layers, mixed by softmax). They stand in the prompt as
features, after "This is the audio: ". The loss is LLaDA's of the answers,

    sum over masked answer tokens of CE / t, divided by all answer tokens.

Stage 1 trains the semantic adapter and 20 learned prompt tokens on transcripts, and reads [prompts | semantic]; stage 2 trains both
adapters on questions about sounds, and reads [acoustic | semantic], without the prompts. Language model and encoder stay as they are.

What changes: features of sounds in front of an answer; nothing in objective, sampler or network. The released code also reads the padding
of a shorter sound in a batch; here each sound has its own tokens alone.

What it costs: 37 million trained parameters at the released size; up to 439 tokens in front of an answer.

Shapes: B sounds · F frames · R tokens of a sound · D width of the trunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unmask.methods.card import Card
from unmask.models.speech import SpeechReader
from unmask.objectives.answers import AnswerLoss
from unmask.protocols import Denoiser
from unmask.sequence import Batch, Sequence, collate
from unmask.step import Loss
from unmask.tasks.hearing import spliced

Tokens = Callable[
    [SpeechReader, list[Tensor], Tensor], Tensor
]  # (reader, layers of one sound, its frames [1]) -> [1, R, D]


def prompts_and_semantic(reader: SpeechReader, states: list[Tensor], frames: Tensor) -> Tensor:
    """What the first stage reads."""
    return torch.cat([reader.trainable_prompts.weight[None], reader.semantic(states, frames)], dim=1)


def acoustic_and_semantic(reader: SpeechReader, states: list[Tensor], frames: Tensor) -> Tensor:
    """What the second stage and every user's question reads."""
    return torch.cat([reader.acoustic(states), reader.semantic(states, frames)], dim=1)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """``tokens``: of a sound · ``trained``: the parts of the reader that learn, by name."""

    tokens: Tokens
    trained: tuple[str, ...]


STAGE_1 = Stage(tokens=prompts_and_semantic, trained=("semantic_connector", "trainable_prompts"))
STAGE_2 = Stage(tokens=acoustic_and_semantic, trained=("semantic_connector", "acoustic_connector"))


@dataclass(frozen=True, kw_only=True)
class AboutSounds:
    """A batch of clean rows of text, each with a sound. ``at``: the token of each row before which its sound stands ·
    ``mel [B, mels, F]``, ``frames [B]``: as of ``tokens.sound.log_mel``.
    """

    rows: tuple[Sequence, ...]
    at: tuple[int, ...]
    mel: Tensor
    frames: Tensor


class Hearing(nn.Module):
    """A frozen trunk with its reader; the reader's parts of ``stage`` learn."""

    def __init__(self, net: nn.Module, reader: SpeechReader, stage: Stage) -> None:
        super().__init__()
        self.net, self.reader, self.stage = net.requires_grad_(False), reader.requires_grad_(False), stage
        for name in stage.trained:
            reader.get_submodule(name).requires_grad_(True)

    def batch(self, some: AboutSounds) -> Batch:
        """The rows with the tokens of their sounds, through which gradients reach the adapters."""
        with torch.no_grad():
            states = self.reader.whisper_model(some.mel)
        found = [
            self.stage.tokens(self.reader, [state[i : i + 1] for state in states], some.frames[i : i + 1])[0]
            for i in range(len(some.rows))
        ]
        made = [spliced(row, at, one) for row, at, one in zip(some.rows, some.at, found, strict=True)]
        return collate(made, range(len(made)))


@dataclass(frozen=True, kw_only=True)
class HearingLoss:
    """The objective of both stages."""

    answers: AnswerLoss = AnswerLoss()

    def __call__(self, model: Hearing, clean: AboutSounds, rng: torch.Generator) -> Loss:
        trunk: Denoiser = model.net  # type: ignore[assignment]
        return self.answers(trunk, model.batch(clean), rng)


CARD = Card(
    title="DIFFA: Large Language Diffusion Models Can Listen and Understand",
    paper="arXiv 2507.18452",
    year=2025,
    changes="features of a sound in front of an answer, from two adapters on a frozen Whisper encoder; the trunk is frozen",
    claim="With 960 h of transcripts and 127 h of questions it is competitive with Qwen2-Audio-Instruct.",
    status="reference",
    figure="questions spoken by espeak-ng, 3 pairs of adapters: .491 [.347, .634] right, typed .556, difference -.065 [-.208, .079]; "
    "which of four voices .282 with the acoustic adapter and .245 without, +.051 [-.064, .166]; fast or slow 1.00 and .963",
    paper_figure="MMSU 56.04, MMAU 49.71 (Qwen2-Audio-Instruct 53.27, 59.61)",
    recipe="diffa.adapters",
    python="from unmask.methods.diffa import STAGE_1, STAGE_2, AboutSounds, Hearing, HearingLoss",
    command='unmask ask "What does the speaker say?" --audio question.wav --model DIFFA',
)
