"""Molecules and crystals: data, validity, distances, the model's folder and its files, and words that it does not know."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unmask.data import matter
from unmask.data.samples import PackageMissing

torch.set_num_threads(1)


def test_without_ase_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, package: str | None = None) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(PackageMissing, match=r"'ase'; pip install 'unmask\[matter\]'"):
        matter.need("ase.build")


@pytest.mark.parametrize(
    ("kind", "elements", "valid"),
    [
        ("molecule", "C H H H H", True),
        ("molecule", "C H H H", False),  # a radical
        ("molecule", "H H H H", False),  # too many bonds
        ("molecule", "C Xe", False),
        ("molecule", "", False),
        ("element", "Fe Fe", True),
        ("element", "Fe Ni", False),
        ("rocksalt", "Na Cl", True),
        ("rocksalt", "Na O", False),
        ("rocksalt", "Na Cl Cl", False),
        ("fluorite", "Ca F F", True),
        ("fluorite", "Ca F Cl", False),
        ("perovskite", "Sr Ti O O O", True),
        ("perovskite", "Na Mg F F F", True),
        ("perovskite", "Ti Sr O O O", False),
        ("wurtzite", "Zn O Zn O", True),
        ("wurtzite", "Zn Zn O O", False),
    ],
)
def test_compositions_are_judged(kind: str, elements: str, valid: bool) -> None:
    assert matter.is_valid(kind, elements.split()) is valid


def test_distances_follow_turns_and_corners() -> None:
    water = matter.Structure(
        kind="molecule", elements=("O", "H", "H"), vectors=np.array([(0, 0, 0), (1, 0, 0), (0, 1, 0)], dtype=np.float32)
    )
    assert matter.distance_from(matter.turned(water, 1.0), water) < 1e-6
    longer = matter.Structure(kind="molecule", elements=water.elements, vectors=water.vectors * 1.1)
    assert matter.distance_from(longer, water) == pytest.approx(0.1 * 2**0.5, abs=1e-6)
    cell = np.concatenate([4 * np.eye(3), [(0, 0, 0), (0.5, 0.5, 0.5)]]).astype(np.float32)
    salt = matter.Structure(kind="cesiumchloride", elements=("Cs", "Cl"), vectors=cell)
    moved = cell.copy()
    moved[3] = (0.99, 0, 0)
    assert matter.distance_from(
        matter.Structure(kind=salt.kind, elements=salt.elements, vectors=moved), salt
    ) == pytest.approx(0.04, abs=1e-5)


def test_what_ase_ships_is_read_and_written(tmp_path: Path) -> None:
    ase = pytest.importorskip("ase.io")
    for one in (*matter.molecules(), *matter.crystals("train")):
        assert matter.is_valid(one.kind, one.elements), one
        assert len(one.vectors) == matter.vectors_of(one.kind, len(one.elements))
        assert set(one.elements) <= set(matter.ELEMENTS)
    seen, new = ({c.words for c in matter.crystals(split)} for split in ("train", "test"))
    assert new and not seen & new and matter.PROTOTYPES.keys() == {words[0] for words in new}
    salt = next(c for c in (*matter.crystals("train"), *matter.crystals("test")) if c.words == ("rocksalt", "Na", "Cl"))
    matter.write_structure(salt, tmp_path / "salt.cif")
    again = ase.read(str(tmp_path / "salt.cif"))
    assert again.get_chemical_formula() == "ClNa" and again.get_volume() == pytest.approx(
        abs(np.linalg.det(salt.vectors[:3])), rel=1e-3
    )
    with pytest.raises(ValueError, match=r"name it .cif, .pdb, .xyz"):
        matter.write_structure(salt, tmp_path / "salt.txt")
    assert matter.picture(salt).size == (220, 220)


def test_a_trained_model_builds_and_saves(tmp_path: Path) -> None:
    pytest.importorskip("ase")
    import unmask
    from unmask.cli.main import main
    from unmask.recipes import unigenx
    from unmask.recipes.matter_streams import Bins

    small = ("steps=2", "batch=4", "width=32", "layers=1")
    for name, more in (("head", ()), ("bins", ("bins=16",))):
        out = tmp_path / name
        assert (
            main(["train", "unigenx.matter", "--out", str(out), *(w for s in (*small, *more) for w in ("-o", s))]) == 0
        )
        model = unmask.load(out)
        assert isinstance(model, unigenx.Builder)
        one = model.build("rocksalt Na Cl", seed=1)
        assert one.vectors.shape == (5, 3) and np.array_equal(
            one.vectors, model.build("rocksalt Na Cl", seed=1).vectors
        )
        assert not np.array_equal(one.vectors, model.build("rocksalt Na Cl", seed=2).vectors)
        assert model.composition("molecule", seed=1)[0] == "molecule"
        unigenx.build(str(out), "molecule C H H H H", str(tmp_path / f"{name}.xyz"))
        assert (tmp_path / f"{name}.xyz").read_text().startswith("5\n")
        for words, message in (
            ("salt Na Cl", "is not a kind and elements"),
            ("rocksalt Na Uu", "'Uu' is no kind and no element"),
            ("molecule " + "H " * 9, "9 atoms are too many"),
            ("", "is not a kind and elements"),
        ):
            with pytest.raises(ValueError, match=message):
                model.build(words)
    bins = Bins(count=64)
    x = torch.linspace(-1.9, 1.9, 50)
    assert float((bins.values(bins.ids(x)) - x).abs().max()) <= 2 / 64 + 1e-6
