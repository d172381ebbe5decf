"""A talking drawing from the command line: its folder, streams, exact memories, windows, and the face that it plays."""

from __future__ import annotations

import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import unmask
from unmask.cli.main import main
from unmask.data.world import puppet
from unmask.data.world.puppet import Look
from unmask.methods.x_streamer import Pyramid
from unmask.models.elastic import Elastic
from unmask.recipes.talking_rows import CHUNKS, OPEN, SOUND, TOKENS, Streams, anchor_of, given, played, rows
from unmask.recipes.x_streamer import streamer, talk, talker
from unmask.rng import generator
from unmask.sequence import Kind

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("talker") / "run"
    small = ("steps=2", "width=32", "layers=1")
    assert main(["train", "x_streamer.talker", "--out", str(place), *(w for s in small for w in ("-o", s))]) == 0
    return place


@pytest.fixture(scope="module")
def net(folder: Path) -> Elastic:
    return unmask.load(folder).net


def test_a_stream_asks_for_each_move_when_its_chunk_enters(folder: Path) -> None:
    asked = []

    def moves() -> Iterator[str]:
        for sign in "<.>":
            asked.append(sign)
            yield sign

    stream = unmask.load(folder).stream("ab ", moves(), face=2)
    first = next(stream)
    assert asked == ["<"] and first.picture.size == (puppet.SIDE, puppet.SIDE)
    assert len(first.wave) == puppet.RATE * puppet.SECONDS and len(list(stream)) == 2
    with pytest.raises(ValueError, match="'x' is not a move"):
        list(unmask.load(folder).stream("ab", ".x"))
    with pytest.raises(ValueError, match="no face 8"):
        list(unmask.load(folder).stream("ab", "..", face=8))


def test_a_film_and_its_sound_are_written(folder: Path, tmp_path: Path) -> None:
    talk(str(folder), "hi", ".>", str(tmp_path / "film"))
    with wave.open(str(tmp_path / "film.wav")) as sound:
        assert sound.getnframes() == 2 * puppet.RATE * puppet.SECONDS
    assert (tmp_path / "film.gif").read_bytes()[:3] == b"GIF"
    with pytest.raises(ValueError, match="stream is empty"):
        talk(str(folder), "", ".", str(tmp_path / "film"))


@pytest.mark.parametrize(("window", "passes"), [(1, 1), (1, 3), (3, 1), (2, 2)])
def test_kept_keys_and_values_change_nothing(net: Elastic, window: int, passes: int) -> None:
    before, made = played(3, 1, [1, 2, 3, 0], [0, 1, 1, 0])[None], [given(n, 0)[None] for n in range(6)]
    anchor = anchor_of(3)[None]

    def run(cached: bool) -> list[torch.Tensor]:
        stream = streamer(net, window, passes, cached=cached)
        return list(stream(made, lambda tick: None if tick % 2 else anchor, generator("stream"), before))

    found = run(True)
    assert len(found) == len(made) and all(torch.equal(a, b) for a, b in zip(found, run(False), strict=True))
    for chunk, wanted in zip(found, made, strict=True):
        assert torch.equal(chunk[:, ~OPEN], wanted[:, ~OPEN]), "given tokens stay"
        assert SOUND <= int(chunk[0, 2]) < SOUND + puppet.VOICES, "a sound is a sound"


@pytest.mark.parametrize("window", [1, 3])
def test_a_chunk_leaves_in_the_tick_of_the_pyramid(net: Elastic, window: int) -> None:
    entered = []

    def chunks() -> Iterator[torch.Tensor]:
        for n in range(5):
            entered.append(n)
            yield given(0, 0)[None]

    stream = streamer(net, window, 1)(chunks(), lambda tick: None, generator("ticks"))
    left = [len(entered) for _ in stream]
    ticks = list(Pyramid(window=window).ticks(5))
    wanted = [min(number + 1, 5) for number, tick in enumerate(ticks) if any(one.after == 0 for one in tick)]
    assert left == wanted


def test_a_chunk_reads_the_anchor_and_earlier_chunks_alone(net: Elastic) -> None:
    ids = played(1, 1, range(CHUNKS), [0] * CHUNKS)[None]
    masked = torch.zeros_like(ids, dtype=torch.bool)
    masked[:, 2] = OPEN

    def logits(ids: torch.Tensor, face: int) -> torch.Tensor:
        with torch.no_grad():
            found = net(rows(ids, masked, anchor_of(face)[None])).scored[Kind.CODE].logits
        assert found is not None
        return found

    later, earlier = ids.clone(), ids.clone()
    later[0, 3:, 3:], earlier[0, :2, 3:] = 0, 0
    assert torch.equal(logits(later, 1), logits(ids, 1))
    assert not torch.equal(logits(earlier, 1), logits(ids, 1)) and not torch.equal(logits(ids, 2), logits(ids, 1))


def test_training_rows_follow_both_streams() -> None:
    batch = Streams(seed=0)(0)
    assert batch.ids.shape[1] == CHUNKS * TOKENS and Streams(seed=0)(1).ids.shape[1] == CHUNKS * TOKENS + puppet.SQUARES
    assert torch.equal(batch.ids, Streams(seed=0)(0).ids) and not torch.equal(batch.ids, Streams(seed=1)(0).ids)
    assert talker(own_levels=False).objective.corruption.clean == 1.0


def test_the_tokenizer_of_faces_is_exact() -> None:
    every = list(puppet.looks())
    codes = torch.stack([puppet.codes_of(look) for look in every])
    assert puppet.read(codes) == every and len(every) == puppet.FACES * puppet.PLACES * puppet.MOUTHS * 3
    some = Look(face=5, place=2, mouth=3, eyes=-1)
    assert np.array_equal(np.asarray(puppet.picture(puppet.codes_of(some))), np.asarray(puppet.frame(some)))


def test_a_face_stops_at_the_edge_and_speaks_with_its_own_voice() -> None:
    seen = list(puppet.follow(1, 1, [0, 3, 8], [1, 1, -1]))
    assert [one.look.place for one in seen] == [2, 2, 1] and [one.look.eyes for one in seen] == [1, 1, -1]
    assert [one.sound for one in seen] == [0, 3 + puppet.SOUNDS, 8 + puppet.SOUNDS] and seen[0].look.mouth == 0
    assert [puppet.syllable(letter) for letter in "aA h!"] == [1, 1, 0, 8, 0]
    assert not puppet.tone(0).any() and 0 < np.abs(puppet.tone(4)).max() <= 1
