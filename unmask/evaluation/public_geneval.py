"""The public benchmark GenEval, from its own prompt file. Public idea: ``PublicGenEval(prompts=read_geneval(path))``, a part.

Images are saved in the folder layout of the benchmark's scripts (``layout``, ``lay_out``). Our judge scores the prompts whose nouns and
colours it knows, by the benchmark's ``include`` and ``exclude`` rules; all others are "not judged", neither right nor wrong. One rule
differs: a relation holds if one axis dominates (``scenes.relation``), as in the suite ``world``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from unmask.data.geneval import TAGS, GenEvalPrompt
from unmask.data.world.vocabulary import LEVELS
from unmask.evaluation import scoring
from unmask.evaluation.encoders import Comparison
from unmask.evaluation.evaluate import EvalPlan, Figures, Finding, Pictures, Row, weights_digest
from unmask.evaluation.judge import Judge, Seen, load_judge
from unmask.evaluation.metrics import mean_of, share_of_groups
from unmask.evaluation.scoring import Related, Want, Wanted
from unmask.evaluation.strategies import GenerationStrategy, PromptGenerator
from unmask.evaluation.world_geneval import seen_json
from unmask.pipeline.model import Model
from unmask.rng import key
from unmask.tokens.pictures import write_whole

_MINI = LEVELS["grid"]  # the training vocabulary of the embedded model; the judge knows the whole world


@dataclass(frozen=True, kw_only=True)
class Shot:
    """Image ``number`` of a prompt, equal to image ``number`` of ``unmask generate PROMPT --seed S -n 4``."""

    prompt: GenEvalPrompt
    number: int
    seed: int

    @property
    def key(self) -> str:
        return f"{self.prompt.index:05d}-{self.number:04d}"

    @property
    def text(self) -> str:
        return self.prompt.prompt


@dataclass(frozen=True, kw_only=True)
class PublicGenEval:
    """The first ``plan.n`` prompts, ``each`` images per prompt. ``everything``: include prompts that the judge cannot score.

    ``compare``: also compute the similarity of image and prompt with an encoder.
    """

    prompts: tuple[GenEvalPrompt, ...]
    each: int = 4
    everything: bool = False
    draw: GenerationStrategy = PromptGenerator()
    judge: Callable[[], Judge] = load_judge
    compare: Comparison | None = None
    name: str = "geneval"

    def chosen(self, plan: EvalPlan) -> list[GenEvalPrompt]:
        return [p for p in self.prompts if self.everything or self.knows(p)][: plan.n]

    def knows(self, prompt: GenEvalPrompt) -> bool:
        """Whether the judge knows every noun and colour of the prompt."""
        config = self.judge().config
        return prompt.nouns <= set(config.classes) and prompt.colours <= set(config.colours)

    def items(self, plan: EvalPlan) -> list[Shot]:
        return [
            Shot(prompt=prompt, number=number, seed=plan.seed + number)
            for prompt in self.chosen(plan)
            for number in range(self.each)
        ]

    def settings(self, model: Model) -> object:
        return [self.draw.settings(model), weights_digest(self.judge()).hex(), key(*(p.line for p in self.prompts))]

    def find(self, model: Model, items: Sequence[Shot]) -> list[Finding]:
        pictures = self.draw(model, items)
        seen: Sequence[Seen | None] = [None] * len(items)
        if self.judges(model):
            seen = self.judge().look(pictures)
        looks = zip(items, seen, pictures, strict=True)
        return [Finding(row=self._row(item.prompt, look), pictures={"drawn": picture}) for item, look, picture in looks]

    def judges(self, model: Model) -> bool:
        """Whether the judge can score this model's images, which must have the image size of the world."""
        return model.parts.side <= self.judge().config.side

    def _row(self, prompt: GenEvalPrompt, seen: Seen | None) -> Row:
        row: Row = {"kind": prompt.tag, "prompt": prompt.index, "grid": _in_grid(prompt), "right": None}
        if seen is not None and self.knows(prompt):
            row |= {"right": shows(seen, prompt), "seen": seen_json(seen)}
        return row

    def figures(self, plan: EvalPlan, items: Sequence[Shot], rows: Sequence[Row], pictures: Pictures) -> Figures:
        """Every category, and ``overall``, their unweighted mean as in the benchmark; also for ``mini``'s training vocabulary alone."""
        judged = [row for row in rows if row["right"] is not None]
        out = _by_category(judged)
        out["words_of_grid"] = _by_category([row for row in judged if row["grid"]])
        out["prompts"] = len(self.prompts)
        out["prompts_judgeable"] = sum(self.knows(p) for p in self.prompts)
        out["prompts_drawn"] = len({row["prompt"] for row in rows})
        out["prompts_judged"] = len({row["prompt"] for row in judged})
        out["pictures_not_judged"] = len(rows) - len(judged)
        if self.compare is not None:
            out |= self.compare.figures((pictures(i.key, "drawn") for i in items), [i.text for i in items])
        return out


def _by_category(rows: Sequence[Row]) -> Figures:
    found = {}
    for tag in TAGS:
        groups: dict[int, list[bool]] = {}
        for row in rows:
            if row["kind"] == tag:
                groups.setdefault(row["prompt"], []).append(row["right"])
        found[tag] = share_of_groups(groups.values())
    return {"overall": mean_of(list(found.values())), **found}


def _in_grid(prompt: GenEvalPrompt) -> bool:
    return prompt.nouns <= set(_MINI.classes) and prompt.colours <= set(_MINI.colours)


def shows(seen: Seen, prompt: GenEvalPrompt) -> bool:
    """Whether an image contains every ``include`` entry and stays below every ``exclude`` count."""
    few = all(sum(t.name == e.name for t in seen.objects) < e.count for e in prompt.exclude)
    return few and all(scoring.verdict(seen, want) for want in wants(prompt))


def wants(prompt: GenEvalPrompt) -> tuple[Want, ...]:
    """The ``include`` entries as ``Want`` values: one per requested relation, or one without a relation."""
    items = tuple(Wanted(name=e.name, count=e.count, colour=e.colour) for e in prompt.include)
    related = [
        Related(first=item, relation=entry.position[0], second=items[entry.position[1]])
        for item, entry in zip(items, prompt.include, strict=True)
        if entry.position is not None
    ]
    return tuple(Want(items=items, related=r) for r in related) or (Want(items=items),)


def layout(key: str) -> Path:
    """The path of image ``00012-0003``: ``00012/samples/0003.png``."""
    prompt, _, number = key.partition("-")
    return Path(prompt) / "samples" / f"{number}.png"


def lay_out(folder: Path, prompts: Sequence[GenEvalPrompt]) -> None:
    """Write each prompt's line of the file to ``metadata.jsonl`` beside its images; the benchmark's scripts read it."""
    for prompt in prompts:
        line = prompt.line + "\n"
        write_whole(
            folder / f"{prompt.index:05d}" / "metadata.jsonl",
            lambda part, line=line: part.write_text(line, encoding="utf-8"),
        )
