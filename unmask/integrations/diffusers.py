"""Pipelines as the library diffusers has them, for text-to-image, editing by instruction and inpainting.

Public idea: ``UnmaskPipeline.from_pretrained("mini")("a red apple", generator=torch.Generator().manual_seed(7)).images``. The pictures are
those of ``unmask.load("mini").generate("a red apple", seed=7)``, bit for bit; ``unmask.integrations.seeds`` says which seed a generator
means. Arguments with the names of diffusers take the values that they have in this package: ``guidance_scale=0`` turns guidance off, and a
value of s is 1 + s in the formula of diffusers. None leaves an argument as the model has it.

``callback_on_step_end(pipeline, step, timestep, tensors)`` is called after every step with the fraction of tokens that are still masked as
its time step, 1 to 0. ``tensors["latents"]`` are the image tokens, [B, h, w] with -1 where they are masked: a copy, to look at. A callback
that sets ``pipeline._interrupt = True`` ends the call with the pictures as they stand.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from unmask.checkpoints.device import AUTO, find_device
from unmask.checkpoints.elastic import BRANCHES, EVERYTHING, WeightStorage
from unmask.integrations import missing
from unmask.integrations.frames import Frame, canvases, watched
from unmask.integrations.pictures import OUTPUTS, Pictures, converted, paired, pictures, texts
from unmask.integrations.seeds import consecutive, seeds_of
from unmask.pipeline.exporting import export_like
from unmask.pipeline.loading import read_spec
from unmask.pipeline.model import Model
from unmask.pipeline.opening import load
from unmask.sampling.fast import EXACT, Fast
from unmask.tasks.results import Drawing
from unmask.tokens.layouts import Layout

try:
    from diffusers import DiffusionPipeline, ImagePipelineOutput
except ModuleNotFoundError as error:
    raise missing("diffusers", "diffusers") from error

OnStepEnd = Callable[[Any, int, float, dict[str, Tensor]], Mapping[str, Tensor] | None]
Generators = torch.Generator | Sequence[torch.Generator] | None
Draw = Callable[[Model, int, int, int], Sequence[Drawing]]
_LATENTS = ["latents"]


class _Interrupted(Exception):
    """A callback ended the call. ``codes``: as of ``Frame``."""

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.codes = codes


@dataclass(frozen=True, kw_only=True)
class _Call:
    """What the three pipelines do alike: how pictures are followed and returned."""

    output_type: str
    return_dict: bool
    callback: OnStepEnd | None
    tensors: Sequence[str]

    def __post_init__(self) -> None:
        if self.output_type not in OUTPUTS:
            raise ValueError(f"output_type {self.output_type!r} is not known; use one of {', '.join(OUTPUTS)}")
        if wrong := [name for name in self.tensors if name not in _LATENTS]:
            raise ValueError(f"callback_on_step_end_tensor_inputs has {wrong[0]!r}; the only tensor is 'latents'")

    def output(self, images: list[Image.Image]) -> Any:
        made = converted(images, self.output_type)
        return ImagePipelineOutput(images=made) if self.return_dict else (made,)


class _OneModel(DiffusionPipeline):
    """A pipeline with one component, a model of this package."""

    _callback_tensor_inputs = _LATENTS

    def __init__(self, model: Model) -> None:
        super().__init__()
        if not isinstance(model, Model):
            raise TypeError(f"{type(self).__name__} needs a model that draws, got {type(model).__name__}")
        self.register_modules(model=model)
        self._interrupt = False

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        device_map: str = "cpu",
        local_files_only: bool = False,
        storage: WeightStorage | None = None,
        lora: str | Sequence[str] = (),
        speed: str | Fast = EXACT,
    ) -> Any:
        """A pipeline of any model that ``unmask.load`` opens and that draws.

        ``dtype`` (or ``torch_dtype``): of the network, None as stored · ``device_map``: the device by name, or "auto" for the best one ·
        ``local_files_only``: do not download models of the hub · ``storage``, ``lora``, ``speed``: as of ``unmask.load``.
        """
        kind = dtype or torch_dtype
        held = replace(storage or WeightStorage(), dtype=kind) if kind else storage
        name, download = pretrained_model_name_or_path, not local_files_only
        opened: Any = load(name, device=device_map, storage=held, lora=lora, speed=speed, download=download)
        return cls(opened)

    @classmethod
    def from_pipe(cls, pipeline: Any) -> Any:
        """A pipeline of another task with the same model, which is not loaded again."""
        return cls(pipeline.model)

    def save_pretrained(self, save_directory: str | os.PathLike[str], safe_serialization: bool = True) -> None:
        """Write the model as a folder that ``from_pretrained`` and ``unmask.load`` open, in the layout that it was read from.

        ValueError for quantised weights and for a network with adapters, which have no such layout.
        """
        if not safe_serialization:
            raise ValueError("weights are saved as safetensors only; leave out safe_serialization")
        weights = _weights(self.model)
        self.model.parts.require(EVERYTHING)
        state = self.model.parts.net.state_dict()
        if state.keys() - weights.checkpoint.net.keys() or weights.checkpoint.net.keys() - state.keys():
            raise ValueError("quantised weights and adapters cannot be saved; load the model without them")
        export_like(read_spec(weights.checkpoint.place), state, Path(save_directory))

    def to(self, *args: Any, device: Any = None, dtype: Any = None) -> Any:
        """This pipeline on another device or with another data type; the model is read again from its folder."""
        for given in args:
            device, dtype = (device, given) if isinstance(given, torch.dtype) else (given, dtype)
        wanted = torch.device(self.device if device is None else find_device(device))
        elsewhere = wanted.type != self.device.type or wanted.index not in (None, self.device.index)
        if elsewhere or dtype not in (None, self.dtype):
            storage = _weights(self.model).storage
            self._reopen(str(wanted), storage if dtype is None else replace(storage, dtype=dtype))
        return self

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        """Keep the matrices of all layers on the CPU and copy them to the device layer by layer (``WeightStorage.offload``).

        ``device``: None for the GPU ``gpu_id``, or for the best device; ValueError where there is none but the CPU.
        """
        place = find_device(device or (AUTO if gpu_id is None else f"cuda:{gpu_id}"))
        if place == "cpu" and device is None:
            raise ValueError("offloading needs a GPU, and this machine has none; leave it out")
        weights = _weights(self.model)
        there = BRANCHES if weights.checkpoint.config.gen_width else BRANCHES[:1]
        self._reopen(place, replace(weights.storage, offload=frozenset(there)))

    enable_sequential_cpu_offload = enable_model_cpu_offload

    def _reopen(self, device: str, storage: WeightStorage) -> None:
        old, weights = self.model, _weights(self.model)
        stored = weights.checkpoint.net.keys()
        if not weights.storage.quantise and old.parts.net.state_dict().keys() - stored:
            raise ValueError("a model with adapters cannot be moved; give device_map and storage to from_pretrained")
        opened: Any = load(weights.checkpoint.place, device=device, storage=storage)
        self.model = Model(opened.parts, old.presets)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.parts.net.embed.weight.dtype

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    def preview(self, latents: Tensor) -> list[Image.Image]:
        """The pictures of tokens [B, h, w] as a callback gets them, masked tokens as grey tiles."""
        return canvases(self.model, latents)

    def _drawn(self, draw: Draw, seeds: list[list[int]], call: _Call) -> Any:
        """The output of a call. ``draw(model, row, seed, n)``: ``n`` pictures of prompt ``row`` with consecutive seeds."""
        images, self._interrupt = list[Image.Image](), False
        with _Progress(self, call) as progress:
            model = watched(self.model, progress.on_frame)
            try:
                for row, of_row in enumerate(seeds):
                    for seed, n in consecutive(of_row):
                        images += [drawing.image for drawing in draw(model, row, seed, n)]
            except _Interrupted as stopped:
                images += self.preview(stopped.codes)
        return call.output(images)


class _Progress:
    """The progress bar and the callback of a call. A run of the sampler after another one (further prompts, attempts) begins a new bar."""

    def __init__(self, pipeline: _OneModel, call: _Call) -> None:
        self.pipeline, self.call, self.bar = pipeline, call, None

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def on_frame(self, frame: Frame) -> None:
        if frame.number == 1 or self.bar is None:
            self.__exit__()
            self.bar: Any = self.pipeline.progress_bar(total=frame.of)
        self.bar.update(frame.number - self.bar.n)
        if self.call.callback:
            tensors = {"latents": frame.codes} if "latents" in self.call.tensors else {}
            self.call.callback(self.pipeline, frame.number - 1, frame.masked, tensors)
        if self.pipeline.interrupt:
            raise _Interrupted(frame.codes)


class UnmaskPipeline(_OneModel):
    """Text to image."""

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = tuple(_LATENTS),
        plan: bool | Layout | None = None,
        attempts: int | None = None,
        settings: Sequence[str] = (),
    ) -> Any:
        """``num_images_per_prompt`` pictures of every prompt. ``output_type``: "pil", "np" [B, H, W, 3] or "pt" [B, 3, H, W] in 0..1.

        ``height``, ``width``: in pixels, of models that draw any shape · ``temperature``, ``plan``, ``attempts``, ``settings``: as of
        ``Model.generate``.
        """
        call = _Call(
            output_type=output_type, return_dict=return_dict, callback=callback_on_step_end,
            tensors=callback_on_step_end_tensor_inputs,
        )  # fmt: skip
        prompts = texts(prompt)
        side = self.model.parts.side
        size = (width or side, height or side)

        def draw(model: Model, row: int, seed: int, n: int) -> Sequence[Drawing]:
            return model.generate(
                prompts[row], n=n, seed=seed, size=None if size == (side, side) else size, steps=num_inference_steps,
                guidance_scale=guidance_scale, temperature=temperature, plan=plan, attempts=attempts, settings=settings,
            )  # fmt: skip

        return self._drawn(draw, seeds_of(generator, len(prompts), num_images_per_prompt), call)


class UnmaskEditPipeline(_OneModel):
    """A picture and an instruction to the changed picture."""

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        image: Pictures,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = tuple(_LATENTS),
        plan: bool | Layout = False,
        attempts: int = 1,
        settings: Sequence[str] = (),
    ) -> Any:
        """``prompt``: the instruction, or one for every picture · ``image``: a picture, or one for every instruction; tensors [3, H, W]
        or [B, 3, H, W] are in 0..1 · the other arguments are those of ``UnmaskPipeline`` and of ``Model.edit``.
        """
        call = _Call(
            output_type=output_type, return_dict=return_dict, callback=callback_on_step_end,
            tensors=callback_on_step_end_tensor_inputs,
        )  # fmt: skip
        prompts, images = paired(texts(prompt), pictures(image), "image")

        def draw(model: Model, row: int, seed: int, n: int) -> Sequence[Drawing]:
            return model.edit(
                images[row], prompts[row], n=n, seed=seed, steps=num_inference_steps, guidance_scale=guidance_scale,
                temperature=temperature, plan=plan, attempts=attempts, settings=settings,
            )  # fmt: skip

        return self._drawn(draw, seeds_of(generator, len(prompts), num_images_per_prompt), call)


class UnmaskInpaintPipeline(_OneModel):
    """The white part of a mask drawn anew, so that the whole picture shows the prompt."""

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        image: Pictures,
        mask_image: Pictures,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = tuple(_LATENTS),
        settings: Sequence[str] = (),
    ) -> Any:
        """``mask_image``: as large as the picture, white where it is drawn anew; a tensor has the shape [1, H, W] or [3, H, W] · the
        other arguments are those of ``UnmaskEditPipeline`` and of ``Model.infill``.
        """
        call = _Call(
            output_type=output_type, return_dict=return_dict, callback=callback_on_step_end,
            tensors=callback_on_step_end_tensor_inputs,
        )  # fmt: skip
        prompts, images = paired(texts(prompt), pictures(image), "image")
        prompts, masks = paired(prompts, pictures(mask_image), "mask_image")
        _, images = paired(prompts, images, "image")

        def draw(model: Model, row: int, seed: int, n: int) -> Sequence[Drawing]:
            return [
                model.infill(
                    images[row], masks[row], prompt=prompts[row], seed=seed + i, steps=num_inference_steps,
                    guidance_scale=guidance_scale, temperature=temperature, settings=settings,
                )
                for i in range(n)
            ]  # fmt: skip

        return self._drawn(draw, seeds_of(generator, len(prompts), num_images_per_prompt), call)


def _weights(model: Model) -> Any:
    """Where a model came from. ValueError for one that was not read from a folder."""
    if model.parts.weights is None:
        raise ValueError("this model was not read from a folder; use a pipeline of from_pretrained")
    return model.parts.weights
