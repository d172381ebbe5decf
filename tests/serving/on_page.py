"""What tests of the web page import: the parts of the browser and the ways to use a task.

Importing it skips the test file where there is no browser; with UNMASK_NEEDS_BROWSER=1 that is a failure.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import unmask
from unmask.serving.server import Server

NEEDED = os.environ.get("UNMASK_NEEDS_BROWSER") == "1"
pytest.importorskip("fastapi", reason="the server needs unmask[serve]")
if not NEEDED:
    pytest.importorskip("playwright.sync_api")
from playwright.sync_api import Locator, Page, expect  # noqa: E402

from .browser import MISSING, PATIENCE, Visit, chromium, panel, picture, same, watch  # noqa: E402

if not chromium():
    pytest.fail(MISSING, pytrace=False) if NEEDED else pytest.skip(MISSING, allow_module_level=True)

WEB = Path(unmask.__file__).parent / "serving" / "web"
AXE = Path(os.environ.get("UNMASK_AXE", Path(__file__).parents[2] / ".axe/node_modules/axe-core/axe.min.js"))
expect.set_options(timeout=PATIENCE)

__all__ = [
    "AXE",
    "Locator",
    "Page",
    "Visit",
    "WEB",
    "ask",
    "done",
    "expect",
    "freed",
    "panel",
    "picture",
    "same",
    "standing_still",
    "violations",
    "watch",
]


@contextmanager
def standing_still(model: Any, after: int) -> Iterator[None]:
    """Stop the model after some forwards until the block is left, so that a job is certainly running."""
    go_on, count = threading.Event(), itertools.count()

    def wait(*_: Any) -> None:
        if next(count) >= after:
            go_on.wait()

    hook = model.parts.net.register_forward_pre_hook(wait)
    try:
        yield
    finally:
        hook.remove()
        go_on.set()


def freed(server: Server) -> None:
    """Wait until no call is running."""
    changed = server.service._changed
    with changed:
        assert changed.wait_for(lambda: not server.service.under_way, 120)


def ask(place: Locator, prompt: str, **settings: int) -> None:
    """Fill in a task and run it with the keyboard."""
    for name, value in settings.items():
        place.locator(f"input[name={name}]").fill(str(value))
    place.locator("textarea").first.fill(prompt)
    place.page.keyboard.press("Control+Enter")


def done(place: Locator, said: str = "Done") -> None:
    expect(place.locator(".line")).to_contain_text(said)
    expect(place.locator(".error")).to_be_hidden()


def violations(page: Page) -> list[str]:
    """What axe-core calls serious or critical."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [
        f"{v['id']}: {v['help']} {[node['target'] for node in v['nodes'][:3]]}"
        for v in found
        if v["impact"] in ("serious", "critical")
    ]
