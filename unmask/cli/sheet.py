"""Contact sheets: pictures with captions, in titled rows. Public idea: ``sheet(rows) -> picture``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

_GAP = 16
_INK, _PALE = (30, 30, 34), (90, 90, 98)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A picture and the lines below it; the first line is dark, the others pale."""

    picture: Image.Image
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Row:
    """Cells of equal width, ``columns`` per line, under an optional title."""

    cells: tuple[Cell, ...]
    columns: int
    title: str = ""


def sheet(rows: Sequence[Row], *, width: int = 1200) -> Image.Image:
    """All rows below each other on white, ``width`` pixels wide."""
    blocks = [block for row in rows for block in _blocks(row, width - 2 * _GAP)]
    high = sum(b.height + _GAP for b in blocks) + _GAP
    page = Image.new("RGB", (width, high), "white")
    top = _GAP
    for block in blocks:
        page.paste(block, (_GAP, top))
        top += block.height + _GAP
    return page


def _blocks(row: Row, width: int) -> list[Image.Image]:
    """The title, then one picture per line of cells."""
    blocks = [_words((row.title,), width, 22)] if row.title else []
    wide = (width - (row.columns - 1) * _GAP) // row.columns
    for start in range(0, len(row.cells), row.columns):
        drawn = [_drawn(cell, wide) for cell in row.cells[start : start + row.columns]]
        line = Image.new("RGB", (width, max(d.height for d in drawn)), "white")
        for i, d in enumerate(drawn):
            line.paste(d, (i * (wide + _GAP), 0))
        blocks.append(line)
    return blocks


def _drawn(cell: Cell, width: int) -> Image.Image:
    factor = width / cell.picture.width
    picture = cell.picture.convert("RGB").resize((width, max(1, round(cell.picture.height * factor))), _way(factor))
    if not cell.lines:
        return picture
    words = _words(cell.lines, width, 15)
    whole = Image.new("RGB", (width, picture.height + 6 + words.height), "white")
    whole.paste(picture, (0, 0))
    whole.paste(words, (0, picture.height + 6))
    return whole


def _way(factor: float) -> Image.Resampling:
    return Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.BICUBIC


def _words(lines: Sequence[str], width: int, size: int) -> Image.Image:
    font = ImageFont.load_default(size)
    wrapped = [(part, _PALE if i else _INK) for i, line in enumerate(lines) for part in _wrap(line, width, font)]
    high = round(size * 1.35)
    block = Image.new("RGB", (width, high * len(wrapped)), "white")
    pen = ImageDraw.Draw(block)
    for i, (part, colour) in enumerate(wrapped):
        pen.text((0, i * high), part, fill=colour, font=font)
    return block


def _wrap(line: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Line breaks between words; a word longer than a line gets a line of its own and is cut off."""
    made: list[str] = [""]
    for word in line.split():
        longer = f"{made[-1]} {word}".strip()
        if made[-1] and font.getlength(longer) > width:
            made.append(word)
        else:
            made[-1] = longer
    return made
