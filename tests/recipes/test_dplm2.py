"""Small proteins: geometry, scores, codes, the model's folder and its verbs, files, and sequences that do not fit."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import unmask
from unmask.cli.main import main
from unmask.data.samples import PackageMissing
from unmask.data.world.backbones import ANGLES, RESIDUES, built, picture, rmsd, sample, tm, write_protein
from unmask.models.lora import adapters
from unmask.recipes.backbone_codes import PAIRS, Tokenizer, letters_of, pool, rows_of
from unmask.recipes.dplm2 import MOTIF, ProteinModel, fold, fresh, letters_recipe, pair_recipe, scaffolded

torch.set_num_threads(1)


def dihedral(p: np.ndarray) -> float:
    """Of four atoms, in radians."""
    a, b, c = np.diff(p, axis=0)
    m, n = np.cross(a, b), np.cross(b, c)
    return float(np.arctan2(np.cross(m, n) @ b / np.linalg.norm(b), m @ n))


def test_built_backbones_have_the_torsions_and_the_rise_of_a_helix() -> None:
    torsions = sample("test", 0, 3).torsions
    atoms = built(torsions).reshape(-1, 3)
    for i in range(1, RESIDUES - 1):
        assert dihedral(atoms[3 * i - 1 : 3 * i + 3]) == pytest.approx(torsions[i, 0], abs=1e-4)
        assert dihedral(atoms[3 * i : 3 * i + 4]) == pytest.approx(torsions[i, 1], abs=1e-4)
    helix = built(np.radians(np.full((16, 2), ANGLES["helix"])))[:, 1]
    assert np.linalg.norm(helix[12] - helix[0]) / 12 == pytest.approx(1.5, abs=0.1)  # Angstrom a residue


def test_scores_do_not_see_turns_but_mirrors() -> None:
    a, b = (built(sample("test", 0, i).torsions) for i in (1, 2))
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    assert rmsd(a @ turn + 5, a) < 1e-6 and tm(a @ turn + 5, a) == pytest.approx(1)
    assert rmsd(a * (1, 1, -1), a) > 1 and tm(b, a) < 0.5 < rmsd(b, a)


def test_rows_are_read_back() -> None:
    some = list(pool("test", 0)[:3])
    ids = rows_of(Tokenizer(), some)
    assert ids.shape == (3, 2 * (RESIDUES + 2)) and letters_of(ids) == [letters for letters, _ in some]
    assert int(PAIRS.normal(ids).sum()) == 3 * 2 * RESIDUES
    assert not PAIRS.structure.normal(rows_of(None, some)[:, : RESIDUES + 2]).any()
    with pytest.raises(ValueError, match="is not a sequence of 28 of the letters"):
        rows_of(None, [("AXA", some[0][1])])


def test_a_warm_start_keeps_the_letters_and_trains_products_and_embeddings() -> None:
    start = letters_recipe(1, 0).model()
    recipe = pair_recipe(Tokenizer(), 2, 0, start=start)
    made = recipe.model()
    assert recipe.adapt is not None
    assert (
        torch.equal(made.net.embed.weight[:33], start.net.embed.weight) and made.net.embed.num_embeddings == PAIRS.size
    )
    recipe.adapt(made)
    trained = {n for n, p in made.named_parameters() if p.requires_grad}
    assert len(list(adapters(made))) == 4 * len(made.net.blocks)
    assert (
        all("lora" in n or n in ("net.embed.weight", "net.head.weight") for n in trained)
        and "net.head.weight" in trained
    )


def test_a_motif_stays_where_the_rest_is_made() -> None:
    from unmask.recipes.dplm2 import Folder

    module, some = Folder(Tokenizer(), fresh(PAIRS.size, 0, 32, 1)).eval(), list(pool("test", 0)[:2])
    letters, _ = scaffolded(module, some, 3, 0)
    assert [a[MOTIF] for a in letters] == [b[MOTIF] for b, _ in some] and letters[0] != some[0][0]


def test_a_trained_model_folds_inverts_and_saves(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(["train", "dplm2.proteins", "--out", str(out), "-o", "steps=2", "-o", "vq_steps=2"]) == 0
    model, known = unmask.load(out), pool("test", 0)[0]
    assert isinstance(model, ProteinModel)
    torsions = model.fold(known[0], steps=3)
    assert torsions.shape == (RESIDUES, 2) and np.array_equal(torsions, model.fold(known[0], steps=3))
    assert len(model.invert(known[1], steps=3)) == RESIDUES
    letters, made = model.both(steps=3)
    assert len(letters) == RESIDUES and picture(built(made), built(torsions)).size == (220, 220)
    with pytest.raises(ValueError, match="is not a sequence of 28"):
        model.fold("AAA")
    gemmi = pytest.importorskip("gemmi")
    for name in ("a.pdb", "a.cif"):
        fold(str(out), known[0], str(tmp_path / name))
        chain = gemmi.read_structure(str(tmp_path / name))[0]["A"]
        assert len(chain) == RESIDUES and gemmi.one_letter_code([r.name for r in chain]) == known[0]
    with pytest.raises(ValueError, match=r"name it .pdb or .cif"):
        write_protein(tmp_path / "a.txt", known[0], built(torsions))


def test_without_gemmi_the_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str, package: str | None = None) -> Any:
        raise ModuleNotFoundError(name, name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(PackageMissing, match=r"'gemmi'; pip install 'unmask\[matter\]'"):
        write_protein(tmp_path / "a.pdb", "A", np.zeros((1, 3, 3)))
