"""Image generation in GenEval's six categories (Ghosh et al., 2023), over scenes of the world. Public idea: ``GenEval()``.

Prompts describe scenes of the split in that benchmark's words; the judge scores the generated images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random

from unmask.data.world.language import amount, article, noun, plural
from unmask.data.world.render import render
from unmask.data.world.scenes import Draft, Scene, held_out, relation, sample
from unmask.evaluation import scoring
from unmask.evaluation.evaluate import EvalPlan, Figures, Finding, Pictures, Row, in_turns, weights_digest
from unmask.evaluation.judge import Judge, Seen, load_judge
from unmask.evaluation.metrics import Figure, by_combination, by_kind, frechet
from unmask.evaluation.scoring import Want, Wanted
from unmask.evaluation.strategies import GenerationStrategy, PromptGenerator
from unmask.json_types import Json
from unmask.pipeline.model import Model
from unmask.rng import key

Combination = tuple[str, ...]
Composed = tuple[str, Want, tuple[Combination, ...]]  # text, requested content, combinations it names
_NATURAL = Draft(counts=((2, 1.0),), alike=0.0, tinted=0.0)
_ATTEMPTS = 60  # scenes sampled per prompt


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """``text`` requests ``want``; ``scene`` is one solution · ``unseen``: the text names a held-out combination."""

    kind: str
    index: int
    seed: int
    text: str
    want: Want
    scene: Scene
    unseen: bool

    @property
    def key(self) -> str:
        return f"{self.kind}-{self.index:04d}"


Compose = Callable[[Scene, Random], Composed | None]


@dataclass(frozen=True, kw_only=True)
class PromptKind:
    """Prompts of one kind. ``suite`` and ``name`` are keys of their random numbers · ``draft(number)``: distribution of scenes for prompt
    ``number`` · ``compose``: text, content and named combinations of a scene, None for a scene that does not suit · ``opening``: before
    every text.
    """

    suite: str
    name: str
    draft: Callable[[int], Draft]
    compose: Compose
    opening: str = ""

    def prompts(self, count: int, *, level: str, split: str, seed: int) -> list[Prompt]:
        """The first ``count`` prompts, deterministic. ValueError if too few scenes of the level allow one."""
        made: list[Prompt] = []
        stream = key(self.suite, self.name, seed)
        for index in range(_ATTEMPTS * count):
            scene = sample(level, split, stream, index, self.draft(len(made)))
            composed = self.compose(scene, Random(f"{self.suite}/{self.name}/{seed}/{index}"))
            if composed:
                text, want, named = composed
                unseen = any(held_out(*combination) for combination in named)
                own = {"kind": self.name, "index": len(made), "seed": seed * 100_000 + len(made)}
                made.append(Prompt(**own, text=self.opening + text, want=want, scene=scene, unseen=unseen))
            if len(made) == count:
                return made
        raise ValueError(
            f"only {len(made)} of {count} {self.name} prompts can be made from {split} scenes of level {level!r}"
        )


def prompts(kind: str, count: int, *, level: str, split: str, seed: int) -> list[Prompt]:
    """The first ``count`` prompts of a category, as ``PromptKind.prompts``."""
    return GENEVAL[CATEGORIES.index(kind)].prompts(count, level=level, split=split, seed=seed)


def items_of(kinds: Sequence[PromptKind], plan: EvalPlan) -> list[Prompt]:
    """As many prompts of every kind, interleaved."""
    each = plan.each(len(kinds))
    return in_turns([k.prompts(each, level=plan.level, split=plan.split, seed=plan.seed) for k in kinds])


def _draft(kind: str, number: int) -> Draft:
    """The distribution of scenes for a prompt; counts cycle through two, three and four."""
    if kind in ("single", "colors"):
        return Draft(counts=((1, 1.0),), alike=0.0, tinted=float(kind == "colors"))
    if kind == "counting":
        return Draft(counts=((2 + number % 3, 1.0),), alike=1.0, tinted=0.0)
    return Draft(counts=((2, 1.0),), alike=0.0, tinted=1.0) if kind == "color_attr" else _NATURAL


def _single(scene: Scene, rng: Random) -> Composed | None:
    name = scene.objects[0].name
    return article(name), scoring.single(name), ()


def _two(scene: Scene, rng: Random) -> Composed | None:
    if len({t.name for t in scene.objects}) < 2:
        return None
    a, b = (t.name for t in rng.sample(scene.objects, 2))
    return f"{article(a)} and {article(b)}", scoring.two(a, b), ((a, b),)


def _counting(scene: Scene, rng: Random) -> Composed | None:
    count, obj = len(scene.objects), scene.objects[0]
    if count < 2:
        return None
    return amount(count, noun(obj), plural(obj)), scoring.counting(obj.name, count), ()


def _colors(scene: Scene, rng: Random) -> Composed | None:
    obj = scene.objects[0]
    return article(noun(obj)), scoring.colors(obj.name, obj.colour), ((obj.colour, obj.name),)


def _position(scene: Scene, rng: Random) -> Composed | None:
    if len({t.name for t in scene.objects}) < 2:
        return None
    a, b = rng.sample(scene.objects, 2)
    found = relation(a, b)
    if not found:
        return None
    want = scoring.position(Wanted(name=a.name), found, Wanted(name=b.name))
    return f"{article(a.name)} {found} {article(b.name)}", want, ((a.name, b.name), (found, a.name, b.name))


def _color_attr(scene: Scene, rng: Random) -> Composed | None:
    if len({t.name for t in scene.objects}) < 2 or len({t.colour for t in scene.objects}) < 2:
        return None
    a, b = rng.sample(scene.objects, 2)
    want = scoring.color_attr(a.name, a.colour, b.name, b.colour)
    named = ((a.colour, a.name), (b.colour, b.name), (a.name, b.name))
    return f"{article(noun(a))} and {article(noun(b))}", want, named


_COMPOSE: dict[str, Compose] = {
    "single": _single,
    "two": _two,
    "counting": _counting,
    "colors": _colors,
    "position": _position,
    "color_attr": _color_attr,
}
CATEGORIES: tuple[str, ...] = tuple(_COMPOSE)
GENEVAL: tuple[PromptKind, ...] = tuple(
    PromptKind(suite="geneval", name=kind, draft=partial(_draft, kind), compose=compose, opening="a photo of ")
    for kind, compose in _COMPOSE.items()
)


@dataclass(frozen=True, kw_only=True)
class GenEval:
    """``draw``: generates the images · ``distance``: also compute the Fréchet distance, which costs more than the verdicts."""

    draw: GenerationStrategy = PromptGenerator()
    distance: bool = True
    judge: Callable[[], Judge] = load_judge
    name: str = "world_geneval"

    def items(self, plan: EvalPlan) -> list[Prompt]:
        return items_of(GENEVAL, plan)

    def settings(self, model: Model) -> object:
        return [self.draw.settings(model), weights_digest(self.judge()).hex()]

    def find(self, model: Model, items: Sequence[Prompt]) -> list[Finding]:
        pictures = self.draw(model, items)
        return [
            Finding(row=_row(prompt, seen), pictures={"drawn": picture})
            for prompt, seen, picture in zip(items, self.judge().look(pictures), pictures, strict=True)
        ]

    def figures(self, plan: EvalPlan, items: Sequence[Prompt], rows: Sequence[Row], pictures: Pictures) -> Figures:
        """Scores by GenEval's rules, by the strict rule and for held-out combinations alone; the distance from renderings."""
        out: Figures = by_kind(rows, CATEGORIES)
        out["strict"] = by_kind(rows, CATEGORIES, "strict")
        out |= by_combination(rows)
        return out | ({"frechet": self._frechet(plan, items, pictures)} if self.distance else {})

    def _frechet(self, plan: EvalPlan, items: Sequence[Prompt], pictures: Pictures) -> Figure:
        """Distance, in the judge's features, of the generated images from renderings of the prompts' scenes.

        ``floor``: the distance of as many other renderings of the split, the value of a perfect model.
        """
        shown = [pictures(p.key, "drawn") for p in items]
        real, other = (
            self.judge().features([render(p.scene, shown[0].shape[0]) for p in some])
            for some in (items, self.items(replace(plan, seed=plan.seed + 1)))
        )
        return {"value": frechet(self.judge().features(shown), real), "n": len(items), "floor": frechet(other, real)}


def _row(prompt: Prompt, seen: Seen) -> Row:
    return {
        "kind": prompt.kind,
        "right": scoring.verdict(seen, prompt.want),
        "strict": scoring.strict(seen, prompt.want),
        "unseen": prompt.unseen,
        "seen": seen_json(seen),
    }


def seen_json(seen: Seen) -> Json:
    """The judge's detections for the record, rounded."""
    objects = [[t.colour, t.name, [round(v, 3) for v in t.box], round(t.score, 3)] for t in seen.objects]
    return {"background": seen.background, "things": objects}
