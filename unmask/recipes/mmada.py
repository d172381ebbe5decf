"""The demonstration of UniGRPO: mini before and after it, on prompts that no training saw, beside supervised tuning of equal compute.

    unmask methods run mmada

Public ideas: ``supervised() -> Recipe``, tuning on rendered scenes of the same prompts; ``before_and_after(..)``; ``DEMO``.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from functools import partial

import torch
from PIL import Image

from unmask.data.sources import CachedEncoder, pixels_of
from unmask.evaluation.demonstration import Demonstration, Findings, Media, Table, Work
from unmask.evaluation.metrics import Figure, average, paired, share
from unmask.evaluation.world_geneval import CATEGORIES, GENEVAL
from unmask.evaluation.world_geneval import Prompt as ScenePrompt
from unmask.json_types import Json
from unmask.models.elastic import Elastic
from unmask.objectives.masked import Dropout, Masked, MaskedModel
from unmask.posttraining.prompts import Prompt
from unmask.posttraining.rewards import Sample
from unmask.recipe import Optim, Recipe, Training, override
from unmask.recipes.finetune import learning_rate
from unmask.recipes.starting import start_of
from unmask.recipes.unigrpo import Success, unigrpo, unseen, variety, world_prompts
from unmask.rng import key
from unmask.sampling.sampler import Sampler
from unmask.sequence import Batch, collate
from unmask.tasks.parts import Parts
from unmask.tokens.build import drawing
from unmask.training.probe import flops

_KINDS = ("two", "counting", "position", "color_attr")
_STEPS, _PROMPTS, _GROUP = 12, 60, 2
_SAMPLE_STEPS = 8
_DROPOUT = Dropout(spans=frozenset({"prompt"}), rate=0.1)


@dataclass(frozen=True, kw_only=True)
class Renderings:
    """Prompts of the kinds that UniGRPO trains on, without those kept from training, with the codes of a scene that shows each."""

    parts: Parts
    encode: CachedEncoder
    seed: int
    batch: int = 16

    def __call__(self, step: int) -> Batch:
        found = self.prompts(step)
        codes = self.encode(pixels_of([prompt.scene for prompt in found], self.parts.side))
        read, fold = self.parts.wording.read, self.parts.fold
        rows = [
            drawing(self.parts.builder(), read(p.text), own, fold=fold) for p, own in zip(found, codes, strict=True)
        ]
        return collate(rows, range(self.batch))

    def prompts(self, step: int) -> list[ScenePrompt]:
        """The prompts of a batch, with a scene that shows each."""
        found: list[ScenePrompt] = []
        number = 0
        while len(found) < self.batch:
            kind = GENEVAL[CATEGORIES.index(_KINDS[number % len(_KINDS)])]
            seed = key("renderings", self.seed, step, number) % 2**31
            found += [p for p in kind.prompts(1, level="grid", split="train", seed=seed) if not unseen(p.text)]
            number += 1
        return found


def supervised(model: str = "mini", seed: int = 0) -> Recipe:
    """Tune a model of the world on rendered scenes of the prompts that UniGRPO trains on, the baseline of its demonstration."""
    start = start_of(model)
    return Recipe(
        name=f"supervised tuning of {start.name}",
        model=start.network,
        source=Renderings(parts=start.parts, encode=CachedEncoder(start.parts.codec.encode), seed=seed),
        objective=Masked(dropouts=(_DROPOUT,)),
        optim=Optim(lr=learning_rate(start, 0), warmup=20, decay_from=0.5, floor=0.05, ema=0.99),
        training=Training(steps=400, seed=seed, save_every=200, log_every=20),
        trainable=lambda name: not name.startswith("vision"),
        export=lambda module, place: start.export(module, place, ()),
    )


def equal_steps(reinforced: Recipe, tuned: Recipe, module: MaskedModel) -> int:
    """The steps of ``tuned`` with as many floating-point operations as all of ``reinforced``, sampling and judging included."""
    cpu = torch.device("cpu")
    assert isinstance(module, torch.nn.Module)
    ours, theirs = (flops(recipe, module, recipe.source(0), 0, cpu) for recipe in (reinforced, tuned))
    return max(1, round(reinforced.training.steps * ours / theirs))


def kept_prompts(split: str, most: int) -> tuple[Prompt, ...]:
    """Prompts of all kinds about scenes of a split, none of which any training here has seen."""
    return tuple(world_prompts(CATEGORIES, split, 2, most=most, kept=True))


def judged_samples(net: Elastic, measured: Success) -> Json:
    """Of every prompt's group: the judge's verdicts (0, 0.5 or 1), and how much its answers differ."""
    samples = measured.samples(net)
    groups = [samples[i : i + measured.group] for i in range(0, len(samples), measured.group)]
    return {"verdicts": measured.reward(samples), "variety": [variety([group]) for group in groups]}


def demo(work: Work) -> Findings:
    """UniGRPO and supervised tuning of equal compute from the same model, at three seeds."""
    start = start_of("mini")
    parts, net = start.parts, start.network().eval()
    found: dict[str, list[Json]] = {"before": [], "supervised": [], "UniGRPO": []}
    sheets: list[tuple[str, Image.Image]] = []
    for seed in work.seeds:
        steps = f"training.steps={work.steps(_STEPS, least=1)}"
        made = unigrpo(sample_steps=_SAMPLE_STEPS, batch=min(8, work.steps(96, least=1)), seed=seed)
        reinforced = override(replace(made, evals=()), [steps])
        tuned = supervised(seed=seed)
        count = work.once(f"equal-{seed}", partial(equal_steps, reinforced, tuned, net))
        tuned = override(tuned, [f"training.steps={count}"])
        arms = {"before": net, "supervised": work.train(f"supervised-{seed}", tuned)}
        arms["UniGRPO"] = work.train(f"unigrpo-{seed}", reinforced)
        measured = _measured(reinforced, work.steps(_PROMPTS, least=2), seed)
        for arm, module in arms.items():
            assert isinstance(module, Elastic)
            found[arm].append(work.once(f"{arm.lower()}-{seed}", partial(judged_samples, module, measured)))
            if seed == work.seeds[0]:
                sheets += _sheet(arm, replace(measured, prompts=measured.prompts[:4], group=1).samples(module))
    return _findings(found, tuple(sheets), parts)


def _measured(reinforced: Recipe, most: int, seed: int) -> Success:
    objective = reinforced.objective
    sampler, reward = getattr(objective, "sampler"), getattr(objective, "reward")  # noqa: B009
    assert isinstance(sampler, Sampler)
    requests = getattr(reinforced.source, "requests")  # noqa: B009
    return Success(
        requests=requests,
        reward=reward,
        prompts=kept_prompts("validation", most),
        sampler=sampler,
        group=_GROUP,
        seed=seed,
    )


def _sheet(arm: str, samples: Items[Sample]) -> list[tuple[str, Image.Image]]:
    return [(f"{arm}: {s.prompt}", Image.fromarray(s.picture)) for s in samples if s.picture is not None]


def _findings(found: Mapping[str, Items[Json]], sheets: tuple[tuple[str, Image.Image], ...], parts: Parts) -> Findings:
    verdicts = {arm: [v for run in runs for v in run["verdicts"]] for arm, runs in found.items()}
    right = {arm: [float(v > 0) for v in own] for arm, own in verdicts.items()}
    exact = {arm: [float(v == 1) for v in own] for arm, own in verdicts.items()}
    spread = {arm: average([v for run in runs for v in run["variety"]]) for arm, runs in found.items()}
    ours, base, tuned = "UniGRPO", "before", "supervised"
    figures: dict[str, Figure] = {
        "right.gain": paired(right[ours], right[base]),
        "right.gain_over_supervised": paired(right[ours], right[tuned]),
        "exact.gain": paired(exact[ours], exact[base]),
        "exact.gain_over_supervised": paired(exact[ours], exact[tuned]),
        "variety": spread[ours],
        "variety.before": spread[base],
    }
    best = figures["exact.gain_over_supervised"]
    rows = tuple(
        (arm, share(v > 0 for v in own), share(v == 1 for v in own), spread[arm]) for arm, own in verdicts.items()
    )
    gain = figures["exact.gain"]
    return Findings(
        about="mini draws prompts that no training saw; an independent judge says whether a drawing shows what its prompt says (right) and "
        "no other object (exact). Supervised tuning has renderings of the same prompts and as many floating-point operations as UniGRPO, "
        "its sampling and judging included. Variety: the share of codes in which two drawings of a prompt differ.",
        verdict=f"UniGRPO changes the share of exact drawings by {gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}], and by "
        f"{best['value']:+.3f} [{best['low']:+.3f}, {best['high']:+.3f}] against supervised tuning of equal compute.",
        seen=best["low"] is not None and best["low"] > 0,
        figures=figures,
        shown=(
            Table(title="Drawings of unseen prompts", head=("model", "right", "exact", "variety"), rows=rows),
            Media(title="The same prompts and seeds", items=sheets),
        ),
    )


DEMO = Demonstration(minutes=15, run=demo)
