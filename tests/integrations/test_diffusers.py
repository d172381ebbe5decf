"""Pipelines for diffusers, with the real library: the pictures are those of ``unmask.load``. Run by ``make test-integrations``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import unmask
from unmask.pipeline.convert import to_released
from unmask.pipeline.model import Model

diffusers = pytest.importorskip("diffusers")
pipelines: Any = pytest.importorskip("unmask.integrations.diffusers")

FAST: dict[str, Any] = {"num_inference_steps": 3, "output_type": "np"}
PICTURE = Image.new("RGB", (128, 128), (250, 250, 250))


@pytest.fixture(scope="module")
def pipe() -> Any:
    made = pipelines.UnmaskPipeline.from_pretrained("mini")
    made.set_progress_bar_config(disable=True)
    return made


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def arrays(drawings: Any) -> np.ndarray:
    return np.stack([np.asarray(drawing.image) for drawing in drawings]).astype(np.float32) / 255


def test_it_is_a_pipeline_of_the_library(pipe: Any) -> None:
    assert isinstance(pipe, diffusers.DiffusionPipeline)
    assert list(pipe.components) == ["model"] and pipe.components["model"] is pipe.model
    assert pipe.device == torch.device("cpu") and pipe.dtype == torch.float32
    assert type(pipelines.UnmaskEditPipeline.from_pipe(pipe)) is pipelines.UnmaskEditPipeline
    assert pipelines.UnmaskInpaintPipeline(**pipe.components).model is pipe.model


def test_pictures_of_a_seed_are_those_of_the_model(pipe: Any, model: Model) -> None:
    """With all defaults: a plan, and a second attempt where the first is rejected."""
    drawn = pipe("a red apple", generator=seeded(7), num_images_per_prompt=2, output_type="pil").images
    same = model.generate("a red apple", n=2, seed=7)
    assert [image.tobytes() for image in drawn] == [drawing.image.tobytes() for drawing in same]


def test_options_are_those_of_the_model(pipe: Any, model: Model) -> None:
    options: dict[str, Any] = {"guidance_scale": 3.0, "temperature": 0.9, "plan": False, "attempts": 1}
    drawn = pipe(["a cat", "a dog"], generator=seeded(3), num_images_per_prompt=2, width=128, **options, **FAST).images
    same = arrays(model.generate(["a cat", "a dog"], n=2, seed=3, steps=3, **options))
    assert drawn.shape == (4, 128, 128, 3) and np.array_equal(drawn, same)
    plain = pipe(
        ["a cat", "a dog"], generator=seeded(3), num_images_per_prompt=2, **{**options, "guidance_scale": 0.0}, **FAST
    )
    assert not np.array_equal(plain.images, same)


def test_a_generator_for_every_picture(pipe: Any, model: Model) -> None:
    plain: dict[str, Any] = {"plan": False, "attempts": 1}
    several = [seeded(5), seeded(9), seeded(10)]
    drawn = pipe("a cat", generator=several, num_images_per_prompt=3, **plain, **FAST).images
    same = [model.generate("a cat", seed=seed, steps=3, **plain)[0] for seed in (5, 9, 10)]
    assert np.array_equal(drawn, arrays(same))
    with pytest.raises(ValueError, match="2 generators were given for 3 pictures"):
        pipe("a cat", generator=several[:2], num_images_per_prompt=3)


def test_a_generator_moves_on_and_a_global_seed_counts(pipe: Any) -> None:
    plain: dict[str, Any] = {"plan": False, "attempts": 1, **FAST}
    generator = seeded(5)
    first, second = (pipe("a cat", generator=generator, **plain).images for _ in range(2))
    assert not np.array_equal(first, second)
    torch.manual_seed(1)
    one, two = (pipe("a cat", **plain).images for _ in range(2))
    torch.manual_seed(1)
    assert np.array_equal(one, pipe("a cat", **plain).images) and not np.array_equal(one, two)


def test_the_kinds_of_output(pipe: Any) -> None:
    call: dict[str, Any] = {"prompt": "a cat", "num_inference_steps": 2, "plan": False, "attempts": 1}
    (pil,) = pipe(**call, generator=seeded(1), output_type="pil", return_dict=False)
    values = pipe(**call, generator=seeded(1), output_type="pt").images
    assert values.shape == (1, 3, 128, 128) and values.dtype == torch.float32
    assert np.array_equal((values[0].permute(1, 2, 0) * 255).round().byte().numpy(), np.asarray(pil[0]))
    assert type(pipe(**call)).__name__ == "ImagePipelineOutput"
    with pytest.raises(ValueError, match="output_type 'latent' is not known; use one of pil, np, pt"):
        pipe(**call, output_type="latent")


def test_a_callback_sees_every_step(pipe: Any) -> None:
    seen: list[tuple[int, float, torch.Tensor]] = []

    def watch(pipeline: Any, step: int, timestep: float, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        assert pipeline is pipe
        seen.append((step, timestep, tensors["latents"]))
        return tensors

    call: dict[str, Any] = {"num_inference_steps": 4, "num_images_per_prompt": 2, "plan": False, "attempts": 1}
    watched = pipe("a cat", generator=seeded(1), callback_on_step_end=watch, **call).images
    assert [step for step, _, _ in seen] == [0, 1, 2, 3]
    assert [share for _, share, _ in seen] == sorted({share for _, share, _ in seen}, reverse=True)
    assert seen[-1][1] == 0 and seen[0][2].shape == (2, 8, 8) and (seen[0][2] == -1).any()
    assert [p.tobytes() for p in pipe.preview(seen[-1][2])] == [p.tobytes() for p in watched]
    assert pipe.preview(seen[0][2])[0].size == (128, 128)
    with pytest.raises(ValueError, match="the only tensor is 'latents'"):
        pipe("a cat", callback_on_step_end=watch, callback_on_step_end_tensor_inputs=["prompt_embeds"])


def test_a_callback_can_end_the_call(pipe: Any) -> None:
    steps: list[int] = []

    def stop(pipeline: Any, step: int, timestep: float, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        steps.append(step)
        pipeline._interrupt = step == 1
        return tensors

    drawn = pipe("a cat", num_inference_steps=6, plan=False, attempts=1, callback_on_step_end=stop).images
    assert steps == [0, 1] and len(drawn) == 1 and drawn[0].size == (128, 128)
    assert len(pipe("a cat", plan=False, attempts=1, **FAST).images) == 1  # the next call runs to its end


def test_the_progress_bar(pipe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pipe.set_progress_bar_config(desc="drawing", leave=True)
    pipe("a cat", plan=False, attempts=1, **FAST)
    shown = capsys.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    assert "drawing: 100%" in shown and "3/3" in shown
    pipe("a cat", plan=False, attempts=1, **FAST)
    assert not capsys.readouterr().err
    totals = list[int]()

    class Bar(type(pipe.progress_bar(total=1))):  # type: ignore[misc]
        def __init__(self, *args: Any, **more: Any) -> None:
            totals.append(more["total"])
            super().__init__(*args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipe, "progress_bar", lambda total: Bar(total=total, disable=True))
        pipe(["a cat", "a dog"], plan=False, attempts=1, **FAST)
    assert totals == [3, 3]  # every run has a bar of its own


def test_editing(pipe: Any, model: Model) -> None:
    edits = pipelines.UnmaskEditPipeline.from_pipe(pipe)
    edits.set_progress_bar_config(disable=True)
    same = arrays(model.edit(PICTURE, "make it red", n=2, seed=4, steps=3))
    as_tensor = torch.from_numpy(np.asarray(PICTURE).copy()).permute(2, 0, 1) / 255
    for image in (PICTURE, as_tensor, np.asarray(PICTURE)):
        drawn = edits("make it red", image, generator=seeded(4), num_images_per_prompt=2, **FAST).images
        assert np.array_equal(drawn, same)
    both = edits("make it red", torch.stack([as_tensor, as_tensor]), generator=seeded(4), **FAST).images
    assert np.array_equal(both, np.stack([same[0], same[0]]))
    with pytest.raises(ValueError, match="2 prompts came with 3 of image"):
        edits(["a", "b"], [PICTURE] * 3)


def test_inpainting(pipe: Any, model: Model) -> None:
    inpaints = pipelines.UnmaskInpaintPipeline.from_pipe(pipe)
    inpaints.set_progress_bar_config(disable=True)
    mask = Image.new("L", (128, 128))
    mask.paste(255, (32, 32, 96, 96))
    drawn = inpaints("a cat", PICTURE, mask, generator=seeded(2), num_images_per_prompt=2, **FAST).images
    same = arrays([model.infill(PICTURE, mask, prompt="a cat", seed=seed, steps=3) for seed in (2, 3)])
    assert np.array_equal(drawn, same)
    as_tensor = torch.from_numpy(np.asarray(mask).copy())[None] / 255
    assert np.array_equal(inpaints("a cat", PICTURE, as_tensor, generator=seeded(2), **FAST).images, same[:1])
    assert np.array_equal(drawn[:, :32], np.full_like(drawn[:, :32], 250 / 255))


def test_save_and_open_again(pipe: Any, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "saved")
    again = pipelines.UnmaskPipeline.from_pretrained(tmp_path / "saved", local_files_only=True)
    again.set_progress_bar_config(disable=True)
    first, second = (p("a cat", generator=seeded(6), plan=False, attempts=1, **FAST).images for p in (pipe, again))
    assert np.array_equal(first, second)
    reopened: Any = unmask.load(tmp_path / "saved", device="cpu")
    state, saved = pipe.model.parts.net.state_dict(), reopened.parts.net.state_dict()
    assert state.keys() == saved.keys() and all(torch.equal(state[key], saved[key]) for key in state)
    with pytest.raises(ValueError, match="safetensors only"):
        pipe.save_pretrained(tmp_path / "other", safe_serialization=False)


def test_data_types_and_devices(pipe: Any) -> None:
    half = pipelines.UnmaskPipeline.from_pretrained("mini", torch_dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    before = half.model
    assert half.to("cpu").to(torch.bfloat16).model is before
    assert half.to(torch.float32).dtype == torch.float32 and half.model is not before
    half.set_progress_bar_config(disable=True)
    call: dict[str, Any] = {"plan": False, "attempts": 1, **FAST}
    assert np.array_equal(
        half("a cat", generator=seeded(1), **call).images, pipe("a cat", generator=seeded(1), **call).images
    )


def test_offloading_is_that_of_the_model(pipe: Any) -> None:
    other = pipelines.UnmaskPipeline.from_pretrained("mini")
    other.set_progress_bar_config(disable=True)
    other.enable_model_cpu_offload(device="cpu")
    assert other.model.parts.weights.storage.offload == {"und", "gen"}
    call: dict[str, Any] = {"plan": False, "attempts": 1, **FAST}
    drawn, same = (p("a cat", generator=seeded(1), **call).images for p in (other, pipe))
    assert np.array_equal(drawn, same)
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        with pytest.raises(ValueError, match="offloading needs a GPU"):
            other.enable_model_cpu_offload()


def test_the_image_tokenizer_opens_in_the_library(model: Model, tmp_path: Path) -> None:
    to_released("mini", tmp_path / "released")
    theirs = diffusers.VQModel.from_pretrained(tmp_path / "released" / "vqvae")
    model.parts.require(frozenset({"vq.encoder", "vq.decoder"}))
    drawing = model.generate("a red apple", seed=1, plan=False, attempts=1, steps=3)[0]
    pixels, _ = model.parts.preprocess(drawing.image)
    codes = model.parts.encode(pixels)
    patches = pixels.unfold(1, 16, 16).unfold(2, 16, 16).permute(1, 2, 0, 3, 4).flatten(0, 1)  # ours are encoded apart
    with torch.no_grad():
        found = theirs.quantize(theirs.encode(patches).latents)[2][2].view(8, 8)
        decoded = theirs.decode(codes.flatten(), force_not_quantize=True, shape=(1, 8, 8, 64)).sample[0]
        ours = model.parts.codec.decode(codes[None])[0]
    assert torch.equal(found, codes)
    assert (decoded.clamp(0, 1) - ours).abs().max() < 1e-4
