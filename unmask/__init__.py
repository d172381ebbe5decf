"""unmask: unified multimodal masked diffusion models, run, served, trained and measured.

The public surface is small and imported when first touched, so that ``import unmask`` needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["Live", "__version__", "load"]

if TYPE_CHECKING:
    from unmask.pipeline.opening import load
    from unmask.tasks.live import Live


def __getattr__(name: str) -> object:
    if name == "load":
        from unmask.pipeline.opening import load

        return load
    if name == "Live":
        from unmask.tasks.live import Live

        return Live
    raise AttributeError(f"module 'unmask' has no attribute {name!r}")
