"""The OpenAPI document of one server. Public idea: ``add_document_route(app, service, keyed=...)`` serves it as /openapi.json.

FastAPI lists the routes and their bodies; this module adds what it cannot know: every error, HEAD, and the limits of the served model.
Requests that the document allows are accepted (docs/api.md names the few limits that JSON Schema cannot express).
"""

from __future__ import annotations

import functools
import json
from typing import Any

from fastapi import FastAPI, Response
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from unmask.json_types import Json
from unmask.serving.contract import COMPONENTS, TALK_COMPONENTS
from unmask.serving.limits import limited
from unmask.serving.service import Service

_REF = "#/components/schemas/{model}"
_ABOUT = """Every error has the schema `Error` and the header `x-request-id`. A path answers 405, with the header `Allow`, to methods that
are not listed here, and unknown paths are answered with 404. Web pages of other origins and unknown host names get 403."""
_ERRORS = {
    400: "The request is invalid; `param` names the field.",
    401: "The API key is missing or wrong.",
    403: "The request comes from a page of another site, the host name is not one of the server's, or the API key lacks a scope.",
    404: "The server does not serve this model, or has no run of this name.",
    405: "The path does not take this method; the header Allow lists those that it takes.",
    408: "The body arrived too slowly.",
    409: "The run is finished and takes no more changes.",
    413: "The body is too large, or its JSON has too many values.",
    415: "The content type is not the one that the path takes.",
    429: "The queue is full, or the rate is exceeded; retry after `Retry-After` seconds.",
    500: "The model or the server failed; see its log.",
    503: "The server shuts down or restarts; retry after `Retry-After` seconds.",
}
_ALWAYS = (403, 405, 413, 500)
_STRING, _INTEGER = {"type": "string"}, {"type": "integer", "minimum": 0}
_ID = {"x-request-id": {"description": "Id of the request, also in the server's log.", "schema": _STRING}}
_MORE_HEADERS = {
    405: {"Allow": {"description": "Methods of the path.", "required": True, "schema": _STRING}},
    429: {"Retry-After": {"description": "Seconds to wait.", "required": True, "schema": _INTEGER}},
    503: {"Retry-After": {"description": "Seconds to wait.", "schema": _INTEGER}},
}


def add_document_route(app: FastAPI, service: Service | None, *, keyed: bool) -> None:
    """Serve the document of the routes that the application has when it is first asked for. ``service``: adds the limits of its model;
    None: the application is that of talks.
    """
    made = functools.cache(lambda: json.dumps(document(app, service, keyed=keyed), allow_nan=False))

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return Response(made(), media_type="application/json")


def document(app: FastAPI, service: Service | None, *, keyed: bool) -> Json:
    """``keyed``: whether paths below /v1 need an API key."""
    found: Json = get_openapi(title=app.title, version=app.version, routes=app.routes, description=_ABOUT)
    schemas = found.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which this server never sends
        schemas.pop(name, None)
    components = COMPONENTS if service else TALK_COMPONENTS
    _, own = models_json_schema([(model, "serialization") for model in components], ref_template=_REF)
    schemas.update(own["$defs"])
    if keyed:
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, methods in found["paths"].items():
        below = path.startswith("/v1")
        for method, operation in list(methods.items()):
            _complete(operation, below=below, posted=method in ("post", "patch"), named="{name}" in path, keyed=keyed)
            if method == "get":
                methods["head"] = _head(operation)
    if service:
        limited(found, service.model, list(service.adapted))
    return found


def _complete(operation: Json, *, below: bool, posted: bool, named: bool, keyed: bool) -> None:
    """Add the errors of an operation, and remove those that it never has."""
    responses: dict[str, Any] = operation["responses"]
    responses.pop("422", None)
    for response in responses.values():
        response.setdefault("headers", {}).update(_ID)
        if response.get("content", {}).get("application/json", {}) == {"schema": {}}:
            del response["content"]["application/json"]
    statuses = [*_ALWAYS, *((400, 404, 408, 415, 429, 503) if posted else ()), *((404,) if named else ())]
    changes = (409,) if "patch" in operation["operationId"] else ()
    for status in sorted({*statuses, *changes, *((401,) if below and keyed else ())}):
        error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
        headers = {**_ID, **_MORE_HEADERS.get(status, {})}
        responses[str(status)] = {"description": _ERRORS[status], "headers": headers, "content": error}
    if below and keyed:
        operation["security"] = [{"key": []}]


def _head(operation: Json) -> Json:
    """The same without a body."""
    responses = {
        status: {key: value for key, value in response.items() if key != "content"}
        for status, response in operation["responses"].items()
    }
    return {
        **operation,
        "summary": f"{operation['summary']} (headers only)",
        "operationId": f"{operation['operationId']}_head",
        "responses": responses,
    }
