"""Protein backbones of ideal geometry with letters that fit their structure, distances between backbones, pictures, and PDB or CIF files.

Public ideas: ``sample(split, seed, i) -> Protein``; ``built(torsions)`` places N, CA and C; ``rmsd`` and ``tm`` compare two backbones;
``write_protein(path, letters, atoms)`` writes a file with the package ``gemmi`` (``pip install 'unmask[matter]'``).

A chain is made of helices, strands, hairpins (two strands and a turn) and loops, whose residues follow propensities like those of Chou and
Fasman 1978. Lengths are in Angstrom, angles in radians. Shapes: R residues.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from unmask.data.samples import PackageMissing
from unmask.rng import key
from unmask.writing import write_whole

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
RESIDUES = 28
ANGLES = {  # phi and psi in degrees of each state
    "helix": (-62.0, -43.0),
    "strand": (-120.0, 130.0),
    "turn 1": (55.0, 38.0),
    "turn 2": (80.0, 5.0),
    "loop": (-75.0, 145.0),
}
LIKES = {"helix": "ALEKMQR", "strand": "VIYFWT", "turn 1": "ND", "turn 2": "G", "loop": "PSHC"}
_OWN = 0.85  # probability of a letter that the state likes
_NOISE = 2.5  # degrees
_THREE = "ALA CYS ASP GLU PHE GLY HIS ILE LYS LEU MET ASN PRO GLN ARG SER THR VAL TRP TYR".split()  # of LETTERS
_BONDS = {"N": 1.329, "CA": 1.458, "C": 1.525}  # from the atom before
_BENDS = {"N": 117.2, "CA": 121.7, "C": 111.0}  # degrees, at the atom before


@dataclass(frozen=True, kw_only=True)
class Protein:
    """``letters``: one for each residue · ``torsions``: phi and psi, float32 [R, 2]."""

    letters: str
    torsions: np.ndarray


def sample(split: str, seed: int, number: int) -> Protein:
    """Protein ``number`` of a split; splits have random streams of their own."""
    rng, states = np.random.default_rng(key("backbone", split, seed, number)), list[str]()
    while len(states) < RESIDUES:
        kind = rng.choice(("helix", "strand", "hairpin"))
        length = int(rng.integers(4, 8))
        one = ["strand"] * length
        states += {"helix": ["helix"] * (length + 4), "strand": one, "hairpin": [*one, "turn 1", "turn 2", *one]}[
            str(kind)
        ]
        states += ["loop"] * int(rng.integers(2, 4))
    states = states[:RESIDUES]
    angles = np.radians(np.array([ANGLES[s] for s in states]) + _NOISE * rng.standard_normal((RESIDUES, 2)))
    letters = "".join(rng.choice(list(LIKES[s])) if rng.random() < _OWN else rng.choice(list(LETTERS)) for s in states)
    return Protein(letters=letters, torsions=angles.astype(np.float32))


def built(torsions: np.ndarray) -> np.ndarray:
    """N, CA and C of each residue from phi and psi [R, 2], with all peptide bonds trans: [R, 3, 3]."""
    atoms = [np.array((0.0, 0.0, 0.0)), np.array((_BONDS["CA"], 0.0, 0.0))]
    bend = math.radians(180 - _BENDS["C"])
    atoms.append(atoms[1] + _BONDS["C"] * np.array((math.cos(bend), math.sin(bend), 0.0)))
    for before, here in zip(torsions[:-1], torsions[1:], strict=True):
        for name, torsion in (("N", before[1]), ("CA", math.pi), ("C", here[0])):
            atoms.append(_placed(atoms[-3:], _BONDS[name], math.radians(_BENDS[name]), float(torsion)))
    return np.stack(atoms).reshape(-1, 3, 3)


def _placed(last: list[np.ndarray], bond: float, bend: float, torsion: float) -> np.ndarray:
    """The atom after three others (Parsons et al. 2005)."""
    a, b, c = last
    along = (c - b) / np.linalg.norm(c - b)
    normal = np.cross(b - a, along)
    normal /= np.linalg.norm(normal)
    side = np.cross(normal, along)
    x, y, z = -math.cos(bend), math.sin(bend) * math.cos(torsion), math.sin(bend) * math.sin(torsion)
    return c + bond * (x * along + y * side + z * normal)


# -- comparing ---------------------------------------------------------------------------------------------------------


def superposed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``a [R, 3]`` moved onto ``b`` with the smallest squared distance, without a mirror (Kabsch 1976)."""
    x, y = a - a.mean(0), b - b.mean(0)
    u, _, v = np.linalg.svd(x.T @ y)
    mirror = np.diag((1.0, 1.0, float(np.sign(np.linalg.det(u @ v)))))
    return x @ u @ mirror @ v + b.mean(0)


def rmsd(a: np.ndarray, b: np.ndarray) -> float:
    """Of the CA atoms of two backbones [R, 3, 3], superposed."""
    one, other = a[:, 1], b[:, 1]
    return float(np.sqrt(np.square(superposed(one, other) - other).sum(1).mean()))


def tm(a: np.ndarray, b: np.ndarray) -> float:
    """Like the TM-score (Zhang and Skolnick 2004), but of the superposition with the smallest RMSD, so not above it; 1 for equal ones."""
    one, other = a[:, 1], b[:, 1]
    scale = max(0.5, 1.24 * max(0.0, len(a) - 15) ** (1 / 3) - 1.8)
    far = np.square(superposed(one, other) - other).sum(1)
    return float((1 / (1 + far / scale**2)).mean())


# -- pictures and files ------------------------------------------------------------------------------------------------


def picture(atoms: np.ndarray, behind: np.ndarray | None = None, side: int = 220) -> Image.Image:
    """The trace of N, CA and C, from blue to red; ``behind``: another backbone in grey, onto which the first one is moved."""
    image = Image.new("RGB", (side, side), "#ffffff")
    pen, chain = ImageDraw.Draw(image), atoms.reshape(-1, 3)
    base = chain if behind is None else behind.reshape(-1, 3)
    middle, (_, _, axes) = base.mean(0), np.linalg.svd(base - base.mean(0), full_matrices=False)
    shown = [(superposed(chain, base), True)] if behind is not None else [(chain, True)]
    shown = ([(base, False)] if behind is not None else []) + shown
    flat = [((points - middle) @ axes[:2].T, coloured) for points, coloured in shown]
    unit = 0.45 * side / max(float(np.abs(points).max()) for points, _ in flat)
    for points, coloured in flat:
        places = [(side / 2 + x * unit, side / 2 + y * unit) for x, y in points.tolist()]
        for i, (a, b) in enumerate(zip(places[:-1], places[1:], strict=True)):
            share = i / len(places)
            pen.line((*a, *b), (int(230 * share), 70, int(230 * (1 - share))) if coloured else (190, 190, 190), 3)
    return image


def write_protein(path: Path, letters: str, atoms: np.ndarray) -> None:
    """Write a backbone as .pdb or .cif. PackageMissing without gemmi; ValueError for another ending."""
    try:
        gemmi = importlib.import_module("gemmi")
    except ModuleNotFoundError as error:
        raise PackageMissing("PDB and CIF files need the package 'gemmi'; pip install 'unmask[matter]'") from error
    if path.suffix not in (".pdb", ".cif"):
        raise ValueError(f"{path.name} is no PDB or CIF file; name it .pdb or .cif")
    made, chain = gemmi.Structure(), gemmi.Chain("A")
    for i, (letter, places) in enumerate(zip(letters, atoms.tolist(), strict=True)):
        residue = gemmi.Residue()
        residue.name, residue.seqid, residue.entity_type = (
            _THREE[LETTERS.index(letter)],
            gemmi.SeqId(str(i + 1)),
            gemmi.EntityType.Polymer,
        )
        for name, element, place in zip(("N", "CA", "C"), "NCC", places, strict=True):
            atom = gemmi.Atom()
            atom.name, atom.element, atom.pos = name, gemmi.Element(element), gemmi.Position(*place)
            residue.add_atom(atom)
        chain.add_residue(residue)
    model = gemmi.Model(1)
    model.add_chain(chain)
    made.add_model(model)
    made.setup_entities()
    write_whole(
        path,
        lambda part: (
            made.write_pdb(str(part)) if path.suffix == ".pdb" else made.make_mmcif_document().write_file(str(part))
        ),
    )
