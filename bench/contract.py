"""Requests made by schemathesis from /openapi.json, and answers held against it.

Public idea: ``complaint(url, case) -> (status, text)`` with every check of schemathesis; "" if the answer is one that the document
describes. Files are the only values that JSON Schema cannot describe: ``known_pictures`` tells schemathesis what an image is.
schemathesis.toml loads this file, so that ``st run`` knows it as well.
"""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image

FORMAT = "image-data-url"
_SHORT = (("n", 2), ("reflect", 2), ("steps", 4), ("max_tokens", 16), ("max_completion_tokens", 16))


def picture(file: str = "PNG") -> bytes:
    """A small picture that is an image and a mask: its left half is transparent."""
    image = Image.new("RGBA", (8, 8), "red")
    image.paste((0, 0, 0, 0), (0, 0, 4, 8))
    buffer = io.BytesIO()
    image.save(buffer, file)
    return buffer.getvalue()


def known_pictures() -> None:
    """Register image files with schemathesis."""
    import schemathesis
    from hypothesis import strategies as st

    files = {f"image/{file.lower()}": picture(file) for file in ("PNG", "WEBP")}
    urls = [f"data:{kind};base64,{base64.b64encode(data).decode()}" for kind, data in files.items()]
    schemathesis.openapi.format(FORMAT, st.sampled_from(urls))
    for kind, data in files.items():
        schemathesis.openapi.media_type(kind, st.just(data))


def operations(url: str) -> list[Any]:
    """The operations of a document."""
    import schemathesis
    from schemathesis.core.result import Ok

    known_pictures()
    return [found.ok() for found in schemathesis.openapi.from_url(url).get_all_operations() if isinstance(found, Ok)]


def complaint(url: str, case: Any) -> tuple[int, str]:
    """Send a case, and give its status and what is wrong with its answer.

    A valid case gets few pictures, attempts and steps, so that it is answered soon. An invalid one is sent as it is: a lower number could
    make it valid.
    """
    if isinstance(case.body, dict) and case.meta.generation.mode.is_positive:
        for name, most in _SHORT:
            value = case.body.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > most:
                case.body[name] = most
    try:
        response = case.call(base_url=url, timeout=300)
    except Exception as error:
        return 0, f"no answer: {error!r}"
    try:
        case.validate_response(response)
    except BaseExceptionGroup as failed:
        return response.status_code, _about(case) + "; ".join(str(error)[:1500] for error in failed.exceptions)
    except AssertionError as failed:
        return response.status_code, _about(case) + str(failed)[:1500]
    return response.status_code, ""


def _about(case: Any) -> str:
    """The request, cut where it is long, so that a complaint can be reproduced."""
    return f"{case.method} {case.path} {case.body!r:.600} "


if __name__ != "contract":  # loaded by schemathesis
    known_pictures()
