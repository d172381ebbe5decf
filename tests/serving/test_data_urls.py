"""``data:`` URLs in every spelling that clients send give the same bytes; others are errors that name the field."""

from __future__ import annotations

import base64
from urllib.parse import quote, quote_from_bytes

import pytest
from PIL import Image

from unmask.serving.data_urls import picture_of, read_data_url
from unmask.serving.picture_reader import PictureReader

from .served import png

FILE = png(Image.effect_noise((9, 7), 90).convert("RGB"))
CODE = base64.b64encode(FILE).decode()
SPELLINGS = {
    "plain": f"data:image/png;base64,{CODE}",
    "line breaks": f"data:image/png;base64,{base64.encodebytes(FILE).decode()}",
    "carriage returns and tabs": f"data:image/png;base64,\r\n\t{CODE[:40]}\r\n\t{CODE[40:]}\r\n",
    "no padding": f"data:image/png;base64,{CODE.rstrip('=')}",
    "too much padding": f"data:image/png;base64,{CODE}==",
    "upper-case scheme": f"DATA:IMAGE/PNG;BASE64,{CODE}",
    "mixed case": f"Data:Image/PNG;Base64,{CODE}",
    "URL-safe alphabet": f"data:image/png;base64,{base64.urlsafe_b64encode(FILE).decode()}",
    "no media type": f"data:;base64,{CODE}",
    "base64 alone": f"data:base64,{CODE}",
    "a wrong media type": f"data:application/octet-stream;base64,{CODE}",
    "parameters": f"data:image/png;name=a.png;charset=utf-8;base64,{CODE}",
    "a space before base64": f"data:image/png; base64, {CODE}",
    "base64 percent-encoded": f"data:image/png;base64,{quote(CODE, safe='')}",
    "percent-encoded line breaks": f"data:image/png;base64,{CODE[:30]}%0A{CODE[30:]}",
    "bytes percent-encoded": f"data:image/png,{quote_from_bytes(FILE, safe='')}",
    "spaces around": f"  data:image/png;base64,{CODE}\n",
}


@pytest.mark.parametrize("url", SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_gives_the_same_bytes(url: str) -> None:
    assert read_data_url(url, "image") == FILE
    assert picture_of(url, "image", PictureReader()).size == (9, 7)


WRONG = {
    "http": ("http://example.com/a.png", "does not fetch URLs"),
    "a path": ("/etc/passwd", "does not fetch URLs"),
    "bare base64": (CODE, "does not fetch URLs"),
    "empty": ("", "does not fetch URLs"),
    "no comma": ("data:image/png;base64", "malformed"),
    "a head without an end": ("data:" + "a" * 1000 + "," + CODE, "malformed"),
    "not base64": ("data:image/png;base64,%%%", "invalid base64"),
    "other letters": ("data:image/png;base64,ab$d", "invalid base64"),
    "not ASCII": ("data:image/png;base64,abcdé", "invalid base64"),
    "half a character": ("data:image/png;base64,\ud800", "invalid base64"),
    "cut off": ("data:image/png;base64,a", "invalid base64"),
    "no data": ("data:image/png;base64,", "empty"),
    "padding alone": ("data:image/png;base64,====", "empty"),
}


@pytest.mark.parametrize("url, said", WRONG.values(), ids=WRONG)
def test_others_are_errors_that_name_the_field(url: str, said: str) -> None:
    with pytest.raises(ValueError, match="^messages: ") as error:
        read_data_url(url, "messages")
    assert said in str(error.value)


def test_a_file_that_is_no_image_is_an_error_that_names_the_field() -> None:
    with pytest.raises(ValueError, match="^image: "):
        picture_of("data:image/png;base64,aGVsbG8=", "image", PictureReader())
