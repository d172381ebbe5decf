"""Pictures that a model drew: kept and found again, and taught from without anything of the test split."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unmask.data.drawn import Drawn, DrawnCritiques, load_drawn, save_drawn
from unmask.data.sources import pixels_of
from unmask.data.world.scenes import sample, shows_held_out
from unmask.recipes.mini import text
from unmask.recipes.mini_tasks import LOOK_TOKENS
from unmask.sequence import Kind


def drawn(count: int) -> tuple[torch.Tensor, list[Drawn]]:
    """Renderings in place of drawings: every second one is read completely, every third one is wrong."""
    scenes = [sample("grid", "train", 3, i) for i in range(count)]
    about = [
        Drawn(prompt=f"prompt {i}", critique="" if i % 3 else "there is no dog", scene=s, clean=i % 2 == 0)
        for i, s in enumerate(scenes)
    ]
    return (pixels_of(scenes, 128) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous(), about


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_drawn(tmp_path / "drawn", *drawn(8))
    return tmp_path / "drawn"


def source(folder: Path, seed: int = 4, captions: int = 2) -> DrawnCritiques:
    return DrawnCritiques(text=text(), seed=seed, look_tokens=LOOK_TOKENS, folder=folder, batch=6, captions=captions)


def test_what_was_saved_is_loaded(folder: Path) -> None:
    pictures, about = drawn(8)
    found, told = load_drawn(folder)
    assert torch.equal(found, pictures)
    signatures = [(d.prompt, d.critique, d.clean, d.scene.signature) for d in about]
    assert [(d.prompt, d.critique, d.clean, d.scene.signature) for d in told] == signatures
    save_drawn(folder, pictures[:3], about[:3])
    assert len(load_drawn(folder)[1]) == 3, "what is saved anew is not remembered as it was"


def test_missing_and_damaged_files_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere contains no generated images; create them with"):
        load_drawn(tmp_path / "nowhere")
    lines = (folder / "drawn.jsonl").read_text()
    for spoilt in (lines.replace("things", "thing"), lines[:-40], lines.replace("[[", "[[1, ")):
        (folder / "drawn.jsonl").write_text(spoilt)
        with pytest.raises(ValueError, match="are damaged .*; create them again"):
            load_drawn(folder)
    (folder / "drawn.jsonl").write_text("".join(lines.splitlines(keepends=True)[:5]))
    with pytest.raises(ValueError, match="8 images but 5 labels"):
        load_drawn(folder)
    (folder / "pictures.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="are damaged"):
        load_drawn(folder)


def test_nothing_held_out_is_kept(tmp_path: Path) -> None:
    pictures, about = drawn(2)
    unseen = next(s for s in (sample("grid", "test", 0, i) for i in range(100)) if shows_held_out(s))
    about[1] = Drawn(prompt="", critique="", scene=unseen, clean=True)
    with pytest.raises(ValueError, match="image 1 shows a combination held out"):
        save_drawn(tmp_path, pictures, about)
    assert not list(tmp_path.iterdir())


def test_a_batch_is_a_function_of_seed_and_step(folder: Path) -> None:
    first, again, other, step = source(folder)(3), source(folder)(3), source(folder, seed=5)(3), source(folder)(4)
    assert torch.equal(first.ids, again.ids) and torch.equal(first.writable, again.writable)
    for different in (other, step):
        assert first.ids.shape != different.ids.shape or not torch.equal(first.ids, different.ids)
    assert not first.masked.any() and set(first.kind[first.writable].tolist()) == {int(Kind.TEXT)}


def test_every_picture_is_asked_about_with_its_prompt_and_clean_ones_with_more(folder: Path) -> None:
    seen = set()
    for step in range(4):
        for row in source(folder)(step).ids:
            said = text().show(row.tolist())
            (number,) = (i for i in range(8) if f"prompt {i}" in said)
            assert said.count("is this") == (3 if number % 2 == 0 else 1)
            answer = said.partition(f"prompt {number}")[2].partition("is this")[0]
            assert ("there is no dog" in answer) == (number % 3 == 0) and ("is correct" in answer) == (number % 3 > 0)
            seen.add(number)
    assert len(seen) > 5
