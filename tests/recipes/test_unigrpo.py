"""Prompts of reinforcement: those kept from training, those of a file; a step on words with adapters; the supervised baseline."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import unmask
from unmask.cli.main import main
from unmask.data.sources import pixels_of
from unmask.posttraining.prompts import Prompt, read_prompts
from unmask.posttraining.requests import Drawing
from unmask.posttraining.rewards import Sample
from unmask.recipes.mmada import Renderings, kept_prompts, supervised
from unmask.recipes.starting import start_of
from unmask.recipes.unigrpo import FilePrompts, WorldPrompts, unseen, variety
from unmask.sequence import Kind, Sequence, Span

torch.set_num_threads(1)


def test_prompts_that_measure_are_kept_from_every_training() -> None:
    requests = Drawing(parts=start_of("mini").parts)
    source = WorldPrompts(requests=requests, seed=0, batch=4)
    trained = {prompt.text for step in range(12) for prompt in source(step).prompts}
    assert len(trained) > 30 and not any(unseen(text) for text in trained)
    kept = [prompt.text for prompt in kept_prompts("validation", 24)]
    assert len(set(kept)) == 24 and all(unseen(text) for text in kept)
    again = WorldPrompts(requests=requests, seed=0, batch=4)(3)
    assert [p.text for p in again.prompts] == [p.text for p in source(3).prompts]


def test_supervised_tuning_does_not_see_them_either() -> None:
    source = supervised().source
    assert isinstance(source, Renderings)
    texts = [prompt.text for step in range(3) for prompt in source.prompts(step)]
    assert len(texts) == 48 and not any(unseen(text) for text in texts)
    small = replace(source, batch=3)
    batch, prompts = small(0), small.prompts(0)
    span = next(span for span in batch.span_table[0] if span.name == "image")
    wanted = source.encode(pixels_of([prompts[0].scene], 128))
    assert batch.ids[0, span.start : span.stop].sort().values.equal(wanted.flatten().sort().values)


def test_a_file_gives_all_its_prompts_before_any_again() -> None:
    prompts = tuple(Prompt(text=f"{n} cats") for n in ("one", "two", "three", "four", "five"))
    source = FilePrompts(requests=Drawing(parts=start_of("mini").parts), prompts=prompts, seed=1, batch=5)
    rounds = [[p.text for p in source(step).prompts] for step in range(3)]
    assert all(sorted(r) == sorted(p.text for p in prompts) for r in rounds) and rounds[0] != rounds[1]


def test_variety_is_the_share_of_tokens_that_differ() -> None:
    span = (Span(name="answer", kind=Kind.TEXT, start=1, stop=5, writable=True),)

    def sample(*ids: int) -> Sample:
        return Sample(sequence=Sequence(ids=torch.tensor([9, *ids]), masked=torch.zeros(5).bool(), spans=span))

    a, b, c = sample(1, 2, 3, 4), sample(1, 2, 3, 5), sample(5, 6, 7, 8)
    assert variety([[a, b]]) == 0.25 and variety([[a, a], [a, c]]) == 0.5 and variety([[a]]) == 0.0
    assert variety([[a, b, c]]) == pytest.approx((0.25 + 1 + 1) / 3)


def test_questions_train_adapters(tmp_path: Path) -> None:
    unmask.load("mini").generate("a cat", attempts=1, plan=False, steps=1)[0].image.save(tmp_path / "cat.png")
    rows = [{"question": "what is it?", "image": "cat.png", "answer": "cat"}] * 2
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = ("training.steps=1", "batch=2", "group=3", "updates=2")
    words = ["train", "unigrpo", "--data", str(tmp_path / "q.jsonl"), "--reward", "answer,format", "--lora", "2"]
    words += ["--out", str(tmp_path / "run"), *(w for s in small for w in ("-o", s))]
    assert main(words) == 0
    (first, *_) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"reward_answer", "reward_format", "kl"} <= set(first) and first["updates"] == 2
    assert (tmp_path / "run" / "adapter").is_dir()
    assert read_prompts(tmp_path / "q.jsonl")[0].image == tmp_path / "cat.png"
