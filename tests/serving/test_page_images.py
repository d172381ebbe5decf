"""Images that users upload on the web page: every format that the server reads, and what is refused.

Chromium cannot decode TIFF and HEIC; the server does it for the page.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from unmask.serving.server import Server
from unmask.tokens.pictures import read_image
from unmask.tokens.sources import readable

from .on_page import WEB, Page, Visit, ask, done, expect, panel

STREET = WEB / "example-street.png"
TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif", "BMP": "image/bmp"}
OTHERS = {"TIFF": "image/tiff", "AVIF": "image/avif", "JPEG2000": "image/jp2"}
KINDS = {**TYPES, **{kind: name for kind, name in OTHERS.items() if kind in readable()}}


def encoded(kind: str, image: Image.Image | None = None) -> bytes:
    buffer = io.BytesIO()
    (image or Image.open(STREET).convert("RGB")).save(buffer, kind)
    return buffer.getvalue()


def file(name: str, content: bytes, kind: str = "") -> dict[str, Any]:
    return {"name": name, "mimeType": kind, "buffer": content}


def sent(page: Page) -> Image.Image:
    """The image that the page sends when it asks a question."""
    look = page.locator("#panel-ask")
    with page.expect_request("**/v1/chat/completions") as request:
        ask(look, "what colour is the car?")
    done(look)
    parts = request.value.post_data_json["messages"][0]["content"]
    return Image.open(io.BytesIO(base64.b64decode(parts[0]["image_url"]["url"].partition(",")[2]))).convert("RGB")


def close(a: Image.Image, b: Image.Image, most: float) -> bool:
    assert a.size == b.size
    return float(np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).mean()) <= most


@pytest.mark.parametrize("kind", KINDS)
def test_formats_are_read_and_sent(page: Page, kind: str) -> None:
    look, content = panel(page, "Ask"), encoded(kind)
    look.get_by_label("Choose an image").set_input_files(file(f"street.{kind.lower()}", content, KINDS[kind]))
    expect(look.locator(".hint")).to_be_hidden()
    assert close(sent(page), read_image(content), 2), "as the server reads the file"
    expect(look.locator(".words .text")).to_have_text("red")


def heic() -> bytes:
    heif, buffer = pytest.importorskip("pillow_heif"), io.BytesIO()
    heif.from_pillow(Image.open(STREET).convert("RGB")).save(buffer)
    return buffer.getvalue()


@pytest.mark.skipif("HEIC" not in readable(), reason="HEIC needs unmask[heif]")
def test_heic_without_a_type_is_read_and_sent(page: Page) -> None:
    """Many systems give a .heic file no type."""
    look, content = panel(page, "Ask"), heic()
    look.get_by_label("Choose an image").set_input_files(file("IMG_0001.HEIC", content))
    expect(look.locator(".hint")).to_be_hidden()
    assert close(sent(page), read_image(content), 2)


def test_the_formats_and_the_limit_are_shown_before_an_upload(page: Page) -> None:
    look = panel(page, "Ask")
    said = look.locator(".limits").inner_text()
    assert "up to 30 MB" in said and "PNG, JPEG, WebP, GIF, BMP, TIFF" in said
    assert ("AVIF" in said) == features.check("avif") and ("HEIC" in said) == ("HEIC" in readable())
    choose = look.get_by_label("Choose an image")
    accept = (choose.get_attribute("accept") or "").split(",")
    assert {"image/*", ".tif", ".tiff"} <= set(accept) and (".heic" in accept) == ("HEIC" in readable())
    assert choose.get_attribute("aria-describedby") == look.locator(".limits").get_attribute("id")


def test_invalid_images_are_named_and_not_used(visits: Callable[..., Visit], server: Server, tmp_path: Path) -> None:
    visit = visits(server.url)
    visit.expected = "status of 400"
    look = panel(visit.page(), "Ask")
    before, choose, error = len(visit.asked), look.get_by_label("Choose an image"), look.locator(".error")
    (tmp_path / "big.png").write_bytes(b"\x89PNG" + bytes(31 * 2**20))
    choose.set_input_files(
        tmp_path / "big.png"
    )  # by its name, for 31 MB would take a while on their way into the browser
    expect(error).to_contain_text("big.png is 31.0 MB. The limit is 30 MB")
    choose.set_input_files(file("note.txt", b"hello", "text/plain"))
    expect(error).to_contain_text("note.txt is not an image. Use PNG, JPEG, WebP")
    assert len(visit.asked) == before, "refused before anything is sent"
    for name, content, kind in (
        ("bad.png", b"\x89PNG, not really", "image/png"),
        ("half.tiff", encoded("TIFF")[:5000], "image/tiff"),
        ("logo.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"),
        ("empty.heic", b"", ""),
    ):
        choose.set_input_files(file(name, content, kind))
        expect(error).to_contain_text(f"{name} cannot be read: it ")
    ask(look, "what is this?")
    expect(error).to_contain_text("No image yet")


def test_a_large_tiff_is_scaled_down_like_other_images(page: Page) -> None:
    look, wide = panel(page, "Ask"), Image.new("RGB", (3000, 1500), (200, 30, 40))
    look.get_by_label("Choose an image").set_input_files(file("wide.tif", encoded("TIFF", wide), "image/tiff"))
    expect(look.locator(".hint")).to_be_hidden()
    image = sent(page)
    assert image.size == (1024, 512) and close(image, Image.new("RGB", (1024, 512), (200, 30, 40)), 1)


def drop(page: Page, target: str, *files: tuple[str, str, bytes]) -> None:
    """Drop files as a user would; without files, a text."""
    page.evaluate(
        """([target, files]) => {
        const data = new DataTransfer();
        for (const [name, type, text] of files) data.items.add(new File([Uint8Array.from(atob(text), c => c.charCodeAt(0))], name, {type}));
        if (!files.length) data.setData("text/uri-list", "http://127.0.0.1/cat.png");
        document.querySelector(target).dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
        }""",
        [target, [(name, kind, base64.b64encode(content).decode()) for name, kind, content in files]],
    )


def test_drop(page: Page) -> None:
    look, frame = panel(page, "Ask"), "#panel-ask .frame"
    drop(page, frame, ("a.tiff", "image/tiff", encoded("TIFF")), ("b.png", "image/png", encoded("PNG")))
    expect(look.locator(".error")).to_contain_text("2 files were given. Choose one image at a time.")
    drop(page, frame)
    expect(look.locator(".error")).to_contain_text("not a file")
    drop(page, frame, ("a.tiff", "image/tiff", encoded("TIFF")))
    expect(look.locator(".hint")).to_be_hidden()
    expect(look.locator(".error")).to_be_hidden()
    assert close(sent(page), Image.open(STREET).convert("RGB"), 1)


def test_paste(page: Page) -> None:
    look = panel(page, "Ask")

    def paste(files: list[tuple[str, str, bytes]], text: str = "") -> None:
        page.evaluate(
            """([files, text]) => {
            const data = new DataTransfer();
            for (const [name, type, content] of files)
                data.items.add(new File([Uint8Array.from(atob(content), c => c.charCodeAt(0))], name, {type}));
            if (text) data.setData("text/plain", text);
            dispatchEvent(new ClipboardEvent("paste", {clipboardData: data, bubbles: true, cancelable: true}));
            }""",
            [[(name, kind, base64.b64encode(content).decode()) for name, kind, content in files], text],
        )

    paste([("cell.png", "image/png", encoded("PNG"))], "the text of a table")
    expect(look.locator(".hint")).to_be_visible()
    paste([("notes.pdf", "application/pdf", b"%PDF")])
    expect(look.locator(".error")).to_contain_text("notes.pdf is not an image")
    paste([("image.bmp", "image/bmp", encoded("BMP"))])
    expect(look.locator(".hint")).to_be_hidden()
    assert close(sent(page), Image.open(STREET).convert("RGB"), 1)
