"""Pairs for preference training: of own drawings by a reward, and of a file; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from unmask.cli.main import main
from unmask.data.published import FormatError
from unmask.recipes.inpo import PairBatches, pairs, wins
from unmask.tokens.text import EOT

torch.set_num_threads(1)


def source(**fields: Any) -> PairBatches:
    found = pairs(**fields).source
    assert isinstance(found, PairBatches)
    return found


def test_own_pairs_are_the_best_and_the_worst_drawing_of_a_prompt() -> None:
    own = source(prompts=3, group=4, sample_steps=2, batch=2)
    batch = own(0)
    assert batch.winners.rows == batch.losers.rows == 2 and not batch.winners.masked.any()
    requests, worth = own.pairs.requests, own.pairs.reward  # type: ignore[union-attr]
    for better, worse in own.all:
        prompts = [p for p in own.pairs.prompts if torch.equal(requests.row(p).ids[:5], better.ids[:5])]
        values = worth(requests.read(prompts[:1] * 2, [better, worse]))
        assert values[0] > values[1]
    again = source(prompts=3, group=4, sample_steps=2, batch=2)(0)
    assert torch.equal(again.winners.ids, batch.winners.ids)


def test_a_file_of_pictures_trains_from_the_command_line(tmp_path: Path) -> None:
    for name, colour in (("good", "red"), ("bad", "blue")):
        Image.new("RGB", (128, 128), colour).save(tmp_path / f"{name}.png")
    row = {"prompt": "a red cat", "better": "good.png", "worse": "bad.png"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    own = source(data=str(tmp_path / "pairs.jsonl"), batch=1)
    batch = own(0)
    span = own.all[0][0].span("image")
    codes = own.pairs.start.parts.encode(torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 128, 128))
    assert batch.winners.ids[0, span.start : span.stop].sort().values.equal(codes.flatten().sort().values)
    words = ["train", "inpo.pairs", "--data", str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path / "run")]
    assert main([*words, "-o", "training.steps=2", "-o", "batch=2", "-o", "lora=2"]) == 0
    assert (tmp_path / "run" / "adapter").is_dir()


def test_a_file_of_answers(tmp_path: Path) -> None:
    Image.new("RGB", (128, 128), "red").save(tmp_path / "red.png")
    row = {"question": "what colour is it?", "image": "red.png", "better": "red", "worse": "blue"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    own = source(data=str(tmp_path / "pairs.jsonl"))
    text = own.pairs.start.parts.text
    better, worse = own.all[0]
    span = better.span("answer")
    said = [row.ids[span.start : span.stop].tolist() for row in (better, worse)]
    assert [text.decode(ids[: ids.index(text[EOT])]).strip() for ids in said] == ["red", "blue"]


def test_wrong_pairs_are_refused(tmp_path: Path) -> None:
    place = tmp_path / "pairs.jsonl"
    place.write_text(json.dumps({"prompt": "a cat", "better": "a.png"}) + "\n")
    with pytest.raises(FormatError, match=r"line 1: there is no picture a.png"):
        source(data=str(place))(0)
    place.write_text(json.dumps({"prompt": "a cat", "worse": "a.png"}) + "\n")
    with pytest.raises(FormatError, match=r'line 1 has no .better. answer; give "better" and "worse"'):
        source(data=str(place))(0)


def test_equal_drawings_count_half() -> None:
    assert wins([1.0, 0.5, 0.0, 0.0], [0.5, 0.5, 0.0, 1.0]) == 0.5
