"""Fixtures of the tests of the web page: a served model and browser windows."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import unmask
from unmask.serving.server import Server, listen
from unmask.serving.service import Service

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from .browser import Visit


@pytest.fixture(scope="module")
def model() -> Any:
    return unmask.load("mini")


@pytest.fixture(scope="module")
def server(model: Any) -> Iterator[Server]:
    with Server(Service(model, name="mini"), listen("127.0.0.1", 0)) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from .browser import launched

    with launched() as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = os.environ.get("UNMASK_SCREENSHOTS")
    place = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    place.mkdir(parents=True, exist_ok=True)
    return place


@pytest.fixture
def visits(browser: Browser) -> Iterator[Callable[..., Visit]]:
    """Browser windows; checked at the end: no console errors, and no requests to other hosts."""
    made: list[Visit] = []

    def visit(url: str, *, size: tuple[int, int] = (1360, 900), dark: bool = False, still: bool = False) -> Visit:
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce" if still else "no-preference",
        )
        from .browser import Visit

        made.append(Visit(context=context, url=url))
        return made[-1]

    yield visit
    for one in made:
        one.context.close()
        assert [u for u in one.asked if not u.startswith((one.url, "data:", "blob:"))] == []
        assert [c for c in one.complaints if not (one.expected and re.search(one.expected, c))] == []
    assert all(one.asked for one in made)


@pytest.fixture
def page(visits: Callable[..., Visit], server: Server) -> Page:
    return visits(server.url).page()
