"""Query-Kontext: a small model that draws, edits and takes content from a picture, trained stage by stage (``methods.query_kontext``).

    unmask train query_kontext.editor -o stage=0 --out runs/k0                      an understanding network: what will the picture show?
    unmask train query_kontext.editor -o stage=1 -o start=runs/k0 --out runs/k1     queries and connector, with a light drawing network
    unmask train query_kontext.editor -o stage=2 -o start=runs/k1 --out runs/k2     a new drawing network; the rest is frozen
    unmask train query_kontext.editor -o stage=3 -o start=runs/k2 --out runs/k3     codes of the given picture join
    unmask train query_kontext.editor -o data=edits -o stage=0 --out runs/own       your own edits (docs/data.md), stage by stage
    unmask edit cat.png "make the cat blue" --model runs/k3
    unmask edit cat.png "draw this cat at the top left on a sky background" --kind reference --model runs/k3
    unmask methods run query_kontext

Pictures are masked codes here, where the paper's are noised latents.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from unmask.checkpoints.schema import read_json
from unmask.checkpoints.store import load_module, save_module
from unmask.checkpoints.stream import CheckpointError
from unmask.evaluation.demonstration import Demonstration, Findings, Media, Table, Work, place
from unmask.evaluation.metrics import Figure, over_seeds
from unmask.json_types import Json
from unmask.methods.query_kontext import Stage
from unmask.models.elastic import init
from unmask.models.lora import LoRA, adapters, merge
from unmask.objectives.masked import Masked
from unmask.pipeline.image_tokens import Kit, tupled, write_kit
from unmask.pipeline.model import Model
from unmask.recipe import Optim, Recipe
from unmask.recipes.image_tokens import mini_kit, training
from unmask.recipes.kontext_rows import KINDS, SIDE, WORLD, Batches, Rows, own_rows, small_kit, world_rows
from unmask.recipes.query_conditioned import REFERENCE, SOURCE, QueryConditioned, QueryConfig, request
from unmask.rng import generator, seeded
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Cosine
from unmask.sampling.selection import Confident
from unmask.sampling.token_sampler import Categorical
from unmask.sequence import Sequence, collate
from unmask.tasks.image_tokens import ImageTokenRows
from unmask.tasks.parts import Parts
from unmask.tasks.rows import Extras
from unmask.tasks.some_tasks import drawing_and_answering, refusing
from unmask.tokens.layouts import Layout
from unmask.tokens.prompts import COMPACT
from unmask.tokens.text import BOS, EOT, MASK, Text
from unmask.tokens.views import ImageViews
from unmask.tokens.vq import VQ, VQConfig
from unmask.writing import write_text

NAME = "query_kontext.editor"
STAGES = (0, 1, 2, 3, 4)  # of training; 4: everything at once from stage 0, for comparison
_RANK = 16


def editor(
    data: str = "",
    stage: int = 0,
    start: str = "",
    conditions: str = "both",
    places: str = "shifted",
    pictures: int = 4000,
    steps: int = 400,
    lr: float = 2e-3,
    seed: int = 0,
) -> Recipe:
    """One stage. ``start``: the folder of the stage before (of stage 0 for stage 4, which trains all at once) · ``conditions``: both, text
    or queries, chosen in stages 1 and 2 · ``places``: of the given picture's codes from stage 3 on: shifted, same, aside, or "" for none.
    """
    if stage not in STAGES:
        raise ValueError(f"the stages are {', '.join(map(str, STAGES))}, got {stage}")
    if bool(start) != bool(stage):
        raise ValueError("stage 0 starts anew; every later one needs start=FOLDER of the stage before")
    kit = mini_kit if data else partial(small_kit, WORLD)

    def network() -> QueryConditioned:
        if not start:
            return _fresh(_sizes(kit()), seed)
        before = read(Path(start))[1]
        shown = replace(before.sizes, places=places if stage > 2 else "")
        shown = shown if stage == 3 else replace(shown, conditions=conditions)
        return _continued(before, replace(shown, layers=_LAYERS[stage]), seed, anew=stage != 3)

    def row(rows: Rows, i: int) -> Sequence:
        return rows.row(i, kit().text, QueryConfig.queries, stage=stage)

    return Recipe(
        name=NAME,
        model=network,
        source=Batches(rows=lambda: own_rows(data, kit()) if data else world_rows(pictures, seed), row=row, seed=seed),
        objective=Masked(),
        optim=Optim(lr=lr, warmup=30, decay_from=0.3, floor=0.05, ema=0.98),
        training=training(steps, seed),
        adapt=partial(_prepared, stage=stage),
        export=lambda module, folder: export(module, folder, kit()),
        open=lambda folder, device: read(folder, device)[0],
    )


_LAYERS = (1, 1, 3, 3, 3)  # of the drawing network, by stage: first a light one


def _sizes(kit: Kit) -> QueryConfig:
    words, codes = kit.text.size, kit.vq.config.num_vq_embeddings
    return QueryConfig(words=words, codes=codes, grid=kit.grid, mask_id=kit.text[MASK], layers=_LAYERS[0], places="")


def _fresh(sizes: QueryConfig, seed: int) -> QueryConditioned:
    net = seeded(lambda: QueryConditioned(sizes), seed)
    for part in ("und", "drawing"):
        init(net.get_submodule(part), generator("query kontext", part, seed))
    return net


def _continued(before: QueryConditioned, sizes: QueryConfig, seed: int, *, anew: bool) -> QueryConditioned:
    """The weights of the stage before. ``anew``: but with a new drawing network."""
    net = _fresh(sizes, seed)
    known = {k: v for k, v in before.state_dict().items() if not (anew and k.startswith("drawing."))}
    net.load_state_dict({**net.state_dict(), **known})
    return net


def _prepared(net: QueryConditioned, stage: int) -> None:
    """Insert adapters and set what is trained, in place."""
    adapted = {1: "und.blocks.", 3: "drawing.blocks.", 4: "und.blocks."}.get(stage)
    if adapted:
        LoRA(where=lambda name: name.startswith(adapted), rank=_RANK, alpha=2.0 * _RANK)(net)
    own = tuple(f"{name}.lora." for name, _, _ in adapters(net))
    trained = {0: ("und.", "look."), 1: ("tokens.", "drawing."), 2: ("tokens.", "drawing."), 3: ("tokens.",)}
    Stage(trained=(*trained.get(stage, ("tokens.", "drawing.")), *own))(net)


def export(net: QueryConditioned, folder: Path, kit: Kit) -> None:
    """Write the model with its adapters merged."""
    merge(net)
    plain = QueryConditioned(net.sizes)
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if ".lora." not in k})
    save_module(plain, folder)
    fields = {"recipe": NAME, "model": asdict(net.sizes), **write_kit(folder, kit)}
    write_text(folder / "config.json", json.dumps(fields, indent=1) + "\n")


def read(folder: Path, device: str = "cpu") -> tuple[Model, QueryConditioned, Kit]:
    """The model of a folder with its parts. CheckpointError for a file that is missing or does not fit."""
    raw = read_json(folder / "config.json")
    try:
        sizes = QueryConfig(**tupled(raw["model"]))
        vq = VQ(VQConfig(**tupled(raw["vq"])))
        side = int(raw["side"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / 'config.json'} does not describe an editor: {error}; was it changed?"
        ) from error
    kit = Kit(
        text=Text.load(folder / "tokenizer.json"),
        vq=load_module(vq, folder, name="vq").to(device).eval(),
        side=side,
    )
    net = load_module(QueryConditioned(sizes), folder).to(device).eval()
    return model_of(net, kit), net, kit


@dataclass(frozen=True, kw_only=True)
class EditorRows(ImageTokenRows):
    """Drawings from words and edits. ``name``: what a given picture is: the source of an edit, or a reference."""

    queries: int
    name: str = SOURCE

    def of_kind(self, kind: str, references: Any) -> EditorRows:
        if references or kind not in ("", REFERENCE):
            raise ValueError(
                f"this model edits one picture, or takes its content with the kind {REFERENCE!r}, got {kind[:50]!r}"
            )
        return replace(self, name=REFERENCE) if kind else self

    def drawing(self, tokens: Parts, prompt: str, extras: Extras) -> Sequence:
        if extras != Extras():
            raise ValueError("this model draws from a prompt alone; leave out conditions, layouts, attempts and sizes")
        return request(_words(tokens, prompt), self.queries, tokens.grid, text=prompt)

    def editing(
        self, tokens: Parts, look: Tensor | ImageViews, source: Tensor, instruction: str, plan: Layout | None
    ) -> Sequence:
        if plan is not None:
            raise ValueError("this model edits without a layout; leave it out")
        given = source.view(tokens.grid)
        words = _words(tokens, instruction)
        return request(words, self.queries, tokens.grid, given, name=self.name, text=instruction)


def _words(tokens: Parts, prompt: str) -> list[int]:
    return [tokens.text[BOS], *tokens.text.encode(tokens.wording.read(prompt)), tokens.text[EOT]]


def sampler(tokens: Parts | None = None) -> Sampler:
    """Eight steps, the most certain codes first."""
    return Sampler(schedule=Cosine(steps=8), token_sampler=Categorical(temperature=0.3), selection=Confident())


def model_of(net: QueryConditioned, kit: Kit) -> Model:
    """The model of a network: it draws and edits."""
    rows = EditorRows(arrange=lambda row: row, queries=net.sizes.queries)
    parts = Parts(text=kit.text, net=net, vq=kit.vq, wording=COMPACT, side=kit.side, fold=1, rows=rows)  # type: ignore[arg-type]
    cannot = refusing("this model cannot", "it has generate and edit")("answer questions")
    presets = drawing_and_answering(
        "this model", "it has generate and edit", generate=sampler, edit=sampler, ask=cannot, length=1
    )
    return Model(parts, presets=presets)


# -- the demonstration -------------------------------------------------------------------------------------------------

_STEPS = (300, 200, 600, 500)  # of the stages; 4 has as many as 1 to 3
_PICTURES, _TESTED = 3000, 30  # to train on, and of each kind to test
ARMS = {  # stage, conditions, places, and the arm that it goes on from
    "understanding": (0, "both", "", ""),
    "1: light drawer": (1, "both", "", "understanding"),
    "2: words": (2, "text", "", "1: light drawer"),
    "2: queries": (2, "queries", "", "1: light drawer"),
    "2: words and queries": (2, "both", "", "1: light drawer"),
    "3: no codes": (3, "both", "", "2: words and queries"),
    "3: codes, shifted": (3, "both", "shifted", "2: words and queries"),
    "3: codes, same places": (3, "both", "same", "2: words and queries"),
    "3: codes, all aside": (3, "both", "aside", "2: words and queries"),
    "all at once": (4, "both", "shifted", "understanding"),
}
_FIRST, _LIGHT, _WORDS, _QUERIES, _BOTH, _NONE, _SHIFTED, _SAME, _ASIDE, _WHOLE = ARMS


def demo(work: Work) -> Findings:
    """Every arm of every seed."""
    names = [name for name in ARMS if name != _FIRST]
    return _findings(work.each(names, partial(_measured, work), "arms"), work)


@lru_cache(maxsize=4)
def _net(work: Work, name: str, seed: int) -> QueryConditioned:
    folder = work.out / "trained" / place(name, seed)
    stage, conditions, places, before = ARMS[name]
    if before:
        _net(work, before, seed)
    start = str(work.out / "trained" / place(before, seed)) if before else ""
    steps = sum(work.steps(n, least=1) for n in (_STEPS[1:] if stage == 4 else _STEPS[stage : stage + 1]))
    size = {"pictures": work.steps(_PICTURES, least=16), "steps": steps, "seed": seed}
    work.train(place(name, seed), editor(stage=stage, start=start, conditions=conditions, places=places, **size))
    return read(folder)[1]


def _measured(work: Work, name: str, seed: int) -> Json:
    net = _net(work, name, seed)
    return {kind: scores(net, world_rows(work.steps(_TESTED, least=2), 77, "test", kind), seed) for kind in KINDS}


def scores(net: QueryConditioned, rows: Rows, seed: int) -> Json:
    """Shares of pictures that are right in every code, and of right codes where the object is and elsewhere."""
    assert rows.changed is not None
    right = drawn(net, rows, seed) == rows.targets
    inside, outside = right[rows.changed], right[~rows.changed]
    return {
        "whole": float(right.flatten(1).all(1).float().mean()),
        "object": float(inside.float().mean()),
        "rest": float(outside.float().mean()),
    }


def drawn(net: QueryConditioned, rows: Rows, seed: int) -> Tensor:
    """Codes of the pictures that rows ask for, [N, h, w]."""
    text, grid, made = small_kit(WORLD).text, rows.targets.shape[1:], []
    for i, prompt in enumerate(rows.prompts):
        words = [text[BOS], *text.encode(prompt), text[EOT]]
        name = REFERENCE if rows.kinds[i] == "reference" else SOURCE
        made.append(request(words, net.sizes.queries, (grid[0], grid[1]), rows.given[i], name=name))
    done = sampler().sample(net, collate(made, [seed * 1000 + i for i in range(len(made))]))
    spans = [one.span("image") for one in made]
    return torch.stack([done.ids[i, span.start : span.stop] for i, span in enumerate(spans)]).view(-1, *grid)


def _edits(part: str, one: Json) -> float:
    return float(one["recolour"][part] + one["replace"][part]) / 2


def _every(part: str, one: Json) -> float:
    return float(sum(one[kind][part] for kind in KINDS)) / len(KINDS)


def _findings(found: dict[str, list[Json]], work: Work) -> Findings:
    from unmask.evaluation.demonstration_page import said

    def of(name: str, kind: str, part: str) -> Figure:
        return over_seeds([one[kind][part] for one in found[name]])

    def gain(name: str, other: str, what: Any) -> Figure:
        return over_seeds([what(a) - what(b) for a, b in zip(found[name], found[other], strict=True)])

    rest, objects, whole = partial(_edits, "rest"), partial(_every, "object"), partial(_every, "whole")
    queries, codes = gain(_QUERIES, _WORDS, objects), gain(_SHIFTED, _NONE, rest)
    figures = {
        "queries_minus_words.object": queries,
        "both_minus_words.object": gain(_BOTH, _WORDS, objects),
        "codes_minus_none.rest_of_edits": codes,
        "shifted_minus_same.rest_of_edits": gain(_SHIFTED, _SAME, rest),
        "aside_minus_shifted.rest_of_edits": gain(_ASIDE, _SHIFTED, rest),
        "stages_minus_at_once.whole": gain(_SHIFTED, _WHOLE, whole),
    }
    return Findings(
        about="Drawings from words, two kinds of edits and drawings of a given object in the small world, 4 x 4 codes; texts of results "
        f"that no training row has, {len(work.seeds)} seeds. Updates by stage: {', '.join(map(str, _STEPS))}; all arms of a stage have "
        "as many, and training at once as many as stages 1 to 3. The understanding network reads the given picture in all. Object: right "
        "codes of the object that is drawn anew; rest: of all others, which an edit leaves alone; whole: all codes are right.",
        verdict=f"Queries in place of words change the right codes of objects by {said(queries)}; codes of the given picture keep "
        f"{said(codes)} more of what an edit leaves alone; three stages against one change whole pictures by "
        f"{said(figures['stages_minus_at_once.whole'])}.",
        seen=all(one["low"] is not None and one["low"] > 0 for one in (queries, codes)),
        figures=figures,
        shown=(
            *(
                Table(
                    title=title,
                    head=("stage and arm", *KINDS),
                    rows=tuple((name, *(of(name, kind, part) for kind in KINDS)) for name in found),
                )
                for title, part in (
                    ("Right codes of the object", "object"),
                    ("Right codes of the rest", "rest"),
                    ("Pictures right in every code", "whole"),
                )
            ),
            Media(title="Given, drawn and right", items=_shown(work), note=f"Of {_SHIFTED!r}, first seed."),
        ),
    )


def _shown(work: Work) -> tuple[tuple[str, Image.Image], ...]:
    kit, net, items = small_kit(WORLD), _net(work, _SHIFTED, work.seeds[0]), []
    for kind in KINDS:
        rows = world_rows(2, 78, "test", kind)
        for i, codes in enumerate(drawn(net, rows, 0)):
            given = rows.given[i]
            codes_N = torch.stack([*([] if given is None else [given]), codes, rows.targets[i]])
            items.append((rows.prompts[i], _beside(kit.decode(codes_N))))
    return tuple(items)


def _beside(images: list[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (len(images) * (SIDE + 4) - 4, SIDE), "white")
    for n, image in enumerate(images):
        sheet.paste(image, (n * (SIDE + 4), 0))
    return sheet


DEMO = Demonstration(minutes=12, run=demo)
