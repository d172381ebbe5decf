"""Drafts of answers: given words stay, slots may be left empty, and the released runs of infilling and structure priors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import unmask
from unmask.checkpoints.lavida import read_lavida
from unmask.cli.main import main
from unmask.pipeline.model import Model
from unmask.pipeline.text_gaps import FillGaps
from unmask.pipeline.text_model import TextModel
from unmask.sequence import Sequence
from unmask.tasks.drafts import Drafted, draft_ids, expanded
from unmask.tasks.lavida import slots_of
from unmask.tasks.understand import Ask
from unmask.tokens.mmada import CONTROL
from unmask.tokens.text import EOS, EOT, Slots, Text

from .. import tiny_dimple, tiny_dream, tiny_lavida, tiny_llada

torch.set_num_threads(1)
MARKER, FILLER = 5, 6
GOLDEN = Path(__file__).parents[1] / "golden" / "mmada_tiny"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("drafts")
    lavida = tiny_lavida.make(root / "lavida")
    raw = json.loads((lavida / "config.json").read_text())
    raw["unmask"] |= {"infill_id": MARKER, "fill_id": FILLER}
    (lavida / "config.json").write_text(json.dumps(raw))
    return {"lavida": lavida, "dimple": tiny_dimple.make(root / "dimple")}


def opened(folder: Path) -> Model:
    made = unmask.load(folder)
    assert isinstance(made, Model)
    made.parts.require(Ask.needs)
    return made


def picture() -> Image.Image:
    across = np.linspace(0, 255, 40)[None, :, None] + np.zeros((30, 40, 3))
    return Image.fromarray(across.astype(np.uint8))


def drafted(model: Model, draft: str, length: int = 24) -> tuple[Drafted, Sequence]:
    task = Drafted(ask=Ask(pixels=model.parts.image_views(picture()), question="why?", length=length), draft=draft)
    return task, task.build(model.parts)


@pytest.mark.parametrize("name", ["lavida", "dimple"])
def test_given_words_stay_where_they_are(name: str, folders: dict[str, Path]) -> None:
    """At any place of the answer, in its whole run; the rest is written anew."""
    model, draft = opened(folders[name]), "Step 1: [mask:3] so [mask] Answer:[mask:2]"
    task, row = drafted(model, draft)
    answer, text = row.spans[-1], model.parts.text
    pieces = [text.encode("Step 1:"), [None] * 3, text.encode(" so"), [None], text.encode(" Answer:"), [None] * 2]
    wanted = [i for piece in pieces for i in piece]
    ids, masked = row.ids[answer.start :].tolist(), row.masked[answer.start :].tolist()
    assert masked == [i is None for i in wanted] + [True] * (24 - len(wanted))
    assert all(own == i for own, i in zip(ids, wanted, strict=False) if i is not None)
    said = model.ask(picture(), "why?", draft=draft, length=24, seed=1)
    assert said.text.startswith("Step 1:") and " so" in said.text and " Answer:" in said.text
    done = model.run([row], [1], model.presets.ask(model.parts)).rows[0]
    kept = done.ids[answer.start :].tolist()
    assert all(own == i for own, i in zip(kept, wanted, strict=False) if i is not None)


def test_an_end_of_turn_before_the_last_word_ends_nothing(folders: dict[str, Path]) -> None:
    model = opened(folders["dimple"])
    task, row = drafted(model, "why [mask:2] the", length=10)
    text, start = model.parts.text, row.spans[-1].start
    ids = row.ids.clone()
    first = len(text.encode("why"))
    ids[start + first], ids[start + first + 1] = text[EOT], text.encode(" is")[0]
    length = first + 2 + len(text.encode(" the"))
    ids[start + length :] = torch.tensor([text[EOS]] + text.encode(" blue blue blue blue blue blue blue")[: 9 - length])
    done = replace(row, ids=ids)
    assert task.read(done, model.parts) == text.raw([*text.encode("why"), text.encode(" is")[0], *text.encode(" the")])


def test_slots_end_in_their_marker_and_lose_their_fillers(folders: dict[str, Path]) -> None:
    model = opened(folders["lavida"])
    slots, text = model.parts.slots, model.parts.text
    assert slots is not None
    ids, masked = draft_ids("the [slot:3] is", text, slots)
    before, after = text.encode("the "), text.encode(" is")
    assert ids[len(before) + 3] == slots.marker and ids[len(before) + 4 :] == after
    assert masked == [False] * len(before) + [True] * 3 + [False] * (1 + len(after))
    task, row = drafted(model, "the [slot:3] is")
    filled, start = row.ids.clone(), row.spans[-1].start
    filled[start + len(before) : start + len(before) + 3] = torch.tensor([slots.filler] * 3)
    filled[start + len(ids) :] = text[EOS]
    assert task.read(replace(row, ids=filled), model.parts) == "the is"


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("dimple", {"draft": "a [slot:3] b"}, "this model has no slots that it may leave empty; use \\[mask:N\\]"),
        ("dimple", {"draft": "no gap"}, "no \\[mask\\] in 'no gap'"),
        ("dimple", {"draft": "a [mask:0]"}, "\\[mask:0\\] is not possible; a gap has 1 to 512 tokens"),
        ("lavida", {"draft": "a [slot:900]"}, "\\[slot:900\\] is not possible"),
        (
            "dimple",
            {"draft": "a [mask:9]", "length": 4},
            "the draft has .* tokens and the answer 4; allow a longer one",
        ),
        ("dimple", {"draft": "[mask]", "max_tokens": 4}, "max_tokens cannot be combined with a draft"),
        ("dimple", {"draft": "[mask]", "stop": ["a"]}, "stop cannot be combined with a draft"),
    ],
)
def test_what_is_not_possible_is_named(
    name: str, given: dict[str, object], said: str, folders: dict[str, Path]
) -> None:
    with pytest.raises(ValueError, match=said):
        opened(folders[name]).ask(picture(), "why?", **given)  # type: ignore[arg-type]


def test_a_draft_longer_than_the_preset_has_room(folders: dict[str, Path]) -> None:
    said = opened(folders["dimple"]).ask(picture(), "why?", draft="Step 1: [mask:80] end", steps=4)
    assert said.text.startswith("Step 1:") and "end" in said.text


def test_gaps_of_many_tokens_in_a_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert expanded("a [mask:3] b [mask]") == "a [mask][mask][mask] b [mask]"
    with pytest.raises(ValueError, match="a gap has 1 to 512 tokens"):
        expanded("[mask:513]")
    for make in (tiny_dream.make, tiny_llada.make):
        folder = make(tmp_path / make.__module__)
        model = unmask.load(folder)
        many, each = (
            model.infill_text(t, seed=2).text for t in ("why is [mask:3] blue?", "why is[mask][mask][mask] blue?")
        )
        assert many == each and many.startswith("why is")
        assert main(["infill", "why is [mask:3] blue?", "--model", str(folder), "--seed", "2"]) == 0
        assert capsys.readouterr().out.strip() == many.strip()


def test_the_command(folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture().save(tmp_path / "a.png")
    words = ["ask", str(tmp_path / "a.png"), "why?", "--draft", "so it is [mask:4].", "--length", "16", "--seed", "1"]
    assert main([*words, "--model", str(folders["dimple"])]) == 0
    assert capsys.readouterr().out.startswith("so it is")


def test_slots_are_those_of_config_json_or_of_the_tokenizer(folders: dict[str, Path], tmp_path: Path) -> None:
    parts = opened(folders["lavida"]).parts
    assert parts.slots == Slots(marker=MARKER, filler=FILLER)
    _, found = read_lavida(folders["lavida"])
    plain = found.model_copy(update={"unmask": found.unmask.model_copy(update={"infill_id": None, "fill_id": None})})
    assert slots_of(parts.text, plain) is None, "this tokenizer has no such tokens"
    released = Text.load(GOLDEN / "tokenizer.json", CONTROL)
    ids = [released.tokenizer.token_to_id(f"<|reserved_token_{i}|>") for i in (1, 2)]
    assert slots_of(released, plain) == Slots(marker=ids[0], filler=ids[1])
    assert opened(tiny_lavida.make(tmp_path / "dream", on_dream=True)).parts.slots is None


def with_reserved(folder: Path) -> Path:
    """A folder of LLaDA whose tokenizer has the two reserved tokens of slots, in spare rows of the embedding."""
    raw = json.loads((folder / "tokenizer.json").read_text())
    size = max(max(raw["model"]["vocab"].values()), *(token["id"] for token in raw["added_tokens"])) + 1
    for number in (1, 2):
        token = {"content": f"<|reserved_token_{number}|>", "id": size + number - 1, "special": True}
        plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        raw["added_tokens"].append(token | plain)
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    return folder


def text_model(folder: Path) -> TextModel:
    made = unmask.load(folder)
    assert isinstance(made, TextModel)
    return made


def test_text_models_answer_drafts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Given words stay at any place of the answer, with LLaDA's blocks and with Dream's shifted logits."""
    for make in (tiny_dream.make, tiny_llada.make):
        folder = make(tmp_path / make.__module__)
        model = text_model(folder)
        said = model.ask("why?", draft="so the [mask:3] is [mask] sky", length=24, steps=4, seed=1)
        assert said.text.startswith("so the") and " sky" in said.text
        words = ["ask", "why?", "--draft", "so the [mask:3] is [mask] sky", "--length", "24", "--steps", "4", "--seed"]
        assert main([*words, "1", "--model", str(folder)]) == 0
        assert capsys.readouterr().out.strip() == said.text.strip()
        longer = model.ask("why?", draft="so [mask:60] sky", steps=2)
        assert " sky" in longer.text, "a draft longer than the preset's answer has room"
        with pytest.raises(ValueError, match="max_tokens cannot be combined with a draft"):
            model.ask("why?", draft="[mask]", max_tokens=3)
    assert main(["ask", "why?", "--draft", "[mask]", "--plain", "--model", str(folder)]) == 2
    assert "--plain cannot be combined with --draft" in capsys.readouterr().err


def test_slots_of_a_text_model(tmp_path: Path) -> None:
    """Its marker is given, its fillers vanish, and the model may leave the slot empty."""
    plain = text_model(tiny_llada.make(tmp_path / "plain"))
    with pytest.raises(ValueError, match="this model has no slots that it may leave empty"):
        plain.infill_text("the [slot:3] sky")
    model = text_model(with_reserved(tiny_llada.make(tmp_path / "llada")))
    slots, text = model.parts.slots, model.parts.text
    assert slots is not None
    task = FillGaps(target="why is the [slot:3] sky[mask]")
    row = task.build(model.parts)
    widths = [len(span) for span in row.spans if span.writable]
    assert widths == [3, 1] and row.ids[~row.masked].tolist().count(slots.marker) == 1
    filled = row.ids.clone()
    filled[row.masked] = torch.tensor([*text.encode("the")[:1], slots.filler, slots.filler, text.encode("sky")[0]])
    said = task.read(replace(row, ids=filled), model.parts)
    assert "reserved" not in said and "  " not in said and said.startswith("why is the the sky")
    assert "reserved_token_1" not in model.infill_text("why is the [slot:3] sky", seed=3).text


def test_a_picture_model_without_slots_says_so(model: Model) -> None:
    with pytest.raises(ValueError, match="this model has no slots that it may leave empty"):
        model.infill_text("a [slot:3] apple")


def test_a_gap_of_several_tokens_is_no_unknown_word(model: Model) -> None:
    assert model.infill_text("a [mask:2] apple left of a cat").warnings == ()
    assert "frobnicator" in " ".join(model.infill_text("a [mask:2] frobnicator").warnings)
