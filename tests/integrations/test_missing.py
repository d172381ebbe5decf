"""Without its library, a file of ``unmask.integrations`` says in two lines what to install."""

from __future__ import annotations

import importlib
import sys

import pytest


@pytest.mark.parametrize("library", ["diffusers"])
def test_the_error_names_the_extra(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"unmask.integrations.{library}", raising=False)
    with pytest.raises(ModuleNotFoundError) as caught:
        importlib.import_module(f"unmask.integrations.{library}")
    assert str(caught.value) == f"the package '{library}' is not installed\nhint: pip install 'unmask[{library}]'"
