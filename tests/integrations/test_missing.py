"""Without its library, a file of ``unmask.integrations`` says in two lines what to install."""

from __future__ import annotations

import importlib
import sys

import pytest

from unmask.cli.main import main


@pytest.mark.parametrize(
    ("library", "extra"),
    [
        ("diffusers", "diffusers"),
        ("lm_eval", "lm-eval"),
        ("lmms_eval", "lmms-eval"),
        ("mcp", "mcp"),
        ("anywidget", "notebook"),
    ],
)
def test_the_error_names_the_extra(library: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(f"{library}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"unmask.integrations.{library}", raising=False)
    with pytest.raises(ModuleNotFoundError) as caught:
        importlib.import_module(f"unmask.integrations.{library}")
    assert str(caught.value) == f"the package '{library}' is not installed\nhint: pip install 'unmask[{extra}]'"


def test_the_command_names_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from unmask.cli import mcp

    monkeypatch.setattr(mcp, "find_spec", lambda name: None)
    assert main(["mcp"]) == 2
    assert capsys.readouterr().err == "error: the package 'mcp' is not installed\nhint: pip install 'unmask[mcp]'\n"
