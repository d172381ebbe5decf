"""Sizes of drawings by models that are not bound to squares. Public idea: ``grid_of((512, 768), 512, 16) -> (48, 32)``."""

from __future__ import annotations

_MOST_AREA = 4  # of a drawing, in squares of the model's size


def grid_of(size: tuple[int, int], side: int, factor: int) -> tuple[int, int]:
    """Rows and columns of codes of a picture of ``size`` (width, height) pixels. ``side``: of the model's square picture · ``factor``:
    pixels along a side of one code. ValueError for a size that is too large or does not fill whole codes.
    """
    width, height = size
    if width * height > _MOST_AREA * side**2:
        raise ValueError(
            f"a picture of {width}x{height} pixels has more than {_MOST_AREA} times the area of the model's {side}x{side}; "
            "give a smaller size"
        )
    if min(size) < factor or width % factor or height % factor:
        raise ValueError(
            f"a picture of {width}x{height} pixels is not possible; both sides must be multiples of {factor}"
        )
    return height // factor, width // factor
