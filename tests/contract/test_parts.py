"""Every part has an instance, is a value, and fits the protocol that it is used as."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch

from unmask import protocols
from unmask.sampling.sampler import Sampler
from unmask.tasks.results import describe

from . import bridge_parts, live_parts, llada2_parts
from .instances import (
    ALL_BLOCKS,
    ALL_CACHES,
    ALL_CORRUPTIONS,
    ALL_GUIDANCES,
    ALL_OBJECTIVES,
    ALL_PRIORS,
    ALL_SCHEDULES,
    ALL_SELECTIONS,
    ALL_STOPPINGS,
    ALL_TOKEN_SAMPLERS,
    OTHER_OBJECTIVES,
    POLICIES,
    SAMPLERS,
    classes_in,
    fake,
    method_parts,
    misfits,
    name_of,
    parts_found,
    tiny,
)
from .modality_parts import PARTS as MODALITIES
from .other_parts import PARTS
from .training_parts import SOURCES

ROLES: list[tuple[type, list[Any]]] = [
    (protocols.UnmaskingSchedule, ALL_SCHEDULES),
    (protocols.TokenSampler, ALL_TOKEN_SAMPLERS),
    (protocols.Selection, ALL_SELECTIONS),
    (protocols.Lingering, [part for part in ALL_SELECTIONS if hasattr(part, "lingering")]),
    (protocols.Guidance, ALL_GUIDANCES),
    (protocols.BlockSchedule, ALL_BLOCKS),
    (protocols.EarlyStopping, ALL_STOPPINGS),
    (protocols.Prior, ALL_PRIORS),
    (protocols.Cache, ALL_CACHES),
    (protocols.Corruption, ALL_CORRUPTIONS),
    (protocols.Objective, [*ALL_OBJECTIVES, *OTHER_OBJECTIVES[:-1]]),
]
INSTANCES = [
    SAMPLERS,
    ALL_PRIORS,
    ALL_CORRUPTIONS,
    ALL_OBJECTIVES,
    OTHER_OBJECTIVES,
    POLICIES,
    SOURCES,
    PARTS,
    bridge_parts.PARTS,
    llada2_parts.PARTS,
    live_parts.PARTS,
    MODALITIES,
    method_parts(),
]
CHECKED = (
    protocols.Guidance,
    protocols.Corruption,
    protocols.UnmaskingSchedule,
    protocols.Predicting,
    protocols.Bounded,
    protocols.Lingering,
    protocols.Correcting,
    protocols.Refreshing,
    protocols.Cache,
    protocols.Prior,
    protocols.Codec,
)


def test_every_part_has_an_instance() -> None:
    here = set().union(*(classes_in(tuple(some)) for some in INSTANCES))
    missing = sorted(f"{part.__module__}.{part.__qualname__}" for part in parts_found() - here)
    assert not missing, f"add an instance of {', '.join(missing)} to tests/contract/instances.py or to its card"


def test_parts_are_frozen_and_keyword_only() -> None:
    loose = [
        part.__qualname__
        for part in parts_found()
        if not part.__dataclass_params__.frozen or not all(field.kw_only for field in dataclasses.fields(part))
    ]
    assert not loose, f"parts are frozen and keyword-only; {loose} are not"


@pytest.mark.parametrize(("protocol", "parts"), ROLES, ids=lambda x: getattr(x, "__name__", ""))
def test_instances_fit_their_protocol(protocol: type, parts: list[Any]) -> None:
    assert parts
    for part in parts:
        assert not misfits(part, protocol), f"{type(part).__name__} is no {protocol.__name__}"
        if protocol in CHECKED:
            assert isinstance(part, protocol)


def test_every_part_of_a_method_has_a_role() -> None:
    """A card names a role that a suite here runs; a misspelt one would go untested."""
    tested = [*SAMPLERS, *(part for _, parts in ROLES for part in parts)]
    assert all(any(part is other for other in tested) for part in method_parts())


def test_optional_protocols_are_fitted_whole() -> None:
    """A part that has a method of an optional protocol has all of them, with the right parameters."""
    names = {
        protocols.Predicting: "predict",
        protocols.Bounded: "extra_steps",
        protocols.Lingering: "lingering",
        protocols.Correcting: "more",
        protocols.Refreshing: "completed",
        protocols.Ordered: "places",
        protocols.Foreseeable: "foreseeable",
    }
    for some in INSTANCES:
        for part in some:
            for protocol, name in names.items():
                if hasattr(part, name):
                    assert not misfits(part, protocol)


def test_denoisers_fit_theirs() -> None:
    assert not misfits(fake, protocols.Denoiser)
    assert not misfits(tiny(), protocols.Denoiser)


def test_the_check_can_fail() -> None:
    class Wrong:
        def counts(self, tokens: int, more: int) -> list[int]:
            return [tokens]

    assert misfits(Wrong(), protocols.UnmaskingSchedule) and misfits(object(), protocols.Cache)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=name_of)
def test_a_sampler_is_described_in_json(sampler: Sampler) -> None:
    assert json.loads(json.dumps(describe(sampler)))["schedule"]["part"] == type(sampler.schedule).__name__


def test_networks_and_functions_of_a_sampler_are_described_by_name() -> None:
    """Fault: a network in a part was given as it is, which is not JSON."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Energy:
        net: torch.nn.Module
        heads: tuple[torch.nn.Module, ...]
        stop: Any

    def early(batch: Any) -> Any:
        return batch

    part = Energy(net=torch.nn.Linear(2, 2), heads=(torch.nn.Identity(),), stop=early)
    found = describe(dataclasses.replace(SAMPLERS[0], token_sampler=part))  # type: ignore[arg-type]
    assert found["token_sampler"] == {"part": "Energy", "net": "Linear", "heads": ["Identity"], "stop": "early"}
    assert json.loads(json.dumps(found)) == found
