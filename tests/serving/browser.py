"""The browser that the page is looked at with: the one that UNMASK_CHROMIUM names, or a Chromium that is installed; none is fetched."""

from __future__ import annotations

import base64
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from PIL import Image, ImageChops
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")  # as the target ``browser`` of the Makefile knows them
PATIENCE = 120_000  # milliseconds: the machine may be busy
MISSING = "no browser: install the system package chromium, or name one in UNMASK_CHROMIUM"


def chromium() -> str | None:
    """Where it is. None where there is none, or none at the place that was named."""
    named = os.environ.get("UNMASK_CHROMIUM")
    return next((found for name in ([named] if named else NAMES) if (found := shutil.which(name))), None)


@contextmanager
def launched() -> Iterator[Browser]:
    found = chromium()
    if not found:
        raise RuntimeError(MISSING)
    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Visit:
    """A browser window with its requests and console errors. ``expected``: a pattern of errors that a test expects."""

    context: BrowserContext
    url: str
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    expected: str = ""

    def page(self, fragment: str = "", *, tab: str = "Draw") -> Page:
        page = self._opened(fragment)
        expect(page.get_by_role("tab", name=tab) if tab else page.get_by_role("heading")).to_be_visible()
        return page

    def locked(self) -> Page:
        """The page of a server with API keys, which asks for one."""
        self.expected = "status of 401"
        return self._opened()

    def _opened(self, fragment: str = "") -> Page:
        page = self.context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))
        page.goto(f"{self.url}/{fragment}")
        return page


def panel(page: Page, name: str) -> Locator:
    """Open a tab; its panel."""
    page.get_by_role("tab", name=name).click()
    return page.locator(f"#panel-{name.lower()}")


def picture(link: Locator) -> Image.Image:
    """The image behind a download link."""
    url = link.get_attribute("href") or ""
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.size == b.size and ImageChops.difference(a, b.convert("RGB")).getbbox() is None


def watch(place: Locator) -> None:
    """Record the number of masked tokens on the canvas at every change."""
    place.locator(".frame > canvas[role=img]").evaluate(
        """canvas => { window.seen = [];
        const note = () => window.seen.push(Number(canvas.dataset.masked));
        new MutationObserver(note).observe(canvas, {attributeFilter: ["data-masked"]}); }"""
    )
