"""Rows of metrics.jsonl as TensorBoard events too. Public idea: ``TensorBoard(folder, start)`` is a ``meters.Log``.

Needs the package ``tensorboard`` (``pip install unmask[train]``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class TensorBoard:
    """Writes to ``folder/tensorboard``. ``start``: the step at which this run continues; events of later steps count no more."""

    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(log_dir=str(folder / "tensorboard"), purge_step=start + 1)

    def write(self, row: Mapping[str, float]) -> None:
        """Every number of a row at its step."""
        for name, value in row.items():
            if name != "step":
                self.writer.add_scalar(name.replace(".", "/"), value, int(row["step"]))
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
