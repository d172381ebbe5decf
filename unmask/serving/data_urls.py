"""``data:`` URLs as clients write them (RFC 2397). Public idea: ``read_data_url(url, field) -> bytes``.

Accepted: any letter case of the scheme and the media type, no media type, parameters, line breaks and spaces inside the data, missing
padding, the URL-safe alphabet, and percent-encoding. The server fetches no other URL.
"""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from unmask.serving.picture_reader import PictureReader, Received
from unmask.tokens.pictures import ImageError

_MOST_HEAD = 500  # characters before the comma
_SPACES = re.compile(rb"\s+")
_TO_STANDARD = bytes.maketrans(b"-_", b"+/")  # the URL-safe alphabet of RFC 4648, section 5
_EXAMPLE = "data:image/png;base64,..."


def read_data_url(url: str, field: str) -> bytes:
    """The bytes of a ``data:`` URL. ValueError for any other URL and for invalid base64; ``field`` is named in the message."""
    stripped = url.strip()
    if stripped[:5].lower() != "data:":
        raise ValueError(f"{field}: the server does not fetch URLs; send the image as a data: URL in base64")
    head, comma, data = stripped[5:].partition(",")
    if not comma or len(head) > _MOST_HEAD:
        raise ValueError(f"{field}: malformed data: URL without a comma before the data; use the form {_EXAMPLE}")
    raw = unquote_to_bytes(data.encode("utf-8", "replace"))
    parameters = [part.strip().lower() for part in head.split(";")]
    return _base64(raw, field) if "base64" in parameters else raw


def picture_of(url: str, field: str, reader: PictureReader) -> Received:
    """The image of a ``data:`` URL. ValueError names ``field``."""
    try:
        return reader.read(read_data_url(url, field))
    except ImageError as error:
        raise ValueError(f"{field}: {error}") from error


def _base64(raw: bytes, field: str) -> bytes:
    letters = _SPACES.sub(b"", raw).rstrip(b"=").translate(_TO_STANDARD)
    if not letters:
        raise ValueError(f"{field}: the data: URL is empty; use the form {_EXAMPLE}")
    try:
        return base64.b64decode(letters + b"=" * (-len(letters) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{field}: invalid base64 ({error}); encode the bytes of the file once") from error
