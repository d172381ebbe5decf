"""Exceptions as OpenAI-style error responses. Public idea: ``error_response(error) -> ErrorResponse``: status, body and retry delay."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from unmask.json_types import Json
from unmask.sampling.sampler import NothingUnmasked
from unmask.serving.requests import Cancelled, Closed, ForwardFailed, QueueFull
from unmask.serving.service import Draining

_MOST = 500  # characters of a message
_KINDS = {401: "authentication_error", 404: "invalid_request_error", 429: "rate_limit_error"}


class NoSuchModel(ValueError):
    """The requested model is not the served one."""


@dataclass(frozen=True, kw_only=True)
class ErrorResponse:
    """``server_fault``: the server is at fault; the exception is logged with its traceback · ``retry_after``: seconds."""

    status: int
    message: str
    code: str
    param: str | None = None
    retry_after: float | None = None
    server_fault: bool = False

    @property
    def body(self) -> Json:
        kind = _KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        return {"retry-after": str(math.ceil(self.retry_after))} if self.retry_after is not None else {}


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
            return ErrorResponse(status=500, message=text, code="model_failed", server_fault=True)
        case NoSuchModel():
            return ErrorResponse(status=404, message=text, code="model_not_found", param="model")
        case HTTPException():
            return ErrorResponse(
                status=error.status_code, message=str(error.detail)[:_MOST], code=_code(error.status_code)
            )
        case NothingUnmasked():  # only unusual settings cause this
            message = f"settings: sampling makes no progress with these ({text}); change them"
            return ErrorResponse(status=400, message=message, code="invalid_value", param="settings")
        case ValueError():
            named, colon, _ = text.partition(": ")
            param = named if colon and named.isidentifier() else None
            return ErrorResponse(status=400, message=text, code="invalid_value", param=param)
    return ErrorResponse(
        status=500, message="internal server error; see the server's log", code="internal", server_fault=True
    )


def _invalid(error: RequestValidationError | ValidationError) -> ErrorResponse:
    """The first validation error and its location."""
    found = error.errors()
    first: Any = found[0] if found else {"loc": (), "msg": "invalid request", "type": ""}
    place = ".".join(str(part)[:50] for part in first["loc"] if part != "body")
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        return ErrorResponse(
            status=400, message=f"the body is not valid JSON ({message} at {place})", code="invalid_json"
        )
    if not place and first["type"] in ("model_attributes_type", "model_type", "missing"):
        message = "the body must be a JSON object; send one, with the header content-type: application/json"
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    whole = f"{place}: {message}{more}" if place else message + more
    return ErrorResponse(status=400, message=whole[:_MOST], code="invalid_value", param=place or None)


def _code(status: int) -> str:
    return {404: "not_found", 405: "method_not_allowed", 401: "invalid_api_key", 413: "too_large"}.get(
        status, "invalid_request"
    )
