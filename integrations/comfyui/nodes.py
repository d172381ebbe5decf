"""The nodes. Pictures are those of the same call of ``unmask.load`` with the same seed.

An IMAGE of ComfyUI is a float tensor [B, H, W, C] in 0..1, a MASK [B, H, W] with 1 where it applies. Boxes travel as a STRING, one object
a line, as fractions of the picture: ``red apple: 0.1,0.2,0.5,0.6``. While a picture is drawn, its node shows the canvas after every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from PIL import Image
from torch import Tensor

import unmask
from unmask.checkpoints.elastic import WeightStorage
from unmask.integrations.frames import Frame, canvases, in_a_row, watched
from unmask.integrations.pictures import converted, pictures
from unmask.pipeline.drawing import layouts_of
from unmask.pipeline.model import Model
from unmask.tasks.reflecting import Thinking
from unmask.tasks.results import Drawing
from unmask.tokens.layouts import layout_in, layout_of, layout_text
from unmask.tokens.pictures import draw_boxes

MODEL = "UNMASK_MODEL"
STORED = "as stored"
_PREVIEW = 512  # pixels of the longer side of a preview
_SEED = ("INT", {"default": 0, "min": 0, "max": 2**32 - 1, "control_after_generate": True})
_SAMPLER = {
    "steps": ("INT", {"default": 0, "min": 0, "max": 1024, "tooltip": "0: the model's own number"}),
    "guidance_scale": (
        "FLOAT", {"default": -1.0, "min": -1.0, "max": 30.0, "step": 0.1, "tooltip": "0: off; -1: the model's own"},
    ),
    "temperature": (
        "FLOAT", {"default": -1.0, "min": -1.0, "max": 5.0, "step": 0.05, "tooltip": "-1: the model's own"},
    ),
}  # fmt: skip
_COUNT = ("INT", {"default": 1, "min": 1, "max": 16, "tooltip": "pictures, with consecutive seeds"})
_BOXES = ("STRING", {"forceInput": True, "tooltip": "one object a line: red apple: 0.1,0.2,0.5,0.6"})


def _text(default: str = "") -> tuple[str, dict[str, Any]]:
    return ("STRING", {"default": default, "multiline": True})


class _Node:
    """What all nodes have."""

    CATEGORY = "unmask"
    FUNCTION = "run"


class Load(_Node):
    DESCRIPTION = "Opens a model that draws: mini, a folder, or owner/name on the Hugging Face hub."
    RETURN_TYPES = (MODEL,)
    RETURN_NAMES = ("model",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "name": ("STRING", {"default": "mini"}),
                "device": (["auto", "cpu", "cuda", "mps"],),
                "dtype": ([STORED, "float32", "bfloat16", "float16"],),
                "speed": (["exact", "fast"],),
                "download": ("BOOLEAN", {"default": False, "tooltip": "from the hub, if it is not in the cache"}),
            }
        }

    def run(self, name: str, device: str, dtype: str, speed: str, download: bool) -> tuple[Model]:
        storage = None if dtype == STORED else WeightStorage(dtype=getattr(torch, dtype))
        opened = unmask.load(name, device=device, storage=storage, speed=speed, download=download)
        if not isinstance(opened, Model):
            raise ValueError(f"{name} is a text model, which draws nothing; use a model that draws")
        return (opened,)


class Plan(_Node):
    DESCRIPTION = (
        "The boxes of a prompt's objects. Empty boxes: the model plans them, and they can then be edited here."
    )
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("boxes",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": (MODEL,), "prompt": _text(), "seed": _SEED, "boxes": _text()}}

    def run(self, model: Model, prompt: str, seed: int, boxes: str) -> dict[str, Any]:
        if boxes.strip():
            layout = layout_in(boxes)
        else:
            (layout,) = layouts_of(model, model.parts.wording.read(prompt), [seed], Thinking(plan=True), None)
        if not (layout and layout.objects):
            raise ValueError(f"the model planned no boxes for {prompt!r}; write them, or draw without a plan")
        planned = layout_text(layout)
        return {"ui": {"boxes": [planned]}, "result": (planned,)}  # web/boxes.js writes them into the node


class Draw(_Node):
    DESCRIPTION = "Draws pictures of a prompt; with boxes, from this layout."
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("images", "report")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        attempts = ("INT", {"default": 0, "min": 0, "max": 16, "tooltip": "best of so many; 0: the model's own number"})
        needed = {"model": (MODEL,), "prompt": _text("a red apple"), "seed": _SEED, "count": _COUNT}
        return {"required": {**needed, **_SAMPLER, "attempts": attempts}, "optional": {"boxes": _BOXES}}

    def run(
        self, model: Model, prompt: str, seed: int, count: int, steps: int, guidance_scale: float, temperature: float,
        attempts: int, boxes: str = "",
    ) -> tuple[Tensor, str]:  # fmt: skip
        plan = layout_in(boxes) if boxes.strip() else None
        options = {**_options(steps, guidance_scale, temperature), "attempts": attempts or None, "plan": plan}
        return _shown(_live(model).generate(prompt, n=count, seed=seed, **options))


class Edit(_Node):
    DESCRIPTION = "Changes pictures as an instruction says. The result has the model's own size."
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("images", "report")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        needed = {"model": (MODEL,), "image": ("IMAGE",), "instruction": _text(), "seed": _SEED, "count": _COUNT}
        return {"required": {**needed, **_SAMPLER}}

    def run(
        self, model: Model, image: Tensor, instruction: str, seed: int, count: int, steps: int, guidance_scale: float,
        temperature: float,
    ) -> tuple[Tensor, str]:  # fmt: skip
        options = {"n": count, "seed": seed, **_options(steps, guidance_scale, temperature)}
        live = _live(model)
        return _shown([drawing for one in images_of(image) for drawing in live.edit(one, instruction, **options)])


class Inpaint(_Node):
    DESCRIPTION = "Draws the masked part of pictures anew, so that the whole shows the prompt."
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("images", "report")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        needed = {"model": (MODEL,), "image": ("IMAGE",), "mask": ("MASK",), "prompt": _text(), "seed": _SEED}
        return {"required": {**needed, **_SAMPLER}}

    def run(
        self, model: Model, image: Tensor, mask: Tensor, prompt: str, seed: int, steps: int, guidance_scale: float,
        temperature: float,
    ) -> tuple[Tensor, str]:  # fmt: skip
        options = {"prompt": prompt, "seed": seed, **_options(steps, guidance_scale, temperature)}
        live, images = _live(model), images_of(image)
        regions = regions_of(mask, images[0].size)
        if len(regions) not in (1, len(images)) and len(images) > 1:
            raise ValueError(f"{len(regions)} masks came with {len(images)} pictures; give as many, or one of either")
        rows = max(len(images), len(regions))
        images, regions = images * (rows // len(images)), regions * (rows // len(regions))
        return _shown([live.infill(*pair, **options) for pair in zip(images, regions, strict=True)])


class Ask(_Node):
    DESCRIPTION = "Answers a question about the first picture."
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("answer",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"model": (MODEL,), "question": _text("what is it?"), "seed": _SEED},
            "optional": {"image": ("IMAGE",)},
        }

    def run(self, model: Model, question: str, seed: int, image: Tensor | None = None) -> tuple[str]:
        picture = None if image is None else images_of(image)[0]
        return (model.ask(picture, question, seed=seed).text,)


class Ground(_Node):
    DESCRIPTION = "Finds an object for every line of phrases: masks that are 1 inside the boxes, one for every picture and phrase."
    RETURN_TYPES = ("MASK", "IMAGE", "STRING")
    RETURN_NAMES = ("masks", "shown", "boxes")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": (MODEL,), "image": ("IMAGE",), "phrases": _text("the apple")}}

    def run(self, model: Model, image: Tensor, phrases: str) -> tuple[Tensor, Tensor, str]:
        wanted = [line.strip() for line in phrases.splitlines() if line.strip()]
        masks, shown, texts = [], [], []
        for picture in images_of(image):
            boxes = model.ground(picture, wanted).boxes
            masks += [_inside(box.corners, picture.size) for box in boxes]
            shown.append(draw_boxes(picture, [(box.phrase, box.corners) for box in boxes]))
            texts.append(_fractions([(box.phrase, box.corners) for box in boxes], picture.size))
        return torch.stack(masks), _tensor(shown), "\n".join(texts)


NODE_CLASS_MAPPINGS = {f"Unmask{node.__name__}": node for node in (Load, Plan, Draw, Edit, Inpaint, Ask, Ground)}
NODE_DISPLAY_NAME_MAPPINGS = {name: name.replace("Unmask", "unmask: ") for name in NODE_CLASS_MAPPINGS}


def images_of(image: Tensor) -> list[Image.Image]:
    """An IMAGE [B, H, W, C] as Pillow images in RGB; transparency is left out."""
    return [one for one in pictures(image[..., :3].movedim(-1, 1)) if isinstance(one, Image.Image)]


def regions_of(mask: Tensor, size: tuple[int, int]) -> list[Image.Image]:
    """A MASK [B, H, W] or [H, W] as Pillow images of a size, white where it is at least 0.5."""
    values = ((mask if mask.ndim == 3 else mask[None]).float().cpu() >= 0.5).numpy().astype(np.uint8) * 255
    return [Image.fromarray(one).resize(size, Image.Resampling.NEAREST) for one in values]


def _live(model: Model) -> Model:
    """The model with the same results, whose pictures are shown by the node that runs, and which ends when the user cancels."""
    bars: list[Any] = []

    def show(frame: Frame) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if frame.number == 1 or not bars:  # a further run: another picture, another attempt
            bars[:] = [comfy.utils.ProgressBar(frame.of)]
        bars[0].update_absolute(frame.number, frame.of, ("JPEG", in_a_row(canvases(model, frame.codes)), _PREVIEW))

    return watched(model, show)


def _options(steps: int, guidance_scale: float, temperature: float) -> dict[str, Any]:
    """The sampler's options; None leaves one as the model has it."""
    return {
        "steps": steps or None,
        "guidance_scale": None if guidance_scale < 0 else guidance_scale,
        "temperature": None if temperature < 0 else temperature,
    }


def _shown(drawings: Sequence[Drawing]) -> tuple[Tensor, str]:
    """An IMAGE, and one line a picture: its seed, its layout and what the model says about the prompt."""
    lines = []
    for drawing in drawings:
        planned = [layout_text(drawing.plan).replace("\n", "; ")] if drawing.plan else []
        lines.append(" · ".join([f"seed {drawing.seed}", *planned, *drawing.warnings]))
    return _tensor([drawing.image for drawing in drawings]), "\n".join(lines)


def _tensor(images: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size as an IMAGE [B, H, W, 3]."""
    return converted(images, "pt").movedim(1, -1).contiguous()


def _inside(corners: Sequence[float], size: tuple[int, int]) -> Tensor:
    """A mask [H, W] that is 1 inside a box; at least one pixel."""
    x1, y1 = (min(int(v), side - 1) for v, side in zip(corners[:2], size, strict=True))
    x2, y2 = round(corners[2]), round(corners[3])
    mask = torch.zeros(size[1], size[0])
    mask[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)] = 1
    return mask


def _fractions(boxes: Sequence[tuple[str, Sequence[float]]], size: tuple[int, int]) -> str:
    """Boxes in pixels as the text that Plan and Draw read. A box without an area, which no layout holds, is left out."""
    wide, high = size
    inside = [
        (phrase, tuple(min(max(v / of, 0.0), 1.0) for v, of in zip(box, (wide, high, wide, high), strict=True)))
        for phrase, box in boxes
    ]
    there = [(phrase, box) for phrase, box in inside if box[0] < box[2] and box[1] < box[3]]
    return layout_text(layout_of(there)) if there else ""
