"""What mkdocs does besides: pages from outside docs/, and links that work on GitHub and on the site.

Public idea: ``site_page(path in the repository) -> path on the site``. Pages of docs/ link to files of the source tree, for example
``../unmask/step.py``. GitHub shows those. The site has a page of every file that is linked so, with its text, and the link leads there.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
# Pages outside docs/ that the navigation has: path in the repository -> path on the site.
PAGES = {
    "README.md": "readme.md",
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "reporting.md",
    "unmask/assets/mini/README.md": "mini.md",
}
_LONGEST = 400_000  # bytes of a file that is shown; a longer one is linked as it is
_LANGUAGES = {".py": "python", ".json": "json", ".jsonl": "json", ".yml": "yaml", ".toml": "toml", ".sh": "bash"}
_HIDDEN = "---\nsearch:\n  exclude: true\n---\n"


def slug(title: str, separator: str) -> str:
    """The anchor of a heading, as GitHub makes it: lower case, letters, digits, ``-`` and ``_``, a dash for every space."""
    plain = re.sub(r"<[^>]*>", "", title).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", separator)


def links(text: str) -> Iterator[tuple[str, str]]:
    """(path, anchor) of every link of a page to a file or heading, outside code."""
    for match in LINK.finditer(prose(text)):
        if "://" not in match[2] and not match[2].startswith("mailto:"):
            path, _, anchor = match[2].partition("#")
            yield unquote(path), anchor


def prose(text: str) -> str:
    """A page without its code."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^( *)(```|~~~).*?^\1\2", "", text, flags=re.S | re.M))


def site_page(path: str) -> str | None:
    """Where a file of the repository is on the site; None where it is not on it."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path in PAGES:
        return PAGES[path]
    return f"source/{path}.md" if (ROOT / path).is_file() else None


def sources() -> list[str]:
    """The files outside docs/ that some page links to."""
    pages = [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")]
    found = {_joined(page, path) for page in [*pages, *PAGES] for path, _ in links(_read(page)) if path}
    return sorted(path for path in found if (site_page(path) or "").startswith("source/"))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reference, the pages of ``PAGES``, the style and the sources."""
    from mkdocs.structure.files import File

    made = {f"reference/{path.name}": path.read_text("utf-8") for path in (ROOT / "website/reference").glob("*.md")}
    made |= {place: _read(page) for page, place in PAGES.items()}
    made |= {f"source/{path}.md": _shown(path) for path in sources()}
    made["style.css"] = _read("website/style.css")
    for place, text in made.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files of the repository into links between pages of the site."""
    here = page.file.src_uri
    home = {place: path for path, place in PAGES.items()}.get(here, f"docs/{here}")
    if here.startswith(("source/", "reference/")):
        return markdown

    def led(match: re.Match[str]) -> str:
        path, mark, anchor = match[2].partition("#")
        place = site_page(_joined(home, unquote(path))) if path and "://" not in path else None
        if place is None:
            return match[0]
        return f"{match[1]}{posixpath.relpath(place, posixpath.dirname(here) or '.')}{mark}{anchor}{match[3]}"

    return LINK.sub(led, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Notebooks come as HTML, with links to pages as they are in docs/."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html
    return re.sub(r'(href="(?!\w+:)[^"#]+)\.(?:md|ipynb)(?=["#])', r"\1.html", html)


def _joined(page: str, path: str) -> str:
    """The path in the repository that a relative link of a page means."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), path))


def _read(path: str) -> str:
    text = (ROOT / path).read_text("utf-8")
    return re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.S) if path.endswith(".md") else text


def _shown(path: str) -> str:
    """The page of a source file."""
    text = (ROOT / path).read_text("utf-8", "replace")
    if len(text) > _LONGEST:
        text = text[:_LONGEST] + "\n… (the file is longer)\n"
    language = _LANGUAGES.get(Path(path).suffix, "text")
    return f"{_HIDDEN}# {path}\n\n~~~~{language}\n{text}\n~~~~\n"
