"""Sound files -> 16 kHz waveforms -> log-mel frames as Whisper reads them (Radford et al. 2022, arXiv 2212.04356).

Public ideas: ``read_sound("question.wav")`` and ``log_mel(waveform, mels=80, frames=3000)``.

Shapes: N samples · F frames of 10 ms.
"""

from __future__ import annotations

import math
import os
import wave
from pathlib import Path

import torch
from torch import Tensor

from unmask.files import FileRefused, refuse_special
from unmask.writing import write_whole

RATE = 16_000  # samples a second
HOP, _WINDOW = 160, 400
_LONGEST = 600  # seconds of a file that is read; models hear their first 30 s or less


class SoundError(ValueError):
    """A file is missing or not a sound."""


def read_sound(path: str | os.PathLike[str]) -> Tensor:
    """A WAV file with whole numbers of 8 to 32 bits -> mono samples [N] in [-1, 1] at 16 kHz. SoundError for anything else."""
    place = Path(path)
    if not place.exists():
        raise SoundError(f"{place} does not exist; check the path")
    try:
        refuse_special(place)
        with wave.open(str(place), "rb") as file:
            rate, width, channels = file.getframerate(), file.getsampwidth(), file.getnchannels()
            data = file.readframes(min(file.getnframes(), _LONGEST * rate))
    except (wave.Error, EOFError, FileRefused, OSError) as error:
        raise SoundError(
            f"{place} is not a WAV file that can be read ({error or 'it ends early'}); convert it, for example with "
            f"`ffmpeg -i {place} -ar {RATE} -ac 1 -c:a pcm_s16le sound.wav`"
        ) from error
    samples = _samples(data, width)
    samples = samples[: len(samples) // channels * channels].view(-1, channels).mean(1)
    if not len(samples):
        raise SoundError(f"{place} has no samples; record it again")
    return resampled(samples, rate)


def save_sound(waveform: Tensor, path: str | os.PathLike[str]) -> Path:
    """Write samples [N] in [-1, 1] at 16 kHz as a WAV file of 16 bits."""

    def write(part: Path) -> None:
        with wave.Wave_write(str(part)) as file:
            file.setnchannels(1), file.setsampwidth(2), file.setframerate(RATE)
            file.writeframes((waveform.clamp(-1, 1) * 32767).round().to(torch.int16).numpy().tobytes())

    write_whole(Path(path), write)
    return Path(path)


def _samples(data: bytes, width: int) -> Tensor:
    """Little-endian whole numbers of ``width`` bytes; those of one byte have no sign."""
    raw = torch.frombuffer(bytearray(data[: len(data) // width * width]), dtype=torch.uint8) if data else torch.zeros(0)
    parts = raw.view(-1, width).long()
    value = (parts << (8 * torch.arange(width))).sum(1)
    half = 1 << (8 * width - 1)
    value = value - half if width == 1 else torch.where(value >= half, value - 2 * half, value)
    return value.double().div(half).float()


def resampled(x: Tensor, rate: int, to: int = RATE) -> Tensor:
    """Samples [N] at another rate: frequencies that it cannot hold are cut off."""
    if rate == to:
        return x
    count = max(1, round(len(x) * to / rate))
    spectrum = torch.fft.rfft(x.double())
    kept = min(len(spectrum), count // 2 + 1)
    wanted = torch.zeros(count // 2 + 1, dtype=spectrum.dtype)
    wanted[:kept] = spectrum[:kept]
    return (torch.fft.irfft(wanted, n=count) * (count / len(x))).float()


def mel_bands(mels: int) -> Tensor:
    """Triangular filters of equal area (Slaney), [mels, 201], from 0 to 8 kHz."""
    break_hz, break_mel, step = 1000.0, 15.0, math.log(6.4) / 27
    top = break_mel + math.log(RATE / 2 / break_hz) / step
    at = torch.linspace(0, top, mels + 2, dtype=torch.float64)
    hz = torch.where(at < break_mel, at * break_hz / break_mel, break_hz * torch.exp(step * (at - break_mel)))
    bins = torch.linspace(0, RATE / 2, _WINDOW // 2 + 1, dtype=torch.float64)
    rising = (bins - hz[:-2, None]) / (hz[1:-1] - hz[:-2])[:, None]
    falling = (hz[2:, None] - bins) / (hz[2:] - hz[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0) * (2 / (hz[2:] - hz[:-2]))[:, None]


def log_mel(waveform: Tensor, *, mels: int, frames: int) -> tuple[Tensor, int]:
    """Samples [N] -> features [mels, frames], cut or padded with silence, and the number of frames that are not padding."""
    most = frames * HOP
    heard = waveform[:most]
    padded = torch.nn.functional.pad(heard, (0, most - len(heard)))
    spectrum = torch.stft(padded, _WINDOW, HOP, window=torch.hann_window(_WINDOW), return_complex=True)
    power = mel_bands(mels).float() @ spectrum[:, :-1].abs().square()
    log = power.clamp(min=1e-10).log10()
    return (torch.maximum(log, log.max() - 8) + 4) / 4, math.ceil(len(heard) / HOP)
