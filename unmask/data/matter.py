"""Molecules and crystals as words and vectors: what the package ``ase`` ships, and prototype crystals that it builds.

Public ideas: ``molecules()``, ``crystals(split)`` are lists of ``Structure``; ``write_structure`` writes CIF, PDB and XYZ files
through ``ase``. Molecules are those of the G2 set (Curtiss et al. 1997) with closed shells and up to 8 atoms; crystals are those of the
elements in the DCDFT set (Lejaeghere et al. 2014), and eight prototypes over ions, whose lattice constants follow from covalent radii.

Needs ``pip install 'unmask[matter]'``. Lengths are in Angstrom, coordinates of crystals in shares of the cell's edges.
"""

from __future__ import annotations

import importlib
import itertools
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from unmask.data.samples import PackageMissing
from unmask.writing import write_whole

MOLECULE, ELEMENT = "molecule", "element"
MOST_ATOMS = 8  # of a molecule
VALENCE = {
    "H": 1,
    "Li": 1,
    "Na": 1,
    "Be": 2,
    "B": 3,
    "Al": 3,
    "C": 4,
    "Si": 4,
    "N": 3,
    "P": 3,
    "O": 2,
    "S": 2,
    "F": 1,
    "Cl": 1,
}
CHARGE = {
    **dict.fromkeys(("Li", "Na", "K", "Rb", "Cs"), 1),
    **dict.fromkeys(("Be", "Mg", "Ca", "Sr", "Ba", "Zn", "Cd"), 2),
    **dict.fromkeys(("B", "Al", "Ga", "In"), 3),
    **dict.fromkeys(("Si", "Ti", "Ge", "Zr", "Sn", "Hf"), 4),
    **dict.fromkeys(("F", "Cl", "Br", "I"), -1),
    **dict.fromkeys(("O", "S", "Se", "Te"), -2),
    **dict.fromkeys(("N", "P", "As", "Sb"), -3),
}  # fmt: skip


ELEMENTS = tuple(  # by their numbers
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd "
    "In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn".split()
)
_FORMATS = {".cif": "cif", ".pdb": "proteindatabank", ".xyz": "extxyz"}  # ending -> the name that ase has for it


@dataclass(frozen=True, kw_only=True)
class Structure:
    """``kind``: "molecule", "element", or a prototype such as "rocksalt" · ``elements``: of each atom ·
    ``vectors``: float32 [atoms, 3] of a molecule; of a crystal the three edges of its cell, then its atoms.
    """

    kind: str
    elements: tuple[str, ...]
    vectors: np.ndarray

    @property
    def is_crystal(self) -> bool:
        return self.kind != MOLECULE

    @property
    def words(self) -> tuple[str, ...]:
        return (self.kind, *self.elements)


def need(part: str) -> Any:
    """A module of ``ase``. PackageMissing where it is not installed."""
    try:
        return importlib.import_module(part)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("ase", "scipy"):
            raise
        raise PackageMissing("molecules and crystals need the package 'ase'; pip install 'unmask[matter]'") from error


def vectors_of(kind: str, atoms: int) -> int:
    """Vectors that a structure of so many atoms has."""
    return atoms + (0 if kind == MOLECULE else 3)


@lru_cache(maxsize=1)
def molecules() -> tuple[Structure, ...]:
    """Centred, as the set has them, in the order of their names."""
    g2, found = need("ase.collections").g2, []
    for name in sorted(g2.names):
        one = g2[name]
        elements = tuple(one.get_chemical_symbols())
        if 2 <= len(elements) <= MOST_ATOMS and is_valid(MOLECULE, elements):
            centred = (one.positions - one.positions.mean(0)).astype(np.float32)
            found.append(Structure(kind=MOLECULE, elements=elements, vectors=centred))
    return tuple(found)


def turned(one: Structure, angle: float) -> Structure:
    """A molecule turned about its z axis by ``angle`` radians."""
    c, s = math.cos(angle), math.sin(angle)
    turn = np.array(((c, -s, 0), (s, c, 0), (0, 0, 1)), dtype=np.float32)
    return replace(one, vectors=one.vectors @ turn.T)


# -- crystals ----------------------------------------------------------------------------------------------------------


def _cubic(name: str, ratio: float, ions: Sequence[str], build: Any, radius: Callable[[str], float]) -> Any:
    """A cell of ``ase.build.bulk`` whose constant is ``ratio`` times the distance of the first and the last ion."""
    length = ratio * (radius(ions[0]) + radius(ions[-1]))
    text = "".join(ions) if name != "fluorite" else f"{ions[0]}{ions[-1]}2"
    return build.bulk(text, name, a=length)


def _perovskite(ions: Sequence[str], build: Any, radius: Callable[[str], float]) -> Any:
    edge = 2 * (radius(ions[1]) + radius(ions[2]))
    symbols = [ions[0], ions[1], *[ions[2]] * 3]
    places = [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)]
    return need("ase").Atoms(symbols=symbols, scaled_positions=places, cell=[edge] * 3, pbc=True)


_THIRD = 3**-0.5
PROTOTYPES: dict[str, tuple[tuple[tuple[int, ...], ...], Callable[..., Any]]] = {
    "rocksalt": (((1, -1), (2, -2)), partial(_cubic, "rocksalt", 2.0)),
    "cesiumchloride": (((1, -1),), partial(_cubic, "cesiumchloride", 2 * _THIRD)),
    "zincblende": (((3, -3), (2, -2)), partial(_cubic, "zincblende", 4 * _THIRD)),
    "wurtzite": (((3, -3), (2, -2)), partial(_cubic, "wurtzite", 4 * _THIRD * 0.5**0.5)),
    "fluorite": (((2, -1),), partial(_cubic, "fluorite", 4 * _THIRD)),
    "perovskite": (((2, 4, -2), (1, 2, -1)), _perovskite),
}
KINDS = (MOLECULE, ELEMENT, *PROTOTYPES)


@lru_cache(maxsize=2)
def crystals(split: str) -> tuple[Structure, ...]:
    """``split``: "train", or "test" for a fifth of the compositions of the prototypes, which are in no training."""
    build, data = need("ase.build"), need("ase.data")

    def radius(element: str) -> float:
        return float(data.covalent_radii[data.atomic_numbers[element]])

    found = [] if split == "test" else _elements()
    for name, (charges, make) in PROTOTYPES.items():
        for wanted in charges:
            for ions in itertools.product(*([e for e, c in CHARGE.items() if c == charge] for charge in wanted)):
                if (zlib.crc32(f"{name} {ions}".encode()) % 5 == 0) == (split == "test"):
                    found.append(_structure(name, make(ions, build, radius)))
    return tuple(found)


def _elements() -> list[Structure]:
    dcdft = need("ase.collections").dcdft
    return [_structure(ELEMENT, dcdft[name]) for name in sorted(dcdft.names) if len(dcdft[name]) <= 4]


def _structure(kind: str, one: Any) -> Structure:
    vectors = np.concatenate([one.cell[:], one.get_scaled_positions()]).astype(np.float32)
    return Structure(kind=kind, elements=tuple(one.get_chemical_symbols()), vectors=vectors)


def atoms(one: Structure) -> Any:
    """As an ``ase.Atoms``."""
    make = need("ase").Atoms
    if one.kind == MOLECULE:
        return make(symbols=list(one.elements), positions=one.vectors)
    return make(symbols=list(one.elements), cell=one.vectors[:3], scaled_positions=one.vectors[3:], pbc=True)


def write_structure(one: Structure, path: Path) -> None:
    """A .cif, .pdb or .xyz file. ValueError for another ending."""
    if path.suffix not in _FORMATS:
        raise ValueError(f"{path.name} is no file of a structure; name it {', '.join(_FORMATS)}")
    write_whole(path, lambda part: atoms(one).write(str(part), format=_FORMATS[path.suffix]))


# -- judging -----------------------------------------------------------------------------------------------------------


def is_valid(kind: str, elements: Sequence[str]) -> bool:
    """Whether a composition is possible: of a molecule, rings and double bonds are a whole number from 0; of a prototype, the atoms are
    as many and as charged as its formula says, like ones together; of an element, all atoms are alike.
    """
    if not elements:
        return False
    if kind == MOLECULE:
        if any(element not in VALENCE for element in elements):
            return False
        doubled = 2 + sum(VALENCE[element] - 2 for element in elements)
        return doubled >= 0 and doubled % 2 == 0
    if kind == ELEMENT:
        return len(set(elements)) == 1
    if any(element not in CHARGE for element in elements):
        return False
    layout = {"fluorite": (0, 1, 1), "perovskite": (0, 1, 2, 2, 2), "wurtzite": (0, 1, 0, 1)}.get(kind, (0, 1))
    if len(elements) != len(layout) or len(set(layout)) != len({*zip(elements, layout, strict=True)}):
        return False
    ions = [elements[layout.index(i)] for i in range(max(layout) + 1)]
    return tuple(CHARGE[ion] for ion in ions) in PROTOTYPES[kind][0]


def distance_from(one: Structure, truth: Structure) -> float:
    """The largest difference in Angstrom: of a molecule between distances of atoms, of a crystal between edges of the cell or places of
    atoms, those around the corner of the cell included.
    """
    if one.kind == MOLECULE:
        pairs = [np.linalg.norm(v[:, None] - v[None], axis=-1) for v in (one.vectors, truth.vectors)]
        return float(np.abs(pairs[0] - pairs[1]).max())
    edges, places = np.abs(one.vectors[:3] - truth.vectors[:3]), one.vectors[3:] - truth.vectors[3:]
    places = np.abs((places - np.round(places)) @ truth.vectors[:3])
    return float(max(edges.max(), places.max()))


def picture(one: Structure, side: int = 220) -> Image.Image:
    """The atoms seen along z, in the colours of ``ase``, with the cell of a crystal; 1 Angstrom is side / 8 pixels."""
    data = need("ase.data")
    colours = need("ase.data.colors").jmol_colors
    image, unit = Image.new("RGB", (side, side), "#ffffff"), side / 8
    pen = ImageDraw.Draw(image)
    turn = np.array(((0.94, 0.0, -0.34), (-0.12, 0.94, -0.32), (0.32, 0.34, 0.88)))
    places = one.vectors if one.kind == MOLECULE else one.vectors[3:] @ one.vectors[:3]
    corners = np.zeros((1, 3))
    if one.is_crystal:
        corners = np.array(list(itertools.product((0, 1), repeat=3))) @ one.vectors[:3]
    middle = places.mean(0) if one.kind == MOLECULE else corners.mean(0)

    def at(v: np.ndarray) -> tuple[float, float]:
        x, y, _ = turn @ (v - middle)
        return side / 2 + float(x) * unit, side / 2 - float(y) * unit

    if one.is_crystal:
        for a, b in itertools.combinations(range(8), 2):
            if bin(a ^ b).count("1") == 1:
                pen.line((*at(corners[a]), *at(corners[b])), "#9aa0a8", 1)
    for i in np.argsort((places - middle) @ turn[2]):
        number = data.atomic_numbers[one.elements[i]]
        r, (x, y) = 0.5 * data.covalent_radii[number] * unit, at(places[i])
        colour = tuple(int(255 * c) for c in colours[number])
        pen.ellipse((x - r, y - r, x + r, y + r), colour, "#303030")
    return image
