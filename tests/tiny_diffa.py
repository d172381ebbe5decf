"""A checkpoint in DIFFA's layout that fits into a test: LLaDA of ``tiny_llada`` and a reader of width 16 with 3 queries, random weights."""

from __future__ import annotations

import json
import math
import wave
from array import array
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from unmask.models.speech import SpeechConfig, SpeechReader

from . import tiny_llada

READER = SpeechConfig(
    mels=8, width=16, layers=6, heads=2, mlp=24, positions=40, out=32, taps=(2, 5), queries=3, query_layers=1,
    query_mlp=20, prompts=2,
)  # fmt: skip
CONFIG = {
    "architectures": ["DIFFAModel"],
    "prompt_size": 64,
    "whisper_config": {
        "d_model": READER.width,
        "encoder_layers": READER.layers,
        "encoder_attention_heads": READER.heads,
        "encoder_ffn_dim": READER.mlp,
        "num_mel_bins": READER.mels,
        "max_source_positions": READER.positions,
        "activation_function": "gelu",
    },
    "llm_config": {"model_type": "llada"},
}


def reader(seed: int = 0) -> SpeechReader:
    made, rng = SpeechReader(READER), torch.Generator().manual_seed(seed)
    for value in made.parameters():
        nn.init.normal_(value, std=0.3, generator=rng)
    return made


def make(folder: Path, seed: int = 0) -> Path:
    """Write the whole folder."""
    tiny_llada.make(folder / "llm", seed)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(reader(seed).state_dict(), folder / "model.safetensors")
    return folder


def tone(path: Path, hz: float = 440.0, seconds: float = 0.3, rate: int = 8000) -> Path:
    """A WAV file of one tone."""
    samples = array("h", [int(20000 * math.sin(2 * math.pi * hz * i / rate)) for i in range(int(seconds * rate))])
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return path
