"""The named sizes of released models: their parameters are those that the specifications count, and their tasks those of the family."""

from __future__ import annotations

import json

import pytest

from unmask.cli.main import main
from unmask.models.sizes import SIZES
from unmask.pipeline.abilities import PRESETS, refuse_task, tasks_of
from unmask.pipeline.formats import Format
from unmask.pipeline.named_sizes import spec_of_size

_TEXT = ("ask", "infill-text", "converse")
_READS = ("infill-text", "ask")
# name -> format, parameters of the network, of the image tokenizer, tasks
RELEASED = {
    "llada_8b": (Format.LLADA, 8_015_581_184, 0, _TEXT),
    "dream_7b": (Format.DREAM, 7_615_616_512, 0, _TEXT),
    "lavida_8b": (Format.LAVIDA, 8_434_837_024, 0, _READS),
    "rediff_8b": (Format.REDIFF, 8_434_837_024, 0, _READS),
    "lavida_dream_7b": (Format.LAVIDA, 8_030_348_832, 0, _READS),
    "dimple_7b": (Format.DIMPLE, 8_317_863_936, 0, _READS),
    "mmada_8b": (Format.MMADA, 8_082_690_048, 95_387_004, ("generate", "plan", "infill", "ask", "converse")),
    "lumina_dimoo_8b": (Format.DIMOO, 8_081_805_312, 146_244_675, ("generate", "edit", "infill", "ask", "converse")),
    "lavida_o": (Format.RELEASED, 10_948_106_912, 146_244_675, tuple(PRESETS)),
}


@pytest.mark.parametrize("name", RELEASED)
def test_parameters_and_tasks(name: str) -> None:
    found, network, tokenizer, tasks = RELEASED[name]
    spec = spec_of_size(name)
    assert spec.format is found and tasks_of(spec) == tasks
    assert sum(stored.numbers for stored in spec.checkpoint.net.values()) == network
    assert sum(stored.numbers for stored in spec.checkpoint.vq.values()) == tokenizer
    assert bool(spec.side) == ("generate" in tasks)
    for task in PRESETS:
        if task in tasks or task == "converse":
            continue
        with pytest.raises(ValueError, match="cannot"):
            refuse_task(spec, task, name)


def test_all_released_sizes_are_here() -> None:
    assert set(RELEASED) == set(SIZES) - {"tiny", "mini", "small"}


def test_memory_of_a_task(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "mmada_8b", "--task", "generate", "--budget", "12GiB", "--device", "cuda", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["proposed"] == "--dtype bfloat16 --quantise und=int8"
    assert main(["inspect", "dimple_7b", "--task", "generate"]) == 2
    assert "Dimple reads pictures and writes text" in capsys.readouterr().err
