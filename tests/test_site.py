"""The documentation site without its generator: navigation, links and anchors. ``make test-integrations`` builds it strictly.

The pages that came with the site run as a reader would run them.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from PIL import Image

from .pages import ROOT, commands, follow, python
from .test_examples import TASKS

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
WIDEST = 1600  # pixels of a picture, and its bytes: what a telephone should have to fetch
HEAVIEST = 160_000


def _hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("website_hooks", ROOT / "website" / "hooks.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOKS = _hooks()


class _Loader(yaml.SafeLoader):
    """Names of Python objects stay names: mkdocs resolves them."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda loader, suffix, node: suffix)
CONFIG = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), _Loader)


def leaves(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for below in nav.values() if isinstance(nav, dict) else nav:
            yield from leaves(below)


@cache
def anchors(page: Path) -> set[str]:
    """Those of its headings, numbered where two have one name, and as GitHub makes them."""
    found: dict[str, int] = {}
    made = set()
    for title in re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.S | re.M), re.M):
        anchor = HOOKS.slug(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title), "-")
        made.add(f"{anchor}-{found[anchor]}" if anchor in found else anchor)
        found[anchor] = found.get(anchor, 0) + 1
    return made


def test_every_page_is_in_the_navigation_once() -> None:
    listed = list(leaves(CONFIG["nav"]))
    assert len(listed) == len(set(listed))
    docs = {p.relative_to(ROOT / "docs").as_posix() for kind in ("md", "ipynb") for p in ROOT.glob(f"docs/**/*.{kind}")}
    made = {f"reference/{path.name}" for path in (ROOT / "website" / "reference").glob("*.md")}
    others = set(HOOKS.PAGES.values()) - {"readme.md", "reporting.md"}  # reached by links
    assert set(listed) == docs | made | others, "mkdocs.yml: nav, and website/hooks.py: PAGES"


def test_the_first_page_leads_to_every_page_of_docs() -> None:
    linked = {path for path, _ in HOOKS.links((ROOT / "docs" / "index.md").read_text("utf-8"))}
    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= linked | {"index.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for path, anchor in HOOKS.links(page.read_text("utf-8")):
        target = page.parent / path if path else page
        assert target.is_file(), f"{path} does not exist, or is a folder, which the site cannot show"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{path} has no heading #{anchor}"


def test_what_lies_outside_docs_has_a_page() -> None:
    assert "unmask/step.py" in HOOKS.sources()
    assert HOOKS.site_page("docs/serve.md") == "serve.md" and HOOKS.site_page("CHANGELOG.md") == "changes.md"
    assert HOOKS.site_page("unmask/step.py") == "source/unmask/step.py.md" and HOOKS.site_page("unmask/no.py") is None


def test_links_are_led_to_pages_of_the_site() -> None:
    class Page:
        class file:
            src_uri = "decoding/dida.md"

    text = "[a](../data.md#rows) [b](../../unmask/step.py) [c](https://x.org) [d](#here) ![e](../pictures/plan.webp)"
    assert HOOKS.on_page_markdown(text, Page, None, None) == text.replace("../../", "../source/").replace(
        ".py", ".py.md"
    )


def test_the_reference_names_what_exists() -> None:
    named = [
        n for p in (ROOT / "website/reference").glob("*.md") for n in re.findall(r"^::: (\S+)", p.read_text(), re.M)
    ]
    assert len(named) > 30
    for name in named:
        parts = name.split(".")
        while not (file := ROOT.joinpath(*parts).with_suffix(".py")).exists() and len(parts) > 1:
            parts.pop()
        rest = name.split(".")[len(parts) :]
        if name != "unmask.load":
            assert file.exists() and len(rest) < 2, name
            assert not rest or re.search(rf"^(class|def) {rest[0]}\b", file.read_text("utf-8"), re.M), name


@pytest.mark.parametrize("picture", sorted((ROOT / "docs").rglob("*.[jp][pn]g")), ids=lambda path: path.name)
def test_pictures_are_made_for_telephones(picture: Path) -> None:
    assert picture.stat().st_size <= HEAVIEST and Image.open(picture).width <= WIDEST


@pytest.mark.parametrize("name", ["index", "coming-from"])
def test_the_new_pages_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / f"{name}.md").read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    exec("\n".join(python(page)), {"__name__": "page"})
    others = [
        command for command in commands(page) if command.split()[1] not in TASKS
    ]  # tests/test_examples.py has those
    assert others
    for command in others:
        follow(command, tmp_path)
