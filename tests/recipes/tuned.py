"""Fine-tuning by the command, for its tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import unmask
from unmask.cli.main import main


def run(capsys: pytest.CaptureFixture[str], *words: str) -> None:
    code = main(("train", "finetune", *words))
    _, err = capsys.readouterr()
    assert code == 0, err


def mistake(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    code = main(("train", "finetune", *words))
    out, err = capsys.readouterr()
    assert code == 2 and not out and "Traceback" not in err, (code, out, err)
    return err


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model = unmask.load(folder)
    return dict(model.parts.net.state_dict())
