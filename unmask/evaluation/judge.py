"""The judge: an independent object detector for images of the synthetic world.

It shares no code and no weights with the models it scores, and is trained on renderings only (``recipes/judge.py``).
Public idea: ``load_judge().look(pictures) -> [Seen]``.

Shapes: B pictures · H W pixels · h w cells (8 pixels each) · K classes · C colours · G backgrounds · F features.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.data.world.vocabulary import BACKGROUND_NAMES, CLASS_NAMES, COLOUR_NAMES
from unmask.writing import write_tensors

CELL = 8  # pixels along the side of one cell
_BATCH = 32

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Found:
    """One detected object: class, colour ("" is natural), box (x1, y1, x2, y2) in fractions of the side, score in [0, 1]."""

    name: str
    colour: str
    box: Box
    score: float

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The contents of one picture; ``objects``: its objects by decreasing score."""

    objects: tuple[Found, ...]
    background: str


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """Shape of the network and its detection thresholds.

    ``widths`` and ``blocks``: channels, and residual blocks, at 1/2, 1/4 and 1/8 of the pixels · ``threshold``: minimum
    score of an object · ``overlap``: of two boxes that share more than this part of the smaller one, the lower-scoring is dropped.
    """

    side: int = 128
    widths: tuple[int, int, int] = (32, 64, 128)
    blocks: tuple[int, int, int] = (0, 1, 3)
    threshold: float = 0.6
    overlap: float = 0.4
    classes: tuple[str, ...] = CLASS_NAMES
    colours: tuple[str, ...] = ("", *COLOUR_NAMES)
    backgrounds: tuple[str, ...] = BACKGROUND_NAMES


class Maps(NamedTuple):
    """Outputs of the network: logits, and positions in cells (centre minus cell centre: x, y; natural log of the side)."""

    classes_BKhw: Tensor
    colours_BChw: Tensor
    places_B3hw: Tensor
    backgrounds_BG: Tensor


def _conv(width_in: int, width_out: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(width_in, width_out, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width_out))


class Block(nn.Module):
    """Two 3x3 convs and the input, then ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _conv(width, width)
        self.second = _conv(width, width)

    def forward(self, x_BDhw: Tensor) -> Tensor:
        return F.relu(x_BDhw + self.second(F.relu(self.first(x_BDhw))))


class Judge(nn.Module):
    """A one-scale detector: every cell within 8 pixels of an object's centre predicts its class, colour and position.

    An object is detected where four neighbouring cells agree on its class: the score is the mean of their four
    probabilities, which is low for an incomplete object.
    """

    def __init__(self, config: JudgeConfig = JudgeConfig()) -> None:
        super().__init__()
        self.config = config
        width_in = 12  # 2 x 2 pixels of 3 channels: half the resolution at no cost
        stages: list[nn.Module] = [nn.PixelUnshuffle(2)]
        for depth, (width, blocks) in enumerate(zip(config.widths, config.blocks, strict=True)):
            stages += [_conv(width_in, width, 1 if depth == 0 else 2), nn.ReLU()]
            stages += [Block(width) for _ in range(blocks)]
            width_in = width
        self.trunk = nn.Sequential(*stages)
        self.neck = nn.Sequential(_conv(width_in, width_in), nn.ReLU())
        self.classes = nn.Conv2d(width_in, len(config.classes), 1)
        self.colours = nn.Conv2d(width_in, len(config.colours), 1)
        self.places = nn.Conv2d(width_in, 3, 1)
        self.backgrounds = nn.Linear(2 * width_in, len(config.backgrounds))
        assert self.classes.bias is not None
        nn.init.constant_(self.classes.bias, -5.0)  # almost all cells are background

    def forward(self, images_B3HW: Tensor) -> Maps:
        """Pictures in [0, 1], float [B, 3, H, W] with H and W multiples of 8 -> the prediction of each cell."""
        x_BDhw = self.trunk(images_B3HW * 2 - 1)
        cells_BDhw = self.neck(x_BDhw)
        return Maps(
            self.classes(cells_BDhw),
            self.colours(cells_BDhw),
            self.places(cells_BDhw),
            self.backgrounds(_pooled(x_BDhw)),
        )

    def look(self, images: np.ndarray | Sequence[np.ndarray]) -> list[Seen]:
        """The detected contents of each image.

        ``images``: uint8 [N, S, S, 3], or a list of [S, S, 3]; S at most ``config.side`` (smaller images are padded with
        the colour of their border, so that objects keep their size in pixels) or a multiple of it (squares of pixels are averaged).
        Raises ValueError for anything else.
        """
        seen: list[Seen] = []
        for batch_B3HW, side in self._batches(images):
            maps = Maps(*(m.float() for m in self(batch_B3HW)))
            seen += _decode(maps, self.config, side)
        return seen

    def features(self, images: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """Mean and maximum over the cells of the trunk's last activations, float32 [N, F]; for a Fréchet distance."""
        rows = [_pooled(self.trunk(batch_B3HW * 2 - 1)).float().cpu() for batch_B3HW, _ in self._batches(images)]
        return torch.cat(rows).numpy() if rows else np.zeros((0, self.backgrounds.in_features), dtype=np.float32)

    def _batches(self, images: np.ndarray | Sequence[np.ndarray]) -> Iterator[tuple[Tensor, int]]:
        """Padded batches, each with the original side of its pictures; the module is in eval mode meanwhile."""
        device, training = self.classes.weight.device, self.training
        self.eval()
        try:
            with torch.inference_mode():
                for start in range(0, len(images), _BATCH):
                    batch, side = _framed(images[start : start + _BATCH], self.config.side)
                    yield torch.from_numpy(batch).to(device).permute(0, 3, 1, 2).float().div(255), side
        finally:
            self.train(training)


def _framed(images: np.ndarray | Sequence[np.ndarray], side: int) -> tuple[np.ndarray, int]:
    """uint8 [B, side, side, 3] with the pictures in the top left corner, and their original side."""
    batch = np.stack(list(images))
    if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[1] != batch.shape[2] or batch.shape[3] != 3:
        raise ValueError(f"expected uint8 pictures [N, S, S, 3], got {batch.dtype} {list(batch.shape)}")
    came = batch.shape[1]
    if came > side and came % side:
        raise ValueError(
            f"expected pictures of at most {side} pixels per side or a multiple of {side}, got {came}; resize them first"
        )
    if came > side:
        batch = batch.reshape(len(batch), side, came // side, side, came // side, 3).mean((2, 4))
        return (batch + 0.5).astype(np.uint8), side
    if came == side:
        return batch, came
    rim = np.concatenate([batch[:, 0], batch[:, -1], batch[:, :, 0], batch[:, :, -1]], axis=1)
    framed = np.empty((len(batch), side, side, 3), dtype=np.uint8)
    framed[:] = np.median(rim, axis=1).astype(np.uint8)[:, None, None]
    framed[:, :came, :came] = batch
    return framed, came


def _pooled(x_BDhw: Tensor) -> Tensor:
    return torch.cat([x_BDhw.mean((2, 3)), x_BDhw.amax((2, 3))], dim=1)


def _decode(maps: Maps, config: JudgeConfig, side: int) -> list[Seen]:
    """Peaks of the score over all 2 x 2 windows of cells, their positions in pictures of ``side`` pixels."""
    agreed_BKhw = F.avg_pool2d(maps.classes_BKhw.sigmoid(), 2, stride=1)
    score_Bhw, kind_Bhw = agreed_BKhw.max(dim=1)
    peak_Bhw = (score_Bhw == F.max_pool2d(score_Bhw[:, None], 3, stride=1, padding=1)[:, 0]) & (
        score_Bhw >= config.threshold
    )
    colour_Bhw = F.avg_pool2d(maps.colours_BChw.log_softmax(1), 2, stride=1).argmax(1)
    place_B3hw = F.avg_pool2d(_absolute(maps.places_B3hw), 2, stride=1) * (CELL / side)
    found: list[list[Found]] = [[] for _ in range(len(score_Bhw))]
    for b, row, column in peak_Bhw.nonzero().tolist():
        x, y, extent = place_B3hw[b, :, row, column].tolist()
        found[b].append(
            Found(
                name=config.classes[int(kind_Bhw[b, row, column])],
                colour=config.colours[int(colour_Bhw[b, row, column])],
                box=(x - extent / 2, y - extent / 2, x + extent / 2, y + extent / 2),
                score=float(score_Bhw[b, row, column]),
            )
        )
    backgrounds = [config.backgrounds[i] for i in maps.backgrounds_BG.argmax(1).tolist()]
    return [Seen(objects=_apart(f, config.overlap), background=g) for f, g in zip(found, backgrounds, strict=True)]


def _absolute(places_B3hw: Tensor) -> Tensor:
    """Per cell: centre x, centre y and side of its object, in cells from the top left corner."""
    rows, columns = places_B3hw.shape[2:]
    y_h = torch.arange(rows, device=places_B3hw.device) + 0.5
    x_w = torch.arange(columns, device=places_B3hw.device) + 0.5
    x_Bhw, y_Bhw, size_Bhw = places_B3hw.unbind(1)
    return torch.stack([x_Bhw + x_w, y_Bhw + y_h[:, None], size_Bhw.exp()], dim=1)


def _apart(found: list[Found], overlap: float) -> tuple[Found, ...]:
    """Non-maximum suppression: the highest-scoring objects, no two of which share more than ``overlap`` of the smaller box."""
    kept: list[Found] = []
    for obj in sorted(found, key=lambda f: -f.score):
        if all(shared(obj.box, other.box) <= overlap for other in kept):
            kept.append(obj)
    return tuple(kept)


def shared(a: Box, b: Box) -> float:
    """Intersection of two boxes divided by the area of the smaller one."""
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return max(wide, 0) * max(high, 0) / max(smaller, 1e-9)


def save_judge(judge: Judge, path: Path) -> None:
    """Weights in bfloat16 with the config beside them, one safetensors file."""
    state = {
        k: v.detach().cpu().bfloat16().contiguous() for k, v in judge.state_dict().items() if v.is_floating_point()
    }
    write_tensors(path, state, {"config": json.dumps(asdict(judge.config))})


def read_judge(path: Path) -> Judge:
    """The judge that ``save_judge`` wrote, float32, on the CPU, in eval mode."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as f:
        fields = json.loads(f.metadata()["config"])
        state = {k: f.get_tensor(k).float() for k in f.keys()}
    fixed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    config = JudgeConfig(**fixed)
    judge = Judge(config)
    counters = {k: v for k, v in judge.state_dict().items() if not v.is_floating_point()}
    judge.load_state_dict(state | counters)
    return judge.eval()


@lru_cache(maxsize=1)
def load_judge() -> Judge:
    """The shipped judge (CPU, float32, eval mode). It is loaded once and shared."""
    with as_file(files("unmask.evaluation") / "assets" / "judge.safetensors") as path:
        return read_judge(path)
