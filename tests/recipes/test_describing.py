"""MMaDA's thinking before a drawing: the training row of a description and its picture, and its loss in the recipe."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from PIL import Image

from unmask.data.samples import FileBytes, ImageRef, Interleaved, MixedTurn
from unmask.objectives.importance import EachRow
from unmask.objectives.masked import Masked, Together
from unmask.recipes import families
from unmask.recipes.starting import start_of
from unmask.rng import generator
from unmask.sequence import Sequence
from unmask.tasks.family_rows import MMaDAExamples, family_codes
from unmask.tokens.mmada import EOI, SOI, THINK_AND_DRAW, THINK_TO_DRAW, Field
from unmask.tokens.text import BOS, END_HEADER, EOS, HEADER

torch.set_num_threads(1)
GOLDEN = Path(__file__).parents[1] / "golden" / "mmada_tiny"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture with room for a description."""
    place = Path(shutil.copytree(GOLDEN, tmp_path_factory.mktemp("mmada") / "model"))
    raw = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(raw | {"unmask": {"text_length": 400}, "max_sequence_length": 1024}))
    return place


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    Image.new("RGB", (64, 48), "green").save(folder / "wide.png")
    return folder


def picture(data: Path) -> ImageRef:
    return ImageRef(source=FileBytes(path=data / "wide.png"), name="wide")


def examples(folder: Path) -> MMaDAExamples:
    parts = start_of(str(folder)).parts
    return MMaDAExamples(parts=parts, codes=family_codes(parts, None), field=parts.rows.field)  # type: ignore[attr-defined]


def learned(row: Sequence) -> list[int]:
    return [int(i) for span in row.spans if span.writable for i in row.ids[span.start : span.stop]]


def test_a_description_before_a_drawing_is_learned_with_it(folder: Path, data: Path) -> None:
    """As the published trainer writes it; description, end of text and codes are learned, the tokens around the picture are not."""
    made = examples(folder)
    text, shown = made.parts.text, picture(data)
    turns = (
        MixedTurn(role="user", parts=("a wall",)),
        MixedTurn(role="assistant", parts=("a tall green wall", shown)),
    )
    row = made.think(Interleaved(key="a", turns=turns), Random(0))
    codes = made.parts.encode(made.parts.preprocess(Image.open(data / "wide.png"))[0]).flatten() + text.size
    said = [HEADER, "user", END_HEADER, f"\n{THINK_TO_DRAW}a wall<eot_id>", HEADER, "assistant", END_HEADER]
    ids = [text[THINK_AND_DRAW], text[BOS]]
    for piece in said:
        ids += [text[piece]] if piece in text.control else text.encode(piece)
    answer = [*text.encode("\n<think>a tall green wall</think>"), text[EOS]]
    filler = [text[EOS]] * (made.field.length + 1 - len(ids) - len(answer))
    assert row.ids.tolist() == [*ids, *answer, *filler, text[SOI], *codes.tolist(), text[EOI]]
    assert learned(row) == [*answer, *filler, *codes.tolist()]
    for wrong, told in (
        (turns[1:], "no answer"),
        ((turns[0], MixedTurn(role="assistant", parts=("so",))), "and a picture"),
    ):
        with pytest.raises(ValueError, match=told):
            made.think(Interleaved(key="a", turns=wrong), Random(0))
    with pytest.raises(ValueError, match="more than 100"):
        replace(made, field=Field(length=100)).think(Interleaved(key="a", turns=turns), Random(0))


def test_descriptions_have_the_loss_of_texts_and_the_weight_of_drawings(folder: Path, data: Path) -> None:
    rows = tuple(
        {
            "images": ["wide.png"],
            "messages": [{"role": "user", "content": f"draw {n}"}, {"role": "assistant", "content": "a wall <image>"}],
        }
        for n in range(2)
    )
    (data / "thoughts.jsonl").write_text(
        "".join(json.dumps({"id": str(n), **row}) + "\n" for n, row in enumerate(rows))
    )
    made = families.mmada(str(folder), str(data / "thoughts.jsonl"), batch=2, holdout=0)
    assert isinstance(made.objective, Together)
    ((name, objective, weight),) = made.objective.objectives
    assert (name, weight) == ("think", 1.0) and isinstance(objective, Masked) and objective.weight == EachRow()
    batch = made.source(0)
    assert set(batch) == {"think"} and batch["think"].ids.shape[0] == 2
    loss = objective(made.model(), batch["think"], generator("think"))
    assert torch.isfinite(loss.total)
