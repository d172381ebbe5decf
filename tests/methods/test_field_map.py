"""The map of docs/methods.md: every method has a place, a status and a way to run it; files, pages and surveys that it names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from unmask.cli.methods import page
from unmask.evaluation.sampler_axes import ORDERS, every_order
from unmask.pipeline.catalogue import methods, samplers
from unmask.pipeline.field import HERE, NOT_HERE, PARTS, SURVEYS, TECHNIQUES, Technique, rows

ROOT = Path(__file__).parents[2]


def test_every_method_has_a_row_with_a_place_a_status_and_a_figure() -> None:
    table = page().partition("## The map")[2].partition("\n\n## ")[0]
    found = {m[1]: m[0].split(" | ") for m in re.finditer(r"^\| \[(\w+)\]\(#.*$", table, re.MULTILINE)}
    assert set(found) == set(methods())
    for name, cells in found.items():
        _, place, file, command, status, ours, theirs = cells
        assert set(place.split(", ")) <= set(PARTS), f"{name} is in no part of the field"
        assert (ROOT / "docs" / file.partition("](")[2].rstrip(")")).exists() and command.strip("`")
        assert status == methods()[name].card["status"] and theirs
        assert ours != "none yet", f"{name} has no figure; run its demonstration and set figure="


def test_what_the_techniques_name_exists() -> None:
    for one in TECHNIQUES:
        assert set(one.named) <= set(SURVEYS) and one.named, one.name
        assert set(one.methods) <= set(methods()), one.name
        assert all((ROOT / "unmask" / file).exists() for file in one.files), one.name
        assert not one.page or (ROOT / "docs" / one.page).exists(), one.name
        assert one.status == (NOT_HERE if one.why else HERE)
        assert one.why or one.methods or one.page, f"{one.name}: where is it measured?"
    assert [one for part in PARTS for one in rows(part)] == list(TECHNIQUES)


def test_a_technique_has_a_known_part_and_files_or_a_reason() -> None:
    with pytest.raises(ValueError, match="'art' is not a part of the field"):
        Technique(part="art", name="x", named="A", files=("a.py",))
    for more in ({}, {"files": ("a.py",), "why": "no"}):
        with pytest.raises(ValueError, match="x: give the files that have it, or why it is not here"):
            Technique(part="training", name="x", named="A", **more)


def test_all_orders_are_those_that_need_no_folder() -> None:
    every = every_order()
    assert every[: len(ORDERS)] == ORDERS and len(set(every)) == len(every)
    assert {"remdm", "eb_sampler"} <= set(every) and "wavefront" not in every
    assert not any(samplers()[name].folders for name in every if name in samplers())
