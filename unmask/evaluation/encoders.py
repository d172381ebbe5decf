"""Pictures compared with their prompts and with real pictures, in the features of any encoder. Public idea: ``Comparison(encoder=…)``.

``read_clip(folder)`` opens a CLIP folder that lies on the disk (``pip install 'unmask[hf]'``); nothing is downloaded. Shapes: N pictures
or texts, F features.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from unmask.checkpoints.device import find_device
from unmask.data.published import FormatError
from unmask.evaluation.evaluate import Figures
from unmask.evaluation.metrics import clip_score, frechet
from unmask.tokens.pictures import WRITABLE, read_image

_BATCH = 32
_MEAN, _SPREAD = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)  # of CLIP's training pictures


class Encoder(Protocol):
    """Pictures (uint8 [H, W, 3]) and texts -> float [N, F] in a shared space."""

    def images(self, pictures: Iterable[np.ndarray]) -> np.ndarray: ...
    def texts(self, texts: Sequence[str]) -> np.ndarray: ...


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Metrics of pictures in an encoder's features. ``real``: files of real pictures for the Fréchet distance."""

    encoder: Encoder
    real: tuple[Path, ...] = ()

    def figures(self, pictures: Iterable[np.ndarray], texts: Sequence[str]) -> Figures:
        """``clip_score`` of picture i and text i, and ``frechet`` if there are real pictures."""
        drawn = self.encoder.images(pictures)
        out: Figures = {"clip_score": clip_score(drawn, self.encoder.texts(texts))}
        if self.real:
            others = self.encoder.images(np.asarray(read_image(path)) for path in self.real)
            out["frechet"] = {"value": frechet(drawn, others), "n": len(drawn), "real": len(others)}
        return out


def pictures_in(folder: Path) -> tuple[Path, ...]:
    """The pictures of a folder, sorted by name. FormatError if there are none."""
    found = tuple(sorted(p for p in folder.glob("*") if p.suffix.lower() in WRITABLE))
    if not found:
        raise FormatError(f"there are no pictures in {folder}; wanted files ending in {', '.join(WRITABLE)}")
    return found


def read_clip(folder: Path, device: str = "auto") -> ClipFolder:
    """A CLIP model as transformers saves it: config.json, model.safetensors, tokenizer.json. FormatError where one is missing."""
    names = ("config.json", "model.safetensors", "tokenizer.json")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FormatError(f"{folder} has no {missing[0]}; wanted a CLIP folder with {', '.join(names)}")
    if (kind := json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")) != "clip":
        raise FormatError(f"{folder} holds a model of type {kind!r}; wanted 'clip'")
    from transformers import CLIPModel

    model: Any = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=torch.float32)
    return ClipFolder(
        model=model.to(find_device(device)).eval(), tokenizer=Tokenizer.from_file(str(folder / "tokenizer.json"))
    )


T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ClipFolder:
    """An encoder: CLIP's own resize (short side, bicubic), centre crop and normalisation; texts are cut at its context."""

    model: Any
    tokenizer: Tokenizer

    def images(self, pictures: Iterable[np.ndarray]) -> np.ndarray:
        return self._rows(self._embed_images(some) for some in _batches(pictures))

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        return self._rows(self._embed_texts(some) for some in _batches(texts))

    def _rows(self, parts: Iterable[Tensor]) -> np.ndarray:
        with torch.inference_mode():
            rows = [part.float().cpu().numpy() for part in parts]
        return np.concatenate(rows) if rows else np.zeros((0, self.model.config.projection_dim), dtype=np.float32)

    def _embed_images(self, some: Sequence[np.ndarray]) -> Tensor:
        pixels_B3HW = _pixels(some, self.model.config.vision_config.image_size).to(self.model.device)
        return self.model.visual_projection(self.model.vision_model(pixel_values=pixels_B3HW).pooler_output)

    def _embed_texts(self, some: Sequence[str]) -> Tensor:
        self.tokenizer.enable_truncation(self.model.config.text_config.max_position_embeddings)
        coded = [e.ids for e in self.tokenizer.encode_batch(list(some))]
        # The text tower is causal, so tokens after the end of a text are never read.
        ids = torch.zeros(len(coded), max(len(row) for row in coded), dtype=torch.long)
        for i, row in enumerate(coded):
            ids[i, : len(row)] = torch.tensor(row)
        found = self.model.text_model(input_ids=ids.to(self.model.device)).pooler_output
        return self.model.text_projection(found)


def _batches(values: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(values)
    while some := list(islice(rest, _BATCH)):
        yield some


def _pixels(some: Sequence[np.ndarray], side: int) -> Tensor:
    """float32 [B, 3, side, side], normalised."""
    rows = []
    for picture in some:
        image = Image.fromarray(picture)
        short = min(image.size)
        wide, high = (max(side, round(v * side / short)) for v in image.size)
        left, top = (wide - side) // 2, (high - side) // 2
        resized = image.resize((wide, high), Image.Resampling.BICUBIC)
        rows.append(np.asarray(resized.crop((left, top, left + side, top + side)), dtype=np.float32) / 255)
    values = (np.stack(rows) - np.array(_MEAN, dtype=np.float32)) / np.array(_SPREAD, dtype=np.float32)
    return torch.from_numpy(values).permute(0, 3, 1, 2)
