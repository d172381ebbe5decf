"""Colour profiles (ICC.1:2001-04) made for tests: RGB by primaries and gamma, grey by gamma, and tables for RGB and CMYK."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Sequence

import numpy as np

# Columns: the primaries in XYZ under D50.
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
DISPLAY_P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
ADOBE_RGB = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
PROPHOTO = np.array([[0.79767, 0.13519, 0.03134], [0.28804, 0.71188, 0.00009], [0.0, 0.0, 0.82491]])
_D50 = (0.9642, 1.0, 0.8249)


def linear(encoded: np.ndarray) -> np.ndarray:
    """sRGB's curve, 0..1 -> 0..1."""
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def encoded(light: np.ndarray) -> np.ndarray:
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def as_srgb(pixels: np.ndarray, primaries: np.ndarray, curve: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """What sRGB pixels [..., 3] of 0..255 look like that have these primaries and this curve; colours outside of sRGB are clipped."""
    light = curve(pixels.astype(np.float64) / 255) @ (np.linalg.inv(SRGB) @ primaries).T
    return encoded(light) * 255


def rgb(primaries: np.ndarray, gamma: float | None = None) -> bytes:
    """``gamma``: None for the curve of sRGB."""
    table = np.round(linear(np.linspace(0, 1, 1024)) * 65535).astype(int).tolist()
    curve = _curve(table) if gamma is None else _gamma(gamma)
    tags = {f"{c}XYZ": _xyz(primaries[:, i]) for i, c in enumerate("rgb")} | {f"{c}TRC": curve for c in "rgb"}
    return _profile("mntr", "RGB ", "XYZ ", tags)


def grey(gamma: float) -> bytes:
    return _profile("mntr", "GRAY", "XYZ ", {"kTRC": _gamma(gamma)})


def table(space: str, colour: Callable[[Sequence[int]], Sequence[float]], grid: int = 2) -> bytes:
    """A profile with a lookup table. ``space``: RGB or CMYK · ``colour``: the sRGB colour (0..1) of every corner of 0 and 1."""
    inks = len(space)
    corners = itertools.product(*[range(grid)] * inks)
    values = bytes(v for corner in corners for v in _lab(np.array(colour([c / (grid - 1) for c in corner]))))
    ramp = bytes(range(256))
    head = b"mft1" + bytes(4) + bytes([inks, 3, grid, 0]) + b"".join(_fixed(v) for v in np.eye(3).flatten())
    kind = "mntr" if space == "RGB" else "prtr"
    return _profile(kind, space.ljust(4), "Lab ", {"A2B0": head + ramp * inks + values + ramp * 3})


def _lab(colour: np.ndarray) -> list[int]:
    """L* a* b* under D50, one byte each."""
    xyz = (SRGB @ linear(colour)) / _D50
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    lab = (2.55 * (116 * f[1] - 16), 500 * (f[0] - f[1]) + 128, 200 * (f[1] - f[2]) + 128)
    return [int(np.clip(round(v), 0, 255)) for v in lab]


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _xyz(values: Sequence[float] | np.ndarray) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(_fixed(float(v)) for v in values)


def _gamma(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))


def _curve(table: Sequence[int]) -> bytes:
    return b"curv" + bytes(4) + struct.pack(f">I{len(table)}H", len(table), *table)


def _profile(kind: str, space: str, connection: str, tags: dict[str, bytes]) -> bytes:
    name = b"made for a test\0"
    described = b"desc" + bytes(4) + struct.pack(">I", len(name)) + name + bytes(78)
    tags = {"desc": described, "cprt": b"text" + bytes(4) + b"none\0", "wtpt": _xyz(_D50), **tags}
    head_size, table_, body = 128 + 4 + 12 * len(tags), b"", b""
    for tag, data in tags.items():
        data += bytes(-len(data) % 4)
        table_ += tag.encode() + struct.pack(">II", head_size + len(body), len(data))
        body += data
    head = struct.pack(
        ">I4sI4s4s4s", head_size + len(body), bytes(4), 0x02400000, kind.encode(), space.encode(), connection.encode()
    )
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + b"".join(_fixed(v) for v in _D50)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table_ + body
