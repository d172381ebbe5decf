"""The documentation site, built strictly by mkdocs; then every link, anchor and picture of what it wrote."""

from __future__ import annotations

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from ..pages import ROOT


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.fetched: list[str] = []  # what a browser loads without a click
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        self.links += [given[name] for name in ("href", "src") if given.get(name)]
        if tag in ("script", "img", "link") and given.get("rel") not in ("canonical", "prev", "next", "edit"):
            self.fetched += [given[name] for name in ("href", "src") if given.get(name)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    pytest.importorskip("mkdocs_jupyter")
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_no_link_of_the_site_is_broken(site: Path) -> None:
    pages = {path: _Page(path.read_text("utf-8")) for path in site.rglob("*.html")}
    assert len(pages) > 100
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            found = target.exists() and (
                not parts.fragment or target.suffix != ".html" or _has(pages, target, parts.fragment)
            )
            if not found:
                broken.append(f"{path.relative_to(site)}: {link}")
    assert broken == []


def _has(pages: dict[Path, _Page], target: Path, fragment: str) -> bool:
    return fragment.startswith("__") or unquote(fragment) in pages[target].anchors


def test_no_page_fetches_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        away = [url for url in _Page(path.read_text("utf-8")).fetched if urlsplit(url).netloc]
        assert away == [], path.name


def test_the_reference_shows_docstrings(site: Path) -> None:
    text = (site / "reference" / "models.html").read_text("utf-8")
    assert "unmask.pipeline.model.Model.generate" in text and "best-of-N" in text
