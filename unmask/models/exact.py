"""Double precision on every device. Public idea: ``double(x)``: float64, on the CPU where the device has none."""

from __future__ import annotations

from torch import Tensor


def double(x: Tensor) -> Tensor:
    """``x`` in float64. MPS has no float64, so a tensor on MPS is copied to the CPU first."""
    return x.cpu().double() if x.device.type == "mps" else x.double()
