"""OpenAI's image endpoints as its clients use them: sizes, URLs, file formats, fields that have no meaning here, usage, and forms."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import openai
import pytest
import torch
from PIL import Image, features

from unmask.pipeline.model import Model
from unmask.serving.server import Server
from unmask.tokens.pictures import read_image
from unmask.tokens.vocabulary import Vocabulary

from ..tokens.profiles import DISPLAY_P3, rgb
from .served import client, data_url, opened, plain, png, serving, tiny

torch.set_num_threads(1)
FEW = {"steps": 2, "seed": 4, "plan": False}
GENERATE, EDIT, GROUND, INFILL = "/v1/images/generations", "/v1/images/edits", "/v1/ground", "/v1/infill"
PICTURE = Image.effect_noise((60, 40), 90).convert("RGB")
FILE = ("picture.png", png(PICTURE))
WORDS = Vocabulary(
    name="tiny", draws="draws dogs", groups={"objects": ("dog", "cat"), "colours": ("red",)}, words=("a",)
)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(Model(replace(tiny().parts, vocabulary=WORDS), tiny().presets)) as served:
        yield served


def draw(server: Server, **more: Any) -> dict[str, Any]:
    answer = plain(server).post(GENERATE, json={"prompt": "a dog", **FEW, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def usual(plan: bool | None = False) -> Image.Image:
    return tiny().generate("a dog", seed=4, plan=plan, settings=["schedule.steps=2"])[0].image


def refused(answer: Any, param: str) -> str:
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param, answer.text
    return answer.json()["error"]["message"]


# -- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [1, 64, 127, 256, 512, 1024, 4096])
def test_any_square_is_drawn_at_the_models_size_and_resized(server: Server, side: int) -> None:
    found = draw(server, size=f"{side}x{side}")
    shown, (entry,) = opened(found["data"][0]["b64_json"]), found["data"]
    assert shown.size == (side, side) and found["size"] == f"{side}x{side}"
    assert entry["unmask"]["warnings"] == [
        f"size: drawn at 128x128, the size of this model, and resized to {side}x{side}"
    ]
    if side >= 256:  # the same picture, made larger
        small = np.asarray(shown.resize((128, 128), Image.Resampling.BOX), dtype=float)
        assert np.abs(small - np.asarray(usual(), dtype=float)).mean() < 12


@pytest.mark.parametrize("size", [None, "auto", "128x128", "128X128"])
def test_the_models_own_size_has_no_warning(server: Server, size: str | None) -> None:
    found = draw(server, size=size)
    assert np.array_equal(np.asarray(opened(found["data"][0]["b64_json"])), np.asarray(usual()))
    assert found["size"] == "128x128" and found["data"][0]["unmask"]["warnings"] == []


@pytest.mark.parametrize(
    "size",
    ["1536x1024", "1024x1792", "4097x4097", "0x0", "64", "64x", "-64x-64", "64 x 64", "", "1e2x1e2", "64x64x64"],
)
def test_other_sizes_are_refused_by_name(server: Server, size: str) -> None:
    message = refused(plain(server).post(GENERATE, json={"prompt": "a dog", "size": size}), "size")
    assert "use auto, or a square such as 512x512, up to 4096x4096" in message


def test_edits_infilling_and_streams_have_a_size_too(server: Server) -> None:
    mask = ("mask.png", png(Image.new("L", PICTURE.size, 255)))
    for files in ({"image": FILE}, {"image": FILE, "mask": mask}):
        sent = {"prompt": "red", "steps": "2", "size": "64x64"}
        found = plain(server).post(EDIT, data=sent, files=files).json()
        assert opened(found["data"][0]["b64_json"]).size == (64, 64) and found["size"] == "64x64"
    body = {
        "image": data_url(PICTURE),
        "mask": data_url(Image.new("L", PICTURE.size, 255)),
        "size": "64x64",
        "steps": 2,
    }
    assert opened(plain(server).post(INFILL, json=body).json()["data"][0]["b64_json"]).size == (64, 64)
    events = list(client(server).images.generate(
        model="tiny", prompt="a dog", size="256x256", stream=True, partial_images=1, extra_body=FEW
    ))  # fmt: skip
    assert [opened(e.b64_json).size for e in events] == [(256, 256)] * 2
    assert [e.size for e in events] == ["256x256"] * 2


def test_the_pixels_of_all_images_are_bounded(server: Server) -> None:
    sent = {"prompt": "a dog", "n": 2, "size": "4096x4096"}
    for more in ({}, {"stream": True}):
        message = refused(plain(server).post(GENERATE, json={**sent, **more}), "size")
        assert "2 images of 4096x4096 are too many pixels; use at most 2896x2896 for 2" in message
    found = draw(server, n=10, size="512x512")
    assert [opened(entry["b64_json"]).size for entry in found["data"]] == [(512, 512)] * 10


# -- formats and fields -----------------------------------------------------------------------------------------------


def test_output_compression_is_the_quality_of_jpeg_and_webp(server: Server) -> None:
    def size(file: str, compression: int | None) -> int:
        (entry,) = draw(server, output_format=file, output_compression=compression, size="512x512")["data"]
        return len(base64.b64decode(entry["b64_json"]))

    for file in ("jpeg", "webp"):
        assert size(file, 0) < size(file, 30) < size(file, 100) and size(file, None) == size(file, 90)
    assert size("png", 10) == size("png", None)
    png_warning = draw(server, output_compression=10)["data"][0]["unmask"]["warnings"]
    assert png_warning == ["output_compression: png is lossless, so it was ignored; use jpeg or webp"]


def test_a_file_has_the_format_that_was_asked_for(server: Server) -> None:
    for file in ("png", "jpeg", "webp"):
        found = draw(server, output_format=file)
        data = base64.b64decode(found["data"][0]["b64_json"])
        assert Image.open(io.BytesIO(data)).format == file.upper() and found["output_format"] == file


SILENT: dict[str, Any] = {
    "background": "opaque",
    "moderation": "low",
    "quality": "auto",
    "user": "somebody",
    "safety_identifier": "x",
    "input_fidelity": "low",
    "output_compression": 100,
    "metadata": {"a": 1},
    "model": "auto",
}
TOLD = {
    "quality": ("high", "quality: this model has one quality"),
    "style": ("vivid", "style: this model has no styles"),
    "input_fidelity": ("high", "input_fidelity: this model has one way"),
}


def test_fields_of_openai_without_a_meaning_here_change_nothing(server: Server) -> None:
    for name, value in SILENT.items():
        (entry,) = draw(server, **{name: value})["data"]
        assert entry["unmask"]["warnings"] == [], name
        assert np.array_equal(np.asarray(opened(entry["b64_json"])), np.asarray(usual())), name


def test_fields_that_are_not_followed_are_told(server: Server) -> None:
    for name, (value, said) in TOLD.items():
        (warning,) = draw(server, **{name: value})["data"][0]["unmask"]["warnings"]
        assert warning.startswith(said)
    message = refused(plain(server).post(GENERATE, json={"prompt": "a", "background": "transparent"}), "background")
    assert "use opaque or auto" in message


OPTIONAL = {
    **dict.fromkeys(("model", "seed", "settings", "sampler", "priority", "steps", "guidance", "n", "size"), None),
    **dict.fromkeys(("response_format", "output_format", "output_compression", "background", "quality", "style"), None),
    **dict.fromkeys(("stream", "partial_images", "trace", "plan", "boxes", "reflect", "user", "moderation"), None),
    **dict.fromkeys(("luminance", "contrast", "score", "crop", "input_fidelity"), None),
}


def test_null_is_absent_on_every_endpoint(server: Server) -> None:
    found = draw(server, **{**OPTIONAL, **FEW, "plan": None})
    assert np.array_equal(np.asarray(opened(found["data"][0]["b64_json"])), np.asarray(usual(plan=None)))
    shared = {"model": None, "seed": None, "settings": None, "sampler": None, "priority": None}
    mask = data_url(Image.new("L", PICTURE.size, 255))
    bodies = {
        GROUND: {"image": data_url(PICTURE), "phrases": ["a dog"], "steps": None, **shared},
        INFILL: {"image": data_url(PICTURE), "mask": mask, "text": None, "prompt": None, "size": None, **shared},
    }
    for path, body in bodies.items():
        assert plain(server).post(path, json=body).status_code == 200, path
    gaps = {"image": None, "mask": None, "text": "a [mask]", "prompt": None, **shared}
    assert plain(server).post(INFILL, json=gaps).status_code == 200


@pytest.mark.parametrize("absent", ["", "null"])
def test_empty_and_null_form_fields_are_absent(server: Server, absent: str) -> None:
    options = {name: absent for name in OPTIONAL if name not in ("luminance", "contrast", "score", "crop")}
    sent = {**options, "steps": "2", "seed": "4", "prompt": "make it red", "mask": absent}
    found = plain(server).post(EDIT, data=sent, files={"image": FILE})
    assert found.status_code == 200, found.text
    alone = tiny().edit(PICTURE, "make it red", seed=4, settings=["schedule.steps=2"])[0].image
    assert np.array_equal(np.asarray(opened(found.json()["data"][0]["b64_json"])), np.asarray(alone))


# -- usage, streams, warnings -----------------------------------------------------------------------------------------


def test_usage_counts_the_tokens_of_all_runs(server: Server) -> None:
    found = client(server).images.generate(model="tiny", prompt="a dog", n=3, extra_body=FEW)
    usage, one = found.usage, client(server).images.generate(model="tiny", prompt="a dog", extra_body=FEW).usage
    assert one.output_tokens == 64 and one.output_tokens_details.image_tokens == 64  # 8 x 8 codes
    assert one.input_tokens_details.image_tokens == 0 < one.input_tokens_details.text_tokens == one.input_tokens
    assert one.total_tokens == one.input_tokens + one.output_tokens
    assert (usage.output_tokens, usage.input_tokens) == (3 * 64, 3 * one.input_tokens)
    assert one.output_tokens_details.text_tokens == 0
    longer = client(server).images.generate(model="tiny", prompt="a dog and a red cat", extra_body=FEW).usage
    assert longer.input_tokens > one.input_tokens
    edited = client(server).images.edit(model="tiny", image=FILE, prompt="red", extra_body={**FEW, "n": 1}).usage
    assert edited.input_tokens_details.image_tokens > 0 and edited.output_tokens == 64
    planned = draw(server, plan=True)["usage"]
    assert planned["output_tokens_details"]["text_tokens"] > 0
    assert planned["output_tokens"] == 64 + planned["output_tokens_details"]["text_tokens"]


def test_events_have_the_fields_of_openai(server: Server) -> None:
    options = {"model": "tiny", "prompt": "a dog", "extra_body": FEW}
    partial, done = client(server).images.generate(**options, stream=True, partial_images=1)
    for event in (partial, done):
        assert (event.size, event.quality, event.background, event.output_format) == (
            "128x128",
            "auto",
            "opaque",
            "png",
        )
        assert event.created_at > 1e9
        type(event).model_validate_json(event.model_dump_json())
    assert done.usage.to_dict() == client(server).images.generate(**options).usage.to_dict()
    (edited,) = client(server).images.edit(**options, image=FILE, stream=True)
    type(edited).model_validate_json(edited.model_dump_json())
    assert edited.type == "image_edit.completed"


def test_previews_are_at_most_as_many_as_asked_for_with_several_attempts(server: Server) -> None:
    sent = {"prompt": "a dog", **FEW, "steps": 6, "stream": True, "reflect": 3, "partial_images": 2}
    blocks = plain(server).post(GENERATE, json=sent).text.strip().split("\n\n")
    events = [json.loads(block.partition("data: ")[2]) for block in blocks[:-1]]
    assert [e.get("partial_image_index") for e in events] == [0, 1, None]
    assert len(events[-1]["unmask"]["rounds"]) > 1, "choose a seed whose first attempt is not accepted"


def test_unknown_fields_are_named_in_a_warning(server: Server) -> None:
    warnings = draw(server, negative_prompt="a cat")["data"][0]["unmask"]["warnings"]
    assert warnings == ["unknown fields were ignored: negative_prompt"]
    ground = {"image": data_url(PICTURE), "phrases": ["a dog"], "colour": 1}
    assert plain(server).post(GROUND, json=ground).json()["warnings"] == ["unknown fields were ignored: colour"]
    filled = plain(server).post(INFILL, json={"text": "a dog [mask]", "colour": 1}).json()
    assert filled["warnings"] == ["unknown fields were ignored: colour"]


def test_answers_fit_the_types_of_the_openai_client(server: Server) -> None:
    for more in ({}, {"response_format": "url"}, {"n": 2}):
        found = client(server).images.generate(model="tiny", prompt="a dog", extra_body=FEW, **more)
        openai.types.ImagesResponse.model_validate_json(found.model_dump_json())
        assert found.background == "opaque" and found.output_format == "png" and found.created > 1e9


def test_warnings_about_words_are_in_every_answer(server: Server) -> None:
    (entry,) = draw(server, prompt="a zebra", size="64x64")["data"]
    about_words, about_size = entry["unmask"]["warnings"]
    assert "zebra" in about_words and about_size.startswith("size: ")
    events = plain(server).post(GENERATE, json={"prompt": "a zebra", **FEW, "stream": True}).text.split("\n\n")
    assert "zebra" in json.loads(events[0].partition("data: ")[2])["unmask"]["warnings"][0]
    edited = plain(server).post(EDIT, data={"prompt": "a zebra", "steps": "2"}, files={"image": FILE}).json()
    assert "zebra" in edited["data"][0]["unmask"]["warnings"][0]
    ground = {"image": data_url(PICTURE), "phrases": ["a zebra"]}
    assert "zebra" in plain(server).post(GROUND, json=ground).json()["warnings"][0]
    assert "zebra" in plain(server).post(INFILL, json={"text": "a zebra [mask]"}).json()["warnings"][0]
    for path, body in ((GROUND, {**ground, "phrases": ["a dog"]}), (INFILL, {"text": "a dog [mask]"})):
        assert plain(server).post(path, json=body).json()["warnings"] == []


def test_the_list_of_models_has_the_vocabulary(server: Server) -> None:
    (model,) = client(server).models.list().data
    assert model.unmask["vocabulary"] == {
        "about": "tiny draws dogs.",
        "groups": {"objects": ["dog", "cat"], "colours": ["red"]},
    }
    assert client(server).models.retrieve("tiny").unmask == model.unmask
    with serving(tiny()) as other:
        assert client(other).models.list().data[0].unmask["vocabulary"] is None


# -- forms ------------------------------------------------------------------------------------------------------------


def test_one_picture_under_every_name_that_clients_use(server: Server) -> None:
    sent, wanted = {"prompt": "red", "steps": "2", "seed": "4"}, None
    for name in ("image", "image[]", "image[0]"):
        found = plain(server).post(EDIT, data=sent, files={name: FILE})
        assert found.status_code == 200, found.text
        wanted = wanted or found.json()["data"][0]["b64_json"]
        assert found.json()["data"][0]["b64_json"] == wanted
    as_list = client(server).images.edit(model="tiny", image=[FILE], prompt="red", extra_body=FEW)
    as_url = plain(server).post(EDIT, data={**sent, "image": data_url(PICTURE)}, files={"mask": ("", b"")})
    assert as_list.data[0].b64_json == wanted == as_url.json()["data"][0]["b64_json"]


@pytest.mark.parametrize("count", [2, 3, 16, 20])
def test_several_pictures_are_refused_by_name(server: Server, count: int) -> None:
    with pytest.raises(
        openai.BadRequestError, match=f"{count} files were sent, and only one file is allowed"
    ) as caught:
        client(server).images.edit(model="tiny", image=[FILE] * count, prompt="red")
    assert caught.value.param == "image"
    masks = [("image", FILE), ("mask", FILE), ("mask", FILE)]
    refused(plain(server).post(EDIT, data={"prompt": "red"}, files=masks), "mask")


def test_broken_pictures_name_their_field(server: Server) -> None:
    broken, sent = ("a.png", b"no picture"), {"prompt": "red"}
    assert "not a supported image" in refused(plain(server).post(EDIT, data=sent, files={"image": broken}), "image")
    assert "not a supported" in refused(
        plain(server).post(EDIT, data=sent, files={"image": FILE, "mask": broken}), "mask"
    )
    assert "no image" in refused(plain(server).post(EDIT, data=sent, files={"mask": FILE}), "image")
    assert "no image" in refused(plain(server).post(EDIT, data=sent, files={"image": ("", b"")}), "image")
    other = ("mask.png", png(Image.new("L", (9, 8), 255)))
    message = refused(plain(server).post(EDIT, data=sent, files={"image": FILE, "mask": other}), "mask")
    assert "9 x 8 pixels and the image 60 x 40; give both the same size" in message
    body = {"image": data_url(PICTURE), "mask": "data:image/png;base64,bm90aGluZw=="}
    assert "not a supported image" in refused(plain(server).post(INFILL, json=body), "mask")


def test_nested_form_fields_are_refused_not_ignored(server: Server) -> None:
    boxes = [{"phrase": "a dog", "box": [0, 0, 1, 1]}]
    with pytest.raises(openai.BadRequestError, match="send boxes as one JSON list"):
        client(server).images.edit(model="tiny", image=FILE, prompt="red", extra_body={"boxes": boxes})
    done = client(server).images.edit(
        model="tiny", image=FILE, prompt="red", extra_body={**FEW, "boxes": json.dumps(boxes)}
    )
    assert done.data[0].unmask["plan"]["things"] == boxes


def in_other_files() -> dict[str, bytes]:
    """The picture as other programs write it: with a colour profile, turned by a camera, as AVIF and HEIC."""
    exif, streams = Image.Exif(), {name: io.BytesIO() for name in ("profile", "camera", "AVIF", "HEIC")}
    exif[0x0112] = 6
    PICTURE.save(streams["profile"], "PNG", icc_profile=rgb(DISPLAY_P3))
    PICTURE.save(streams["camera"], "JPEG", exif=exif)
    if features.check("avif"):
        PICTURE.save(streams["AVIF"], "AVIF")
    if importlib.util.find_spec("pillow_heif"):
        importlib.import_module("pillow_heif").from_pillow(PICTURE).save(streams["HEIC"])
    return {name: stream.getvalue() for name, stream in streams.items() if stream.tell()}


@pytest.mark.parametrize("name", in_other_files())
def test_every_endpoint_reads_what_python_reads(server: Server, name: str) -> None:
    data = in_other_files()[name]
    url = f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}"
    found = plain(server).post(GROUND, json={"image": url, "phrases": ["a dog"], "seed": 1}).json()
    alone = tiny().ground(read_image(data), ["a dog"], seed=1)
    width, height = alone.image_size
    sides = (width, height, width, height)
    assert (found["width"], found["height"]) == (width, height) == ((40, 60) if name == "camera" else (60, 40))
    wanted = [v / side for v, side in zip(alone.boxes[0].corners, sides, strict=True)]
    assert found["boxes"][0]["box"] == pytest.approx(wanted, abs=1e-5)
    edited = plain(server).post(EDIT, data={"prompt": "red", "steps": "2", "seed": "4"}, files={"image": ("a", data)})
    drawn = tiny().edit(data, "red", seed=4, settings=["schedule.steps=2"])[0].image
    assert np.array_equal(np.asarray(opened(edited.json()["data"][0]["b64_json"])), np.asarray(drawn))
    infill = {"image": url, "mask": data_url(Image.new("L", (width, height), 255)), **FEW}
    assert plain(server).post(INFILL, json=infill).status_code == 200


DATA_URLS = {
    "line breaks": lambda text: "\n".join(text[i : i + 76] for i in range(0, len(text), 76)),
    "no padding": lambda text: text.rstrip("="),
    "URL-safe": lambda text: text.replace("+", "-").replace("/", "_"),
    "spaces around": lambda text: f"  {text}\r\n",
}


@pytest.mark.parametrize("change", DATA_URLS.values(), ids=DATA_URLS)
@pytest.mark.parametrize("head", ["data:image/png;base64,", "DATA:IMAGE/PNG;BASE64,", "data:;base64,"])
def test_data_urls_in_every_spelling(server: Server, head: str, change: Any) -> None:
    picture, mask = (
        head + change(base64.b64encode(png(image)).decode()) for image in (PICTURE, Image.new("L", PICTURE.size, 255))
    )
    ground = {"phrases": ["a dog"], "seed": 1}
    found = plain(server).post(GROUND, json={**ground, "image": picture})
    assert found.status_code == 200, found.text
    plainly = plain(server).post(GROUND, json={**ground, "image": data_url(PICTURE)})
    assert found.json()["boxes"] == plainly.json()["boxes"]
    infill = {"image": picture, "mask": mask, **FEW}
    assert plain(server).post(INFILL, json=infill).status_code == 200
