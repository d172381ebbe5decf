"""Pictures that clients fetch by a URL (``response_format: "url"``), for an hour.

Public idea: ``PictureUrls().linked(request)(data, "png") -> url``. The random name is the permission: such a URL needs no API key, so that
a browser can show it. A server that cannot hold a picture gives a data: URL instead.
"""

from __future__ import annotations

import base64
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

PATH = "/files"
_HOST = re.compile(r"[A-Za-z0-9._-]{1,255}(:\d{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:\d{1,5})?", re.ASCII)
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]{1,100}){0,10}", re.ASCII)
_SAFE = {"cache-control": "private, max-age=3600", "x-content-type-options": "nosniff"}

Link = Callable[[bytes, str], str]
"""A file and its format (png, jpeg, webp) -> URL."""


@dataclass(frozen=True, kw_only=True)
class _Kept:
    data: bytes
    file: str
    until: float


class PictureUrls:
    """Files in memory under random names. Beyond ``most_files`` or ``most_bytes`` the oldest are dropped. Safe in any thread.

    ``seconds``: how long a file is kept · ``clock``: seconds that only grow.
    """

    def __init__(
        self,
        *,
        seconds: float = 3600.0,
        most_files: int = 1000,
        most_bytes: int = 256 * 2**20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds, self.most_files, self.most_bytes, self.clock = seconds, most_files, most_bytes, clock
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._bytes = 0

    def linked(self, request: Request) -> Link:
        """URLs at the address that the client used."""
        base = address_of(request)

        def link(data: bytes, file: str) -> str:
            if base is None or len(data) > self.most_bytes:
                return data_url(data, file)
            return f"{base}{PATH}/{self.keep(data, file)}"

        return link

    def keep(self, data: bytes, file: str) -> str:
        """The name under which ``data`` is kept."""
        name = f"{secrets.token_urlsafe(24)}.{file}"
        with self._lock:
            self._kept[name] = _Kept(data=data, file=file, until=self.clock() + self.seconds)
            self._bytes += len(data)
            self._drop()
        return name

    def find(self, name: str) -> tuple[bytes, str] | None:
        """The file and its format; None if the name is unknown or no longer kept."""
        with self._lock:
            self._drop()
            found = self._kept.get(name)
        return (found.data, found.file) if found else None

    def _drop(self) -> None:
        now = self.clock()
        while self._kept:
            oldest = next(iter(self._kept.values()))
            if oldest.until > now and len(self._kept) <= self.most_files and self._bytes <= self.most_bytes:
                return
            self._kept.popitem(last=False)
            self._bytes -= len(oldest.data)


def data_url(data: bytes, file: str) -> str:
    return f"data:image/{file};base64,{base64.b64encode(data).decode('ascii')}"


def address_of(request: Request) -> str | None:
    """The server's address as the client sees it, without a slash at its end. None if the request does not say it.

    A proxy that serves below a path says so with X-Forwarded-Prefix, and its own name with X-Forwarded-Host. These headers only
    change the answer to the request that has them.
    """
    headers = request.headers
    host = headers.get("x-forwarded-host", headers.get("host", "")).partition(",")[0].strip()
    prefix = headers.get("x-forwarded-prefix", request.scope.get("root_path", "")).partition(",")[0].strip().rstrip("/")
    scheme = headers.get("x-forwarded-proto", request.url.scheme).partition(",")[0].strip().lower()
    valid = _HOST.fullmatch(host) and _PREFIX.fullmatch(prefix) and scheme in ("http", "https")
    return f"{scheme}://{host}{prefix}" if valid else None


def add_picture_route(app: FastAPI, urls: PictureUrls) -> None:
    @app.api_route(f"{PATH}/{{name}}", methods=["GET", "HEAD"], include_in_schema=False)
    async def picture(name: str) -> Response:
        """A picture by its URL."""
        found = urls.find(name)
        if found is None:
            raise HTTPException(404, "there is no such picture, or its time has passed; request it again")
        data, file = found
        return Response(data, media_type=f"image/{file}", headers=_SAFE)
