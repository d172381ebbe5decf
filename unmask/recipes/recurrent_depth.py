"""The demonstration of wave-front sampling: passes a token of a looped network on chained and on independent answers.

    unmask methods run recurrent_depth

A looped network of one block reads twelve digits and answers with twelve: running sums modulo 5, each of which needs the one before, or a
fact about each digit by itself. Compared are full depth for every token, early exit token by token, and wave fronts of several widths, all
with the same network and the same rule of convergence.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.evaluation.demonstration import Demonstration, Findings, Plot, Table, Work
from unmask.evaluation.metrics import Figure, over_seeds
from unmask.methods.recurrent_depth import Wavefront, one_by_one
from unmask.models.looped import LoopedConfig, LoopedNet
from unmask.models.waves import Converged
from unmask.recipe import Optim, Recipe, Training
from unmask.rng import generator, seeded
from unmask.step import Loss

MODULUS, ITEMS, DEPTH, EPS = 5, 12, 8, 0.1
TASKS = ("chained", "independent")
VOCABULARY, END = (
    MODULUS + len(TASKS) + 1,
    MODULUS + len(TASKS),
)  # digits, the name of the task, the end of the question
WINDOWS = (2, 4, 8, 16)
_ROWS, _STEPS, _TESTED = 32, 300, 24


def rows(count: int, task: Tensor, rng: torch.Generator) -> Tensor:
    """Questions with their answers, [B, L]: the task, the digits, the end, the answers. ``task [B]``: number of each row's task."""
    digits = torch.randint(MODULUS, (count, ITEMS), generator=rng)
    answers = torch.where(task[:, None] == 0, digits.cumsum(1) % MODULUS, (3 * digits + 1) % MODULUS)
    return torch.cat([MODULUS + task[:, None], digits, torch.full((count, 1), END), answers], dim=1)


@dataclass(frozen=True, kw_only=True)
class Questions:
    """Batches of the training, both tasks mixed."""

    seed: int

    def __call__(self, step: int) -> Tensor:
        rng = generator("recurrent depth", self.seed, step)
        return rows(_ROWS, torch.arange(_ROWS) % len(TASKS), rng)


def _loss(net: Any, ids: Tensor, rng: torch.Generator) -> Loss:
    """Cross-entropy of the answers after 3 to ``DEPTH`` passes from random states."""
    passes = int(torch.randint(3, DEPTH + 1, (), generator=rng))
    z = torch.randn(*ids.shape, net.config.width, generator=rng)
    logits = net.decode(net.states(ids, z, passes)[:, ITEMS + 1 : -1])
    loss = F.cross_entropy(logits.flatten(0, 1), ids[:, ITEMS + 2 :].flatten())
    return Loss(total=loss, terms={"answers": loss}, counts={"answers": ids.shape[0] * ITEMS})


def _fresh_net(seed: int) -> LoopedNet:
    return seeded(lambda: LoopedNet(LoopedConfig(vocab_size=VOCABULARY, depth=DEPTH)), seed)


def _recipe(seed: int, steps: int) -> Recipe[LoopedNet, Tensor]:
    return Recipe(
        name="recurrent_depth",
        model=partial(_fresh_net, seed),
        source=Questions(seed=seed),
        objective=_loss,
        optim=Optim(lr=2e-3, weight_decay=0.01, warmup=min(100, steps), ema=0.0),
        training=Training(steps=steps, seed=seed, device="cpu", bf16=False, save_every=max(1, steps // 2)),
    )


def demo(work: Work) -> Findings:
    """Passes a token and right answers of every sampler, on both tasks."""
    return _findings([work.once(f"seed/{seed}", partial(_measured, work, seed)) for seed in work.seeds])


def _measured(work: Work, seed: int) -> dict[str, Any]:
    net, count = work.train(str(seed), _recipe(seed, work.steps(_STEPS, least=2))), work.steps(_TESTED, least=2)
    found = {}
    for number, task in enumerate(TASKS):
        ids = rows(count, torch.full((count,), number), generator("recurrent depth", "test", task))
        for name in _samplers():
            made = [_answered(net, row, name, generator("states", seed, i)) for i, row in enumerate(ids)]
            found[f"{task}/{name}"] = {
                key: sum(float(one[key]) for one in made) / count for key in ("right", "tokens", "passes", "arithmetic")
            }
    return found


def _samplers() -> list[str]:
    return ["full depth", "early exit", *(f"wave of {window}" for window in WINDOWS)]


def _answered(net: Any, row: Tensor, name: str, rng: torch.Generator) -> dict[str, float]:
    """One answer: whether it is right, its share of right tokens, and passes a token; ``arithmetic``: passes times positions, a token."""
    prompt, wanted = row[: ITEMS + 2].tolist(), row[ITEMS + 2 :].tolist()

    def fresh(count: int) -> Tensor:
        return torch.randn(count, net.config.width, generator=rng)

    if name.startswith("wave"):
        wave = Wavefront(
            depth=DEPTH,
            passes=1,
            window=int(name.split()[-1]),
            momentum=0.0,
            most=DEPTH,
            freezing=Converged(eps=EPS, prefix=True),
        )
        made = wave.run(net, prompt, ITEMS, fresh)
        tokens, passes, arithmetic = made.tokens, made.core_passes - 1, made.token_passes - len(prompt)
    else:
        tokens, passes = one_by_one(net, prompt, ITEMS, fresh, depth=DEPTH, eps=EPS if name == "early exit" else 0.0)
        arithmetic = passes
    said, new = tokens[len(prompt) : len(prompt) + ITEMS], ITEMS - 1  # the prompt gives the first
    right = sum(a == b for a, b in zip(said, wanted, strict=True))
    return {"right": right == ITEMS, "tokens": right / ITEMS, "passes": passes / new, "arithmetic": arithmetic / new}


def _findings(found: list[dict[str, Any]]) -> Findings:
    def of(task: str, name: str, what: str, unit: str = "share") -> Figure:
        return over_seeds([one[f"{task}/{name}"][what] for one in found], unit=unit)

    def gain(task: str, window: int) -> Figure:
        pairs = [(one[f"{task}/early exit"]["passes"], one[f"{task}/wave of {window}"]["passes"]) for one in found]
        return over_seeds([exit_ / wave for exit_, wave in pairs], unit="times")

    def loss(task: str, window: int) -> Figure:
        return over_seeds(
            [one[f"{task}/wave of {window}"]["tokens"] - one[f"{task}/early exit"]["tokens"] for one in found]
        )

    gains = {(task, window): gain(task, window) for task in TASKS for window in WINDOWS}
    best, chained = gains["independent", WINDOWS[2]], gains["chained", WINDOWS[2]]
    table = tuple(
        (
            task,
            name,
            of(task, name, "right"),
            of(task, name, "tokens"),
            *(of(task, name, w, "passes") for w in ("passes", "arithmetic")),
        )
        for task in TASKS
        for name in _samplers()
    )
    return Findings(
        about=f"A looped network of one block and {DEPTH} passes answers {ITEMS} digits with {ITEMS} digits. Early exit and wave fronts "
        f"freeze at a change below {EPS}. Passes a token are those in sequence; arithmetic counts the positions of each pass.",
        verdict=f"A wave of {WINDOWS[2]} positions takes {best['value']:.2f} times fewer passes in sequence than early exit on independent "
        f"answers, and {chained['value']:.2f} times fewer on chained ones.",
        seen=best["low"] is not None and best["low"] > 1,
        figures={f"fewer_passes.{task}.{window}": figure for (task, window), figure in gains.items()}
        | {f"right_tokens.{task}.{WINDOWS[2]}": loss(task, WINDOWS[2]) for task in TASKS},
        shown=(
            Table(
                title="Passes and answers",
                head=("answers", "sampler", "all right", "right tokens", "passes a token", "arithmetic a token"),
                rows=table,
            ),
            Plot(
                title="Passes a token by the width of the wave",
                across="positions",
                up="passes a token",
                lines={
                    task: [(window, of(task, f"wave of {window}", "passes", "passes")) for window in WINDOWS]
                    for task in TASKS
                },
                log=True,
            ),
        ),
    )


DEMO = Demonstration(minutes=4, run=demo)
