"""The routes of the web page: its files, the model card, the documentation, and previews of images.

Public idea: ``add_page_routes(app, service)``. Everything the page shows comes from this server, so it works without a network.
"""

from __future__ import annotations

import asyncio
import io
from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from unmask.pipeline.model import Model
from unmask.serving.picture_reader import PictureReader
from unmask.serving.service import Served, Service
from unmask.tokens.sources import ImageError

PREVIEW = 1024  # pixels of the longer side; the page scales its own images down to the same size
_PACKAGE = Path(str(files("unmask")))
_FIRST = ("tour.md", "page.md", "serve.md", "api.md")  # of the list of documents; the others follow by name


def add_page_routes(app: FastAPI, service: Service) -> None:
    """Serve the web page, if its files are installed."""
    web, docs = _PACKAGE / "serving" / "web", docs_folder()

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        if (web / "index.html").exists():
            return FileResponse(web / "index.html", headers={"cache-control": "no-cache"})
        return JSONResponse({"message": "unmask API server; see /v1/models and docs/api.md"})

    @app.get("/docs", include_in_schema=False)
    async def documents() -> Response:
        return RedirectResponse("web/read.html#docs")

    @app.get("/docs/index.json", include_in_schema=False)
    async def titles() -> Response:
        """The documents that are installed, and whether the model has a card."""
        return JSONResponse({"card": card_of(service.model) is not None, "pages": document_titles(docs)})

    @app.get("/v1/card", include_in_schema=False)
    async def card() -> Response:
        """The README.md in the folder of the model."""
        found = card_of(service.model)
        if found is None:
            raise HTTPException(404, "this model has no card: there is no README.md in its folder")
        return PlainTextResponse(found.read_text("utf-8", "replace"), media_type="text/markdown")

    @app.post("/v1/preview", include_in_schema=False)
    async def preview(request: Request) -> Response:
        """An image file of any format that the server reads (the body) as a small PNG, for browsers that cannot decode it."""
        body = await request.body()
        png = await asyncio.to_thread(preview_of, body, service.pictures)
        return Response(png, media_type="image/png")

    if docs:
        app.mount("/docs", StaticFiles(directory=docs), name="docs")
    if web.exists():
        app.mount("/web", StaticFiles(directory=web), name="web")


def docs_folder() -> Path | None:
    """The documentation: in the installed package, or beside it in a source tree. None if it is not installed."""
    found = (_PACKAGE / "docs", _PACKAGE.parent / "docs")
    return next((folder for folder in found if (folder / "page.md").is_file()), None)


def document_titles(folder: Path | None) -> list[dict[str, str]]:
    """``{"name": "tour.md", "title": ...}`` of every document; the title is its first line."""
    if folder is None:
        return []
    names = sorted(path.name for path in folder.glob("*.md"))
    ordered = [name for name in _FIRST if name in names] + [name for name in names if name not in _FIRST]
    return [{"name": name, "title": _title(folder / name)} for name in ordered]


def _title(document: Path) -> str:
    with document.open(encoding="utf-8") as lines:
        return next(lines, "").lstrip("# ").strip() or document.stem


def card_of(model: Served) -> Path | None:
    """The README.md beside the weights of a model; None if there is none, and for text models."""
    weights = model.parts.weights if isinstance(model, Model) else None
    card = weights.checkpoint.place / "README.md" if weights else None
    return card if card and card.is_file() else None


def preview_of(image: bytes, reader: PictureReader) -> bytes:
    """An image file -> PNG, RGB, at most ``PREVIEW`` pixels on the longer side. ImageError as of ``read_image``."""
    if not image:
        raise ImageError("the image is empty; send the bytes of a file")
    buffer = io.BytesIO()
    reader.thumbnail(image, PREVIEW).save(buffer, "PNG")
    return buffer.getvalue()
