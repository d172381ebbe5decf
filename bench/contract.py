"""Requests made by schemathesis from /openapi.json, and answers checked against it.

Public idea: ``complaint(url, case) -> (status, text)`` with every check of schemathesis; "" if the answer is one that the document
describes. JSON Schema cannot say what an image is, how many tokens a text has, or which unknown names are misspelt ones: ``hooks`` gives
schemathesis images, cuts what would be too long or take minutes, and leaves out misspelt names. schemathesis.toml loads this file, so that
``st run`` has the hooks as well.
"""

from __future__ import annotations

import base64
import io
import re
from types import SimpleNamespace
from typing import Any

from PIL import Image

from unmask.serving.completions import Complete
from unmask.serving.schema import Draw, Edit, Ground, Infill
from unmask.serving.schema_chat import Chat
from unmask.serving.unknown_fields import misspelt

FORMAT = "image-data-url"
_SHORT = (("n", 2), ("reflect", 2), ("steps", 4), ("max_tokens", 16), ("max_completion_tokens", 16))
_TEXTS, _MOST_TEXT = ("prompt", "text", "content", "phrase", "phrases", "suffix"), 20  # characters
_NARROWER = re.compile(r"/oneOf/\d+/properties/(schedule|cache)\b")
_MOST_BOXES, _MOST_PARTS = 3, 4  # a layout has at most 512 tokens, a prompt 400, and a character at most 4


def picture(file: str = "PNG") -> bytes:
    """A small picture that is an image and a mask: its left half is transparent."""
    image = Image.new("RGBA", (8, 8), "red")
    image.paste((0, 0, 0, 0), (0, 0, 4, 8))
    buffer = io.BytesIO()
    image.save(buffer, file)
    return buffer.getvalue()


def hooks() -> None:
    """Register image files with schemathesis, and ``small`` for each request before it is sent."""
    import schemathesis
    from hypothesis import strategies as st

    files = {f"image/{file.lower()}": picture(file) for file in ("PNG", "WEBP")}
    urls = [f"data:{kind};base64,{base64.b64encode(data).decode()}" for kind, data in files.items()]
    schemathesis.openapi.format(FORMAT, st.sampled_from(urls))
    for kind, data in files.items():
        schemathesis.openapi.media_type(kind, st.just(data))

    @schemathesis.hook
    def before_call(context: Any, case: Any, kwargs: Any) -> None:
        # An invalid request is sent as it is: a lower number could make it valid.
        if isinstance(case.body, dict) and case.meta is not None and case.meta.generation.mode.is_positive:
            body = spelled(small(case.body))
            case.body.clear()  # in place: a body that is set is validated again, and one with files never is valid
            case.body.update(body)
            case._sync_validated_hashes()

    @schemathesis.hook
    def filter_failure(context: Any, failure: Any, case: Any, response: Any) -> bool:
        return not false_alarm(failure, case, response)


def false_alarm(failure: Any, case: Any, response: Any) -> bool:
    """Whether a valid request was taken for invalid: a schedule or cache beside a sampler, settings or speed, of which the document
    says less than the server takes (docs/api.md), or a form as it was sent, where an empty field is absent. Schemathesis checks the latter
    itself, but not in a form with files, whose bytes its validator does not read; here they are texts.
    """
    from schemathesis.specs.openapi.checks import _form_body_is_valid_as_sent

    if type(failure).__name__ != "AcceptedNegativeData" or not isinstance(case.body, dict):
        return False
    if _NARROWER.search(str(failure)):
        return True
    if case.media_type != "multipart/form-data":
        return False
    body = {name: "" if name in ("image", "mask") else value for name, value in case.body.items()}
    return _form_body_is_valid_as_sent(response, SimpleNamespace(body=body, operation=case.operation), case.media_type)


def small(body: dict[str, Any]) -> dict[str, Any]:
    """A valid body with few pictures, attempts and steps, and with short texts."""
    found = {name: _cut(value) if name in _TEXTS else _cut_inside(value) for name, value in body.items()}
    for name, most in _SHORT:
        value = found.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > most:
            found[name] = most
    if isinstance(found.get("boxes"), list):
        found["boxes"] = found["boxes"][:_MOST_BOXES]
    return found


def spelled(body: dict[str, Any]) -> dict[str, Any]:
    """A body without the unknown names that resemble a field of a request. The schema names some of them, not all."""
    policies = [kind.policy() for kind in (Draw, Edit, Ground, Infill, Chat, Complete)]
    known = {name for one in policies for name in (*one.known, *one.harmless, *one.unsupported)}
    return {name: value for name, value in body.items() if name in known or not misspelt(name, known)}


def _cut(value: Any) -> Any:
    """Texts without their end, unless that makes them empty."""
    if isinstance(value, str):
        short = value[:_MOST_TEXT]
        return short if short.strip() and ("[mask]" in short or "[mask]" not in value) else value
    return [_cut(one) for one in value[:_MOST_PARTS]] if isinstance(value, list) else _cut_inside(value)


def _cut_inside(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _cut(one) if name in _TEXTS else _cut_inside(one) for name, one in value.items()}
    return [_cut_inside(one) for one in value] if isinstance(value, list) else value


def operations(url: str) -> list[Any]:
    """The operations of a document."""
    import schemathesis
    from schemathesis.core.result import Ok

    hooks()
    return [found.ok() for found in schemathesis.openapi.from_url(url).get_all_operations() if isinstance(found, Ok)]


def complaint(url: str, case: Any) -> tuple[int, str]:
    """Send a case; its status, and the faults of its answer."""
    try:
        response = case.call(base_url=url, timeout=300)
    except Exception as error:
        return 0, f"no answer: {error!r}"
    try:
        case.validate_response(response)
    except BaseExceptionGroup as failed:
        wrong = [error for error in failed.exceptions if not false_alarm(error, case, response)]
        return response.status_code, _about(case) + "; ".join(str(e)[:1500] for e in wrong) if wrong else ""
    except AssertionError as failed:
        return response.status_code, "" if false_alarm(failed, case, response) else _about(case) + str(failed)[:1500]
    return response.status_code, ""


def _about(case: Any) -> str:
    """The request, cut where it is long, so that a complaint can be reproduced."""
    return f"{case.method} {case.path} {case.body!r:.600} "


if __name__ != "contract":  # loaded by schemathesis
    hooks()
