"""Devices by name: the default is the best one that is here, and one that is not here is refused by name."""

from __future__ import annotations

import pytest
import torch

from unmask.checkpoints.device import DeviceUnavailable, find_device, refuse_dtypes
from unmask.models.exact import double

from ..machines import machine


@pytest.mark.parametrize(
    ("name", "cards", "mps", "wanted"),
    [
        ("auto", 0, False, "cpu"),
        ("auto", 0, True, "mps"),
        ("auto", 1, True, "cuda"),
        ("cpu", 2, True, "cpu"),
        ("cpu:0", 0, False, "cpu"),
        ("cuda", 2, False, "cuda"),
        ("cuda:1", 2, False, "cuda:1"),
        ("CUDA:1", 2, False, "cuda:1"),
        (torch.device("cuda:1"), 2, False, "cuda:1"),
        ("mps", 0, True, "mps"),
        ("mps:0", 0, True, "mps"),
    ],
)
def test_devices_are_found_by_name(
    name: str, cards: int, mps: bool, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, cards=cards, mps=mps)
    assert find_device(name) == wanted


@pytest.mark.parametrize(
    "name", ["mps", "cuda", "cuda:0", "cuda:7", "cpu:1", "mps:1", "xpu", "meta", "tpu", "", "auto:1"]
)
def test_devices_that_are_not_here_are_refused_with_those_that_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch)
    with pytest.raises(DeviceUnavailable, match=r"; use auto or cpu$"):
        find_device(name)


def test_a_card_beyond_those_that_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, cards=2)
    with pytest.raises(
        DeviceUnavailable, match=r"'cuda:2' is not available here.*; use auto or cuda:0 or cuda:1 or cpu$"
    ):
        find_device("cuda:2")


def test_mps_refuses_the_types_that_it_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.mps.is_macos_or_newer", lambda major, minor: False)
    with pytest.raises(DeviceUnavailable, match="macOS 14"):
        refuse_dtypes("mps", {torch.bfloat16})
    with pytest.raises(DeviceUnavailable, match="no float64"):
        refuse_dtypes("mps", {torch.float64})
    refuse_dtypes("mps", {torch.float32, torch.float16})
    refuse_dtypes("cuda", {torch.bfloat16, torch.float64})


def test_double_leaves_a_device_without_float64() -> None:
    class OnMps:
        """A tensor as ``double`` sees it."""

        device = torch.device("mps")

        def cpu(self) -> torch.Tensor:
            return torch.ones(2)

        def double(self) -> torch.Tensor:
            raise TypeError("the MPS framework doesn't support float64")

    assert double(OnMps()).dtype == torch.float64  # type: ignore[arg-type]
    assert double(torch.ones(2)).dtype == torch.float64
