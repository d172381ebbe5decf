"""The wave-front sampler against rounds measured with the official scheduler, and its invariants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from unmask.methods.recurrent_depth import Round, Wavefront
from unmask.models.waves import (
    Accelerating,
    Converged,
    Fixed,
    Fresh,
    Jerking,
    Memory,
    Noise,
    Stable,
    Wave,
)

torch.set_num_threads(1)
Golden = Callable[[str], dict[str, Tensor]]
OFFICIAL = {"depth": 8, "passes": 2, "window": 6, "released": True}
RUNS = {
    "plain": Wavefront(**OFFICIAL),
    "noise_damped": Wavefront(**OFFICIAL, noise=Noise(beta=0.5)),
    "noise_sqrt": Wavefront(**OFFICIAL, noise=Noise(beta=0.3, root=True), freezing=Converged(eps=0.2)),
    "noise_constant": Wavefront(**OFFICIAL, noise=Noise(beta=0.1, damped=False), freezing=Converged(eps=0.2)),
    "no_embed_average": Wavefront(**OFFICIAL, momentum=0.0),
    "accel1": Wavefront(**OFFICIAL, freezing=Accelerating()),
    "accel2": Wavefront(**OFFICIAL, freezing=Jerking()),
    "stable": Wavefront(**OFFICIAL | {"window": 32}, freezing=Stable(rounds=4)),
    "fixed": Wavefront(**OFFICIAL | {"window": 32}, freezing=Fixed(rounds=4)),
    "continuous": Wavefront(**OFFICIAL, continues=True),
    "nolimit": Wavefront(**OFFICIAL | {"window": 0}),
    "wave2_deep": Wavefront(depth=8, passes=8, window=2, momentum=0.0, freezing=Converged(eps=1e9), released=True),
    "stop": Wavefront(**OFFICIAL | {"depth": 3}),
    "aligned": Wavefront(**OFFICIAL | {"released": False}),
}


@dataclass(frozen=True)
class Table:
    """The looped network of the golden arrays: the memory is one value vector of each position."""

    a: dict[str, Tensor]

    def embed(self, ids: Tensor) -> Tensor:
        return self.a["embed"][ids]

    def core(self, z: Tensor, e: Tensor, start: int, memory: Memory) -> tuple[Tensor, Memory]:
        values = torch.cat([memory[0][:start], z @ self.a["core_D"]])
        mean = values.cumsum(0) / torch.arange(1, len(values) + 1)[:, None]
        return torch.tanh(z @ self.a["core_A"] + e @ self.a["core_B"] + mean[start:] @ self.a["core_C"]), (values,)

    def decode(self, z: Tensor) -> Tensor:
        return z @ self.a["decode_O"]

    def empty(self) -> Memory:
        return (self.a["embed"][:0],)


def drawn(states: Tensor, counts: Tensor) -> Fresh:
    """The measured stream of random states, asked for in the same portions."""
    parts: Iterator[Tensor] = iter(states.split(counts.tolist()))

    def fresh(rows: int) -> Tensor:
        found = next(parts)
        assert len(found) == rows
        return found

    return fresh


def ran(a: dict[str, Tensor], name: str) -> tuple[Wave, list[dict[str, object]]]:
    rounds: list[dict[str, object]] = []

    def note(made: Round) -> None:
        wave = made.wave
        rounds.append(
            {
                "cache_index": made.start,
                "head": made.headway,
                "frozen": wave.frozen,
                "active": len(wave.z),
                "sequence": list(wave.tokens),
                "criterion": made.judged.criterion,
            }
        )

    fresh = drawn(a[f"{name}.random_states"], a[f"{name}.random_states_counts"])
    stop = frozenset([int(a[f"{name}.token"])]) if f"{name}.token" in a else frozenset()
    wanted = len(a[f"{name}.sequence"]) - len(a["prompt"])  # a run that ends at a stop token may take more
    wave = RUNS[name].run(Table(a), a["prompt"].tolist(), wanted + 9 * len(stop), fresh, stop=stop, on_round=note)
    return wave, rounds


@pytest.mark.parametrize("name", RUNS)
def test_rounds_of_the_official_scheduler(golden: Golden, name: str) -> None:
    a = golden("recurrent_depth")
    wave, rounds = ran(a, name)
    assert wave.tokens[: wave.frozen] == a[f"{name}.sequence"].tolist()
    for what in ("cache_index", "frozen", "active", "head"):
        if (key := f"{name}.round_{what}") in a:
            assert [made[what] for made in rounds] == a[key].tolist(), what
    assert wave.passes[: wave.frozen] == a[f"{name}.passes_per_position"].tolist()
    if f"{name}.round_sequence" in a:
        padded = [made["sequence"] for made in rounds]
        wanted = [[token for token in row if token >= 0] for row in a[f"{name}.round_sequence"].tolist()]
        assert padded == wanted
        assert wave.kept[: wave.frozen] == a[f"{name}.stable_rounds_per_position"].tolist()
        assert_totals(wave, a[f"{name}.totals"].tolist(), stopped=f"{name}.token" in a)


def assert_totals(wave: Wave, wanted: list[int], *, stopped: bool) -> None:
    """The official count of rounds leaves out the one that ends at a stop token."""
    found = [wave.core_passes, wave.token_passes, wave.dropped, wave.standing, wave.rounds - stopped, len(wave.tokens)]
    assert found == wanted


@pytest.mark.parametrize("name", [name for name in RUNS if name not in ("stable", "fixed")])
def test_criteria_of_the_official_scheduler(golden: Golden, name: str) -> None:
    a = golden("recurrent_depth")
    eps = getattr(RUNS[name].freezing, "eps")  # noqa: B009
    for number, made in enumerate(ran(a, name)[1]):
        row, found = a[f"{name}.round_criterion"][number], made["criterion"]
        assert isinstance(found, Tensor)
        wanted = row[~row.isnan()]
        torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-9)
        if f"{name}.round_exits" in a:
            exits = a[f"{name}.round_exits"][number][: len(wanted)]
            assert (found < eps).tolist() == exits.bool().tolist()


@pytest.mark.parametrize("name", RUNS)
def test_what_is_frozen_stays_frozen(golden: Golden, name: str) -> None:
    rounds = ran(golden("recurrent_depth"), name)[1]
    for before, after in pairwise(rounds):
        frozen = before["frozen"]
        assert isinstance(frozen, int) and frozen <= after["frozen"]  # type: ignore[operator]
        assert after["sequence"][:frozen] == before["sequence"][:frozen]  # type: ignore[index]


def noise(width: int) -> Fresh:
    g = torch.Generator().manual_seed(3)
    return lambda rows: torch.randn(rows, width, generator=g).double()


def test_a_window_of_two_at_full_depth_is_plain_decoding(golden: Golden) -> None:
    """Where states converge to one fixed point, each token is that of decoding one by one."""
    a = golden("recurrent_depth")
    a = a | {name: 0.3 * a[name] for name in ("core_A", "core_C")}
    net, prompt, width = Table(a), a["prompt"].tolist(), a["embed"].shape[1]
    deep = Wavefront(depth=40, passes=40, window=2, momentum=0.0, freezing=Converged(eps=1e9))
    wave = deep.run(net, prompt, 6, noise(width))
    tokens = list(prompt)
    while len(tokens) < wave.frozen:
        z, e, memory = noise(width)(len(tokens)), net.embed(torch.tensor(tokens)), net.empty()
        for _ in range(40):
            z, memory = net.core(z, e, 0, memory)
        tokens.append(int(net.decode(z[-1:]).argmax()))
    assert wave.tokens[: wave.frozen] == tokens


def test_nothing_converges_at_eps_0_unless_passes_are_bounded(golden: Golden) -> None:
    a = golden("recurrent_depth")
    net, prompt, width = Table(a), a["prompt"].tolist(), a["embed"].shape[1]
    never = Wavefront(depth=8, passes=2, window=4, freezing=Converged(eps=0.0))
    with pytest.raises(RuntimeError, match="6 tokens are frozen after 30 rounds"):
        never.run(net, prompt, 5, noise(width), most_rounds=30)
    bounded = Wavefront(depth=8, passes=2, window=4, freezing=Converged(eps=0.0), most=8)
    frozen: list[int] = []
    note = lambda made: frozen.append(made.wave.frozen)  # noqa: E731
    wave = bounded.run(net, prompt, 5, noise(width), most_rounds=60, on_round=note)
    assert frozen[:4] == [len(prompt) + 1] * 3 + [len(prompt) + 2], "the first position had its 8 passes in 4 rounds"
    assert wave.frozen >= len(prompt) + 5 and min(wave.passes[: wave.frozen - 1]) >= 8


def test_a_prefix_rule_swallows_no_position_that_has_not_converged(golden: Golden) -> None:
    a = golden("recurrent_depth")
    net, prompt, width = Table(a), a["prompt"].tolist(), a["embed"].shape[1]
    late: dict[bool, int] = {True: 0, False: 0}
    stale: dict[bool, int] = {True: 0, False: 0}

    for prefix in late:
        inputs = [list(prompt)]

        def note(made: Round, prefix: bool = prefix, inputs: list[list[int]] = inputs) -> None:
            found, keep, start = made.judged.criterion, made.judged.keep, made.judged.start
            if keep is not None and found is not None:
                late[prefix] += int((found[: keep - start] >= 0.1).sum())
                stale[prefix] += inputs[-1][start:keep] != made.wave.tokens[start:keep]
            inputs.append(list(made.wave.tokens))

        sampler = Wavefront(depth=8, passes=2, window=8, freezing=Converged(eps=0.1, prefix=prefix), most=40)
        sampler.run(net, prompt, 20, noise(width), on_round=note)
    assert late[True] == 0 < late[False]
    assert stale[True] == 0 < stale[False], "a frozen state belongs to the token that is frozen"


@pytest.mark.parametrize("wrong", [{"window": 1}, {"depth": 0}, {"passes": 0}, {"momentum": 1.0}])
def test_wrong_settings_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="never advances|must be at least 1"):
        Wavefront(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="beta must be"):
        Noise(beta=0.0)
