"""DPG-Bench's prompts as published: a CSV with one row per question, or a folder with one .txt per prompt (Hu et al., 2024).

Public idea: ``read_dpg(path) -> (DpgPrompt, …)``. Columns of the CSV: item_id, text, keywords, proposition_id, dependency, category_broad,
category_detailed, tuple, question_natural_language. The released reader skips the first row (spec 5.1); this one reads it.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from unmask.data.published import FormatError, file_stem, first_twice, text_of

COLUMNS = (
    *("item_id", "text", "keywords", "proposition_id", "dependency", "category_broad", "category_detailed"),
    *("tuple", "question_natural_language"),
)


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question about a picture. ``parents``: questions that must be answered with yes before this one counts."""

    number: int
    parents: tuple[int, ...]
    category: str
    detail: str
    fact: str
    text: str


@dataclass(frozen=True, kw_only=True)
class DpgPrompt:
    """``key``: name of its image · ``questions``: empty for prompts from a folder."""

    key: str
    text: str
    questions: tuple[Question, ...] = ()


def read_dpg(path: Path) -> tuple[DpgPrompt, ...]:
    """All prompts of a CSV in order, or of a folder by name. FormatError with file and line."""
    return _from_folder(path) if path.is_dir() else _from_table(path)


def _from_folder(folder: Path) -> tuple[DpgPrompt, ...]:
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise FormatError(f"no .txt file in {folder}; expected one per prompt, named after its id")
    return tuple(DpgPrompt(key=file.stem, text=text_of(file).strip()) for file in files)


def _from_table(path: Path) -> tuple[DpgPrompt, ...]:
    rows = csv.DictReader(io.StringIO(text_of(path), newline=""), strict=True)
    missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
    if missing:
        raise FormatError(f"{path.name}, line 1: no column {', '.join(missing)}; expected {', '.join(COLUMNS)}")
    texts: dict[str, str] = {}
    questions: dict[str, list[Question]] = {}
    try:
        for row in rows:
            place = f"{path.name}, line {rows.line_num}"
            key, text = _cells(row, place)
            if texts.setdefault(key, text) != text:
                raise FormatError(f"{place}: {key!r} has two different texts; an item_id has one text")
            questions.setdefault(key, []).append(_question(row, place))
            if first_twice([q.number for q in questions[key]]) is not None:
                raise FormatError(f"{place}: {key!r} has this proposition_id already; ids must be unique")
    except csv.Error as error:
        raise FormatError(
            f"{path.name}, line {rows.line_num} is not a valid CSV ({error}); use the published file"
        ) from error
    if not texts:
        raise FormatError(f"{path.name} has a header but no rows; is the download complete?")
    return tuple(DpgPrompt(key=key, text=text, questions=tuple(questions[key])) for key, text in texts.items())


def _cells(row: dict[str, str], place: str) -> tuple[str, str]:
    if None in row or None in row.values():
        raise FormatError(f"{place}: the number of cells differs from the header; check the quotes")
    if not row["item_id"].strip() or not row["text"].strip():
        raise FormatError(f"{place}: item_id or text is empty; expected both")
    return file_stem(row["item_id"].strip(), place), row["text"].strip()


def _question(row: dict[str, str], place: str) -> Question:
    try:
        number = int(row["proposition_id"])
        parents = tuple(int(p) for p in row["dependency"].split(","))
    except ValueError as error:
        found = f"proposition_id {row['proposition_id']!r}, dependency {row['dependency']!r}"
        raise FormatError(f"{place}: {found}; expected a number, and numbers with commas (0: none)") from error
    return Question(
        number=number,
        parents=tuple(p for p in parents if p),
        category=row["category_broad"].strip(),
        detail=row["category_detailed"].strip(),
        fact=row["tuple"].strip(),
        text=row["question_natural_language"].strip(),
    )
