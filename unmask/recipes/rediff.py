"""ReDiff on captions of the synthetic world, and its demonstration: errors that a sampler mends against those that it keeps.

    unmask methods run rediff
    unmask train rediff --out runs/rediff

Public ideas: ``rediff() -> Recipe``, which tunes ``mini`` on captions with planted errors, and ``DEMO``. Every scene has one caption, so
that an answer can be compared word for word.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as Items
from dataclasses import dataclass
from functools import partial
from random import Random

import torch
from torch import Tensor, nn

from unmask.corruption.absorbing import Absorbing
from unmask.corruption.schedules import Uniform
from unmask.data.sources import pixels_of, scenes_of_batch
from unmask.data.world.language import article, at, noun, position_word
from unmask.data.world.scenes import Draft, Scene, sample
from unmask.data.world.vocabulary import BACKGROUNDS
from unmask.evaluation.demonstration import Demonstration, Findings, Plot, Table, Work
from unmask.evaluation.metrics import Figure, average, over_seeds, paired, share
from unmask.json_types import Json
from unmask.methods.rediff import EachGroup, Planted
from unmask.methods.rediff import rediff as overwriting
from unmask.models.elastic import Elastic
from unmask.objectives.masked import Masked
from unmask.recipe import Optim, Recipe, Training, override
from unmask.recipes.starting import start_of
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Fixed
from unmask.sampling.selection import Confident
from unmask.sampling.token_sampler import Greedy
from unmask.sequence import Batch, Sequence, collate
from unmask.tasks.parts import Parts
from unmask.tokens.build import asking, looking
from unmask.tokens.text import EOT

LENGTH = 40  # tokens of an answer, its ends of turn included
SCENES = Draft(counts=((2, 0.4), (3, 0.4), (4, 0.2)), alike=0.1)
EACH = (1, 2, 4, 8)  # tokens a step


def caption(scene: Scene) -> str:
    """The one caption of a scene: its objects in reading order, each with its place, and the background."""
    objects = sorted(scene.objects, key=lambda o: (o.centre[1], o.centre[0], o.name, o.colour))
    said = ", ".join(f"{article(noun(o))} {at(position_word(o))}" for o in objects)
    return f"{said} {BACKGROUNDS[scene.background][0]}"


def answer_ids(parts: Parts, scene: Scene) -> list[int]:
    """The caption's tokens, filled with ends of turn."""
    ids = parts.text.encode(caption(scene))[: LENGTH - 1]
    return ids + [parts.text[EOT]] * (LENGTH - len(ids))


def row_of(parts: Parts, pixels: Tensor, answer: list[int] | int) -> Sequence:
    """The request for a caption, with its answer or so many masked tokens."""
    b = looking(parts.builder(), pixels)
    return asking(b, b.wording.describe, answer).build()


@dataclass(frozen=True, kw_only=True)
class CaptionsOfPictures:
    """Pictures of training scenes with their captions."""

    parts: Parts
    seed: int
    batch: int = 16

    def __call__(self, step: int) -> Batch:
        rng = Random(f"rediff/{self.seed}/{step}")
        scenes = list(scenes_of_batch((("grid", 1.0),), self.seed + 31, step, self.batch, rng, SCENES))
        pixels = pixels_of(scenes, self.parts.side)
        return collate(
            [row_of(self.parts, p, answer_ids(self.parts, s)) for p, s in zip(pixels, scenes, strict=True)],
            range(self.batch),
        )


def ordinary_ids(parts: Parts) -> tuple[int, int]:
    """The ids that may be planted: those of words, below the first special token."""
    return 0, min(parts.mask_id, parts.text[EOT])


def rediff(model: str = "mini", planted: int = 1, swap: float = 0.1, batch: int = 16, seed: int = 0) -> Recipe:
    """Tune a model of the world on captions with planted errors (ReDiff, arXiv 2510.19871). ``planted``: 0 for masks alone."""
    start = start_of(model)
    parts = start.parts
    low, high = ordinary_ids(parts)
    errors = Masked(corruption=Planted(low=low, high=high, swap=swap), weight=EachGroup(least=1.0))
    return Recipe(
        name=f"rediff of {start.name}",
        model=start.network,
        source=CaptionsOfPictures(parts=parts, seed=seed, batch=batch),
        objective=errors if planted else Masked(corruption=Absorbing(otherwise=Uniform())),
        optim=Optim(lr=6e-4, warmup=20, decay_from=0.5, floor=0.05, ema=0.98, clip=1.0),
        training=Training(steps=400, seed=seed, save_every=100, log_every=20),
        trainable=lambda name: not name.startswith("vision"),
        export=lambda module, folder: start.export(module, folder, ()),
    )


# -- the demonstration ------------------------------------------------------------------------------------------------

ARMS = {"masks": 0, "masks and planted errors": 1}  # name -> ``planted`` of the recipe
_SCENES, _STEPS, _ROWS = 64, 300, 32
_WRONG, _SHOWN = 3, 0.5  # planted errors of a draft, and the share of its tokens that are shown
_DRAFT_EACH = 4  # tokens a step


def sampler(each: int, *, overwrite: bool) -> Sampler:
    """Greedy, the most confident tokens first, ``each`` a step."""
    made = Sampler(schedule=Fixed(each=each), token_sampler=Greedy(), selection=Confident())
    return overwriting(made) if overwrite else made


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A prior: the tokens of ``shown [B, L]`` start with the ids of ``ids [B, L]`` instead of masked, and the run may overwrite them."""

    ids: Tensor
    shown: Tensor

    def __call__(self, batch: Batch) -> Batch:
        shown_BL = self.shown & batch.masked
        return batch.replace(ids=torch.where(shown_BL, self.ids, batch.ids), masked=batch.masked & ~shown_BL)


def checked_scenes(count: int) -> list[Scene]:
    """Scenes of the split "validation", which no training has seen."""
    return [sample("grid", "validation", 7, i, SCENES) for i in range(count)]


def words_right(net: nn.Module, parts: Parts, scenes: Items[Scene], each: int, overwrite: bool) -> list[float]:
    """The share of the tokens of each scene's caption that are right, its first end of turn included."""
    found = []
    for batch, truth in _batches(parts, scenes):
        done = sampler(each, overwrite=overwrite).sample(net, batch)
        right = done.ids[batch.masked].view(truth.shape) == truth
        counted = (truth == parts.text[EOT]).long().cumsum(1) <= 1
        found += ((right & counted).sum(1) / counted.sum(1)).tolist()
    return found


def drafts_mended(net: nn.Module, parts: Parts, scenes: Items[Scene], overwrite: bool) -> dict[str, list[int]]:
    """Of drafts with ``_WRONG`` wrong words each, the rest of the shown words right and the others masked: how many errors were repaired,
    how many right shown words changed, and how many there were, by scene.
    """
    words = sorted({i for scene in scenes for i in answer_ids(parts, scene)} - {parts.text[EOT]})
    found: dict[str, list[int]] = {"wrong": [], "repaired": [], "right": [], "harmed": []}
    for number, (batch, truth) in enumerate(_batches(parts, scenes)):
        rng, draft, shown = Random(f"draft/{number}"), truth.clone(), torch.zeros_like(truth, dtype=torch.bool)
        wrong = torch.zeros_like(shown)
        for row, ids in enumerate(truth.tolist()):
            said = [i for i, token in enumerate(ids) if token != parts.text[EOT]]
            picked = rng.sample(said, max(_WRONG + 1, round(_SHOWN * len(said))))
            shown[row, picked] = True
            for place in picked[:_WRONG]:
                draft[row, place] = rng.choice([word for word in words if word != ids[place]])
                wrong[row, place] = True
        given, open_BL = batch.ids.clone(), torch.zeros_like(batch.masked)
        given[batch.masked], open_BL[batch.masked] = draft.flatten(), shown.flatten()
        made = dataclasses.replace(sampler(_DRAFT_EACH, overwrite=overwrite), prior=Shown(ids=given, shown=open_BL))
        said_now = made.sample(net, batch).ids[batch.masked].view(truth.shape)
        right = said_now == truth
        found["wrong"] += wrong.sum(1).tolist()
        found["repaired"] += (wrong & right).sum(1).tolist()
        found["right"] += (shown & ~wrong).sum(1).tolist()
        found["harmed"] += (shown & ~wrong & ~right).sum(1).tolist()
    return found


def _batches(parts: Parts, scenes: Items[Scene]) -> list[tuple[Batch, Tensor]]:
    """Requests for captions, and their true tokens [B, LENGTH]."""
    out = []
    for first in range(0, len(scenes), _ROWS):
        some = scenes[first : first + _ROWS]
        rows = [row_of(parts, pixels, LENGTH) for pixels in pixels_of(list(some), parts.side)]
        out.append((collate(rows, range(len(rows))), torch.tensor([answer_ids(parts, scene) for scene in some])))
    return out


def demo(work: Work) -> Findings:
    """Two trainings of equal length on the same captions, each sampled with and without overwriting."""
    parts = start_of("mini").parts
    scenes = checked_scenes(work.steps(_SCENES, least=2))
    right: dict[tuple[str, bool, int], list[list[float]]] = {}
    mended: dict[str, list[Json]] = {}
    for seed in work.seeds:
        for arm, planted in ARMS.items():
            label = f"{'planted' if planted else 'masks'}-{seed}"
            steps = f"training.steps={work.steps(_STEPS, least=2)}"
            net = work.train(
                label, override(rediff(planted=planted, seed=seed, batch=min(16, work.steps(160))), [steps])
            )
            assert isinstance(net, Elastic)
            for overwrite in (False, True):
                for each in EACH:
                    made = partial(words_right, net, parts, scenes, each, overwrite)
                    name = f"{label}/{'overwriting' if overwrite else 'kept'}-{each}"
                    right.setdefault((arm, overwrite, each), []).append(work.once(name, made))
            drafts = work.once(f"{label}/drafts", partial(drafts_mended, net, parts, scenes, True))
            mended.setdefault(arm, []).append(drafts)
    return _findings(right, mended, len(scenes))


def _findings(
    right: dict[tuple[str, bool, int], list[list[float]]], mended: dict[str, list[Json]], scenes: int
) -> Findings:
    masks, errors = ARMS
    most = EACH[-1]
    gains = {
        "overwriting.gain_8_a_step": _difference(right[errors, True, most], right[masks, False, most]),
        "overwriting.gain_1_a_step": _difference(right[errors, True, 1], right[masks, False, 1]),
        "overwriting_without_training.gain_8_a_step": _difference(right[masks, True, most], right[masks, False, most]),
        "training_alone.gain_8_a_step": _difference(right[errors, False, most], right[masks, False, most]),
    }
    drafts = {arm: _of_drafts(found) for arm, found in mended.items()}
    figures: dict[str, Figure] = dict(gains)
    figures |= {
        f"{'planted' if ARMS[arm] else 'masks'}.{name}": f for arm, own in drafts.items() for name, f in own.items()
    }
    best, repaired, harmed = gains["overwriting.gain_8_a_step"], *drafts[errors].values()
    others = drafts[masks]
    mends = repaired["value"] > others["repaired"]["high"] and harmed["value"] < others["harmed"]["low"]
    rows = tuple(
        (arm, "overwriting" if overwrite else "kept", *(_mean(right[arm, overwrite, each]) for each in EACH))
        for arm in ARMS
        for overwrite in (False, True)
    )
    lines = {
        f"{arm}, {'overwriting' if overwrite else 'kept'}": [(e, _mean(right[arm, overwrite, e])) for e in EACH]
        for arm in ARMS
        for overwrite in (False, True)
    }
    return Findings(
        about=f"mini, tuned for as many updates on the same captions with masks alone or with planted errors too, describes {scenes} "
        "scenes that it has not seen; a word is right if it stands where the scene's one caption has it. Samplers of a column make as many "
        "forward passes.",
        verdict=f"Of {_WRONG} errors in a draft overwriting repairs {repaired['value']:.2f} after training on errors and "
        f"{others['repaired']['value']:.2f} after training on masks alone; it harms {harmed['value']:.3f} and "
        f"{others['harmed']['value']:.3f} of the right words. "
        f"At {most} tokens a step it changes the right words of captions from nothing by {best['value']:+.3f}.",
        seen=bool(mends),
        figures=figures,
        shown=(
            Table(title="Right words", head=("training", "revealed tokens", *(f"{e} a step" for e in EACH)), rows=rows),
            Plot(title="Right words by tokens a step", across="tokens a step", up="right", lines=lines, log=True),
            Table(
                title=f"Drafts with {_WRONG} errors, overwriting, {_DRAFT_EACH} tokens a step",
                head=("training", "errors repaired", "right words harmed"),
                rows=tuple((arm, *own.values()) for arm, own in drafts.items()),
                note="Without overwriting every error and every right word stays.",
            ),
        ),
    )


def _mean(runs: Items[Items[float]]) -> Figure:
    return over_seeds([sum(run) / len(run) for run in runs]) if len(runs) > 1 else average(runs[0])


def _difference(a: Items[Items[float]], b: Items[Items[float]]) -> Figure:
    """The mean difference of two arms, with the interval over scenes and seeds: a scene of a seed is one item."""
    ours, theirs = ([right for run in runs for right in run] for runs in (a, b))
    return paired(ours, theirs, seeds=len(a))


def _of_drafts(found: Items[Json]) -> dict[str, Figure]:
    total = {name: sum(sum(run[name]) for run in found) for name in ("wrong", "repaired", "right", "harmed")}
    return {
        "repaired": share([i < total["repaired"] for i in range(total["wrong"])]),
        "harmed": share([i < total["harmed"] for i in range(total["right"])]),
    }


DEMO = Demonstration(minutes=12, run=demo)
