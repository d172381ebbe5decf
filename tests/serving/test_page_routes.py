"""The routes behind the web page: previews of images, the model card and the documentation."""

from __future__ import annotations

import io
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import unmask
from unmask.serving.access import Access, plain_keys
from unmask.serving.page_routes import PREVIEW, docs_folder, document_titles
from unmask.serving.server import Server

from .served import plain, serving, tiny

ROOT = Path(unmask.__file__).parent
COLOUR = (200, 30, 40)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(tiny()) as running:
        yield running


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "TGA", "JPEG2000", "GIF"])
def test_a_preview_is_a_small_png_of_any_format(server: Server, kind: str) -> None:
    for size, shown in (((40, 20), (40, 20)), ((3 * PREVIEW, PREVIEW), (PREVIEW, PREVIEW // 3))):
        answer = plain(server).post("/v1/preview", content=encoded(Image.new("RGB", size, COLOUR), kind))
        assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
        found = Image.open(io.BytesIO(answer.content))
        assert found.format == "PNG" and found.mode == "RGB" and found.size == shown
        assert np.abs(np.asarray(found, dtype=int) - np.array(COLOUR)).max() <= 3


def test_a_preview_of_something_else_is_a_named_error(server: Server) -> None:
    for content, said in (
        (b"", "the image is empty"),
        (b"<svg/>", "not a supported image"),
        (encoded(Image.new("RGB", (200, 200), COLOUR), "TIFF")[:2000], "the image"),
    ):
        answer = plain(server).post("/v1/preview", content=content)
        assert answer.status_code == 400 and said in answer.json()["error"]["message"]
    assert plain(server).get("/v1/preview").status_code == 405


def test_models_lists_the_formats_that_are_read(server: Server) -> None:
    (card,) = plain(server).get("/v1/models").json()["data"]
    assert {"PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"} <= set(card["unmask"]["reads"])


@pytest.mark.weights
def test_the_card_is_the_models_own() -> None:
    with serving(unmask.load("mini"), name="mini", access=Access(keys=plain_keys(["secret"]))) as locked:
        assert plain(locked).get("/docs/index.json").json()["card"] is True
        assert plain(locked).get("/v1/card").status_code == 401
        answer = plain(locked).get("/v1/card", headers={"authorization": "Bearer secret"})
        assert answer.headers["content-type"].startswith("text/markdown")
        assert answer.text == (ROOT / "assets" / "mini" / "README.md").read_text()
        assert plain(locked).post("/v1/preview", content=b"").status_code == 401


def test_a_model_without_a_card_says_so(server: Server) -> None:
    assert plain(server).get("/docs/index.json").json()["card"] is False
    answer = plain(server).get("/v1/card")
    assert answer.status_code == 404 and "has no card" in answer.json()["error"]["message"]


def test_documents(server: Server) -> None:
    pages = plain(server).get("/docs/index.json").json()["pages"]
    folder = docs_folder()
    assert folder and sorted(one["name"] for one in pages) == sorted(path.name for path in folder.glob("*.md"))
    assert {"name": "page.md", "title": "The web page"} in pages
    for one in pages:
        assert plain(server).get(f"/docs/{one['name']}").text == (folder / one["name"]).read_text()
    leads = plain(server).get("/docs")
    assert leads.status_code == 307 and leads.headers["location"] == "web/read.html#docs"
    for path in ("/docs/../pyproject.toml", "/docs/%2e%2e/pyproject.toml", "/docs/missing/page"):
        assert plain(server).get(path).status_code == 404


def test_documents_that_are_not_installed() -> None:
    assert document_titles(None) == []


def test_the_wheel_holds_the_documents() -> None:
    project = ROOT.parent / "pyproject.toml"
    if not project.exists():
        pytest.skip("not a source tree")
    hatch = tomllib.loads(project.read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert hatch["force-include"] == {"docs": "unmask/docs"}
