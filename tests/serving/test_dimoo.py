"""Lumina-DiMOO behind the server: the OpenAI client draws any shape, edits by kind, and wrong requests are named."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import unmask
from unmask.serving.server import Server

from .served import client, plain, serving

torch.set_num_threads(1)
GOLDEN = Path(__file__).parents[1] / "golden" / "lumina_dimoo_tiny"
EDIT = "/v1/images/edits"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = Path(shutil.copytree(GOLDEN, tmp_path_factory.mktemp("dimoo") / "model"))
    raw = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(raw | {"unmask": {"side": 64}, "max_sequence_length": 1024}))
    return place


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(unmask.load(folder), name="dimoo") as served:
        yield served


def opened(entry: Any) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(entry.b64_json))).convert("RGB")


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


WIDE, TALL = Image.new("RGB", (96, 40), "red"), Image.new("RGB", (40, 96), "blue")


def test_any_shape_is_drawn(server: Server, folder: Path) -> None:
    few = {"seed": 5, "steps": 3}
    made = client(server).images.generate(model="dimoo", prompt="a red cat", size="64x32", extra_body=few)
    alone = unmask.load(folder).generate("a red cat", seed=5, steps=3, size=(64, 32))[0].image
    assert made.data and opened(made.data[0]).tobytes() == alone.tobytes() and made.size == "64x32"
    larger = client(server).images.generate(model="dimoo", prompt="a cat", size="1536x768", extra_body=few)
    assert larger.data and opened(larger.data[0]).size == (1536, 768)
    warnings = larger.data[0].model_dump()["unmask"]["warnings"]
    assert warnings == ["size: drawn at 88x40, the size of this model, and resized to 1536x768"]


def test_an_edit_keeps_its_shape_and_has_a_kind(server: Server, folder: Path) -> None:
    def edited(**more: Any) -> Any:
        files = {"image": ("wide.png", png(WIDE)), **more.pop("files", {})}
        return plain(server).post(EDIT, data={"prompt": "so", "steps": "3", "seed": "4", **more}, files=files)

    usual, depth = edited(), edited(kind="depth_control")
    styled = edited(kind="image_ref_transfer", files={"reference": ("tall.png", png(TALL))})
    found = [answer.json() for answer in (usual, depth, styled)]
    assert [one["size"] for one in found] == ["32x16"] * 3, found
    pictures = [one["data"][0]["b64_json"] for one in found]
    assert len(set(pictures)) == 3
    alone = unmask.load(folder).edit(WIDE, "so", steps=3, seed=4, kind="image_ref_transfer", reference=TALL)[0].image
    assert Image.open(io.BytesIO(base64.b64decode(pictures[2]))).convert("RGB").tobytes() == alone.tobytes()
    for more, said in (
        ({"kind": "depth"}, "there is no kind of edit 'depth'"),
        ({"kind": "image_ref_transfer"}, "reads 1 references, got 0"),
        ({"kind": "edit_add", "files": {"reference": ("tall.png", png(TALL))}}, "reads 0 references, got 1"),
    ):
        answer = edited(**more)
        error = answer.json()["error"]
        assert answer.status_code == 400 and error["param"] == "kind" and said in error["message"], error
    own = edited(kind="image_ref_transfer", files={"reference": ("tall.png", png(TALL))}, quirks="released").json()
    assert own["size"] == "16x32"  # the released script takes the size of the second picture
    painted = edited(kind="edit_add", files={"mask": ("mask.png", png(Image.new("L", WIDE.size, 255)))})
    assert painted.status_code == 400 and painted.json()["error"]["param"] == "kind"


def test_its_document_has_sizes_and_kinds(server: Server) -> None:
    schemas = plain(server).get("/openapi.json").json()
    form = schemas["paths"][EDIT]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert {"kind", "reference"} <= set(form["schema"]["properties"]) and "reference" in form["encoding"]
    assert "1536x768" in schemas["components"]["schemas"]["Draw"]["properties"]["size"]["description"]
    with serving(unmask.load("mini"), name="mini") as other:
        document = plain(other).get("/openapi.json").json()
        own = document["paths"][EDIT]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
        assert not {"kind", "reference"} & set(own["properties"])
        assert own["properties"]["quirks"]["enum"] == ["usual", "", "null", None]
        for more in ({"kind": "edit_add"}, {"size": "64x32"}, {"quirks": "sometimes"}):
            files = {"image": ("wide.png", png(WIDE))}
            answer = plain(other).post(EDIT, data={"prompt": "so", "steps": "1", **more}, files=files)
            assert answer.status_code == 400 and answer.json()["error"]["param"] == next(iter(more)), answer.json()
