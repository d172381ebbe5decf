"""Exceptions as OpenAI-style error responses. Public idea: ``error_response(error) -> ErrorResponse``: status, body and headers."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from unmask.json_types import Json
from unmask.sampling.sampler import NothingUnmasked
from unmask.serving.invalid import invalid
from unmask.serving.requests import Cancelled, Closed, ForwardFailed, QueueFull
from unmask.serving.service import Draining
from unmask.tasks.live import RunOver, TooManyChanges

_MOST = 500  # characters of a message
_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {
    404: "not_found",
    405: "method_not_allowed",
    401: "invalid_api_key",
    413: "too_large",
    415: "unsupported_media_type",
}
_SUBJECTS = (  # how messages of the model begin, and the field that they are about
    ("an answer in this format", "response_format"),
    ("an answer for ", "response_format"),
    ("the prompt", "prompt"),
    ("no [mask]", "text"),
    ("there is no sampler", "sampler"),
    ("the sampler", "settings"),
    *((start, "settings") for start in ("setting ", "a schedule ", "a step ", "a block ", "corrections ", "a shift ")),
    *((start, "boxes") for start in ("the layout", "the box of", "a box ")),
    ("ground needs", "phrases"),
    ("the region", "mask"),
)


class NoSuchModel(ValueError):
    """The requested model is not the served one."""


class NoSuchRun(ValueError):
    """There is no run of that name to change."""


class NotYourRun(PermissionError):
    """The run was started with another API key."""


class MissingScope(PermissionError):
    """The API key of a request lacks a scope."""


class FieldError(ValueError):
    """A value of the field ``param`` that the model cannot use."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


@contextmanager
def about(param: str, *, instead_of: Collection[str] = ()) -> Iterator[None]:
    """A ValueError inside becomes a FieldError of the field ``param``, unless it names a field already that is not in ``instead_of``."""
    try:
        yield
    except (FieldError, NoSuchModel, NoSuchRun, NothingUnmasked):
        raise
    except ValueError as error:
        if not _ours(error):
            raise
        named = _named(str(error))
        raise FieldError(str(error), param if named is None or named in instead_of else named) from error


@dataclass(frozen=True, kw_only=True)
class ErrorResponse:
    """``server_fault``: the exception is logged with its traceback · ``retry_after``: seconds · ``allow``: methods of the path (405)."""

    status: int
    message: str
    code: str
    param: str | None = None
    retry_after: float | None = None
    allow: str | None = None
    server_fault: bool = False

    @property
    def body(self) -> Json:
        kind = _KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        retry = {"retry-after": str(math.ceil(self.retry_after))} if self.retry_after is not None else {}
        slow = {"connection": "close"} if self.status == 408 else {}  # the rest of its body need not be read
        return retry | slow | ({"allow": self.allow} if self.allow else {})


def error_response(error: BaseException) -> ErrorResponse:
    """The response for an exception. Unexpected exceptions become a 500 without details."""
    text = str(error)[:_MOST]
    match error:
        case RequestValidationError() | ValidationError():
            return _invalid(error)
        case QueueFull():
            return ErrorResponse(status=429, message=text, code="queue_full", retry_after=error.retry_after)
        case Draining():
            return ErrorResponse(status=503, message=text, code="draining", retry_after=1)
        case Closed():
            return ErrorResponse(
                status=503, message=f"{text}; retry", code="engine_stopped", retry_after=1, server_fault=True
            )
        case Cancelled() | ConnectionAbortedError():
            return ErrorResponse(status=499, message="the request was cancelled", code="cancelled")
        case ForwardFailed():
            reason = "ran out of memory" if "out of memory" in text.lower() else "failed"
            message = f"the model {reason} on this request; see the server's log"
            return ErrorResponse(status=500, message=message, code="model_failed", server_fault=True)
        case MissingScope():
            message = f"this API key lacks the scope {text!r}; use another key"
            return ErrorResponse(status=403, message=message, code="missing_scope")
        case NotYourRun():
            return ErrorResponse(status=403, message=text, code="not_your_run")
        case NoSuchRun():
            return ErrorResponse(status=404, message=text, code="run_not_found")
        case RunOver():
            return ErrorResponse(status=409, message=text, code="run_finished")
        case TooManyChanges():
            return ErrorResponse(status=429, message=text, code="too_many_changes", retry_after=1)
        case NoSuchModel():
            return ErrorResponse(status=404, message=text, code="model_not_found", param="model")
        case HTTPException():
            return _http(error)
        case NothingUnmasked():  # only unusual settings cause this
            message = f"settings: sampling makes no progress with these ({text}); change them"
            return ErrorResponse(status=400, message=message, code="invalid_value", param="settings")
        case FieldError():
            return ErrorResponse(status=400, message=text, code="invalid_value", param=error.param)
        case ValueError():
            return _value(error, text)
    return ErrorResponse(
        status=500, message="internal server error; see the server's log", code="internal", server_fault=True
    )


def wrong_content_type(got: str) -> ErrorResponse:
    """415 for a body that is not sent as JSON."""
    sent = f"got {got[:80]}" if got else "got none"
    message = f"the content type must be application/json, {sent}; send the header content-type: application/json"
    return ErrorResponse(status=415, message=message, code=_CODES[415])


def _invalid(error: RequestValidationError | ValidationError) -> ErrorResponse:
    found = error.errors()
    if found and found[0]["type"] == "json_invalid":
        reason, at = (found[0].get("ctx") or {}).get("error", "malformed"), found[0]["loc"][-1]
        message = f"the body is not valid JSON: {reason} at character {at}; check quotes, commas and brackets"
        return ErrorResponse(status=400, message=message[:_MOST], code="invalid_json")
    told = invalid(found, getattr(error, "body", None))
    return ErrorResponse(status=400, message=told.message[:_MOST], code="invalid_value", param=told.param)


def _http(error: HTTPException) -> ErrorResponse:
    status, allow = error.status_code, (error.headers or {}).get("Allow")
    if status == 404 and error.detail == "Not Found":
        message = "there is no such path; /openapi.json lists the paths of this server"
    elif status == 405:
        message = f"this path does not take that method; it takes {allow}"
    elif status == 400 and "parsing the body" in str(
        error.detail
    ):  # invalid UTF-8, or numbers or nesting beyond the parser's limits
        message = "the body is not valid JSON in UTF-8, or is nested too deeply; send a JSON object"
        return ErrorResponse(status=status, message=message, code="invalid_json")
    else:
        message = str(error.detail)[:_MOST]
    return ErrorResponse(status=status, message=message, code=_CODES.get(status, "invalid_request"), allow=allow)


def _value(error: ValueError, text: str) -> ErrorResponse:
    """400 for a ValueError of this package. The text of any other library is logged, not sent."""
    if not _ours(error):
        message = "a value of the request cannot be used; check its fields against /openapi.json"
        return ErrorResponse(status=400, message=message, code="invalid_value", server_fault=True)
    return ErrorResponse(status=400, message=text, code="invalid_value", param=_named(text))


def _named(text: str) -> str | None:
    """The field that a message is about, as in ``size: ...``."""
    named, colon, _ = text.partition(": ")
    if colon and all(part.isidentifier() or part.isdecimal() for part in named.split(".")):
        return named
    return next((field for start, field in _SUBJECTS if text.startswith(start)), None)


def _ours(error: BaseException) -> bool:
    """Whether this package raised an exception."""
    frame = error.__traceback__
    while frame and frame.tb_next:
        frame = frame.tb_next
    return frame is None or frame.tb_frame.f_globals.get("__name__", "").partition(".")[0] == __name__.partition(".")[0]
