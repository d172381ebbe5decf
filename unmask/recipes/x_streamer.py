"""X-Streamer: a talking drawing, streamed in chunks of a quarter of a second, driven by a text and by a stream of moves.

    unmask train x_streamer.talker --out runs/talker
    unmask serve runs/talker --open                           type, and steer it with the arrow keys
    python -c "from unmask.recipes.x_streamer import talk; talk('runs/talker', 'hello there', '..>>..<<...', 'film')"    film.gif, film.wav
    unmask methods run x_streamer

A chunk has a syllable and a move, which are given, and a sound and nine picture codes, which are drawn (``data.world.puppet``). A tick
reads only the last chunks, so its cost is constant. What they do not show is lost, unless an anchor, a picture of the face, is in view.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from statistics import quantiles

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unmask.checkpoints.schema import read_json
from unmask.checkpoints.store import load_module, save_module
from unmask.checkpoints.stream import CheckpointError
from unmask.corruption.chunked import PerChunk
from unmask.data.world import puppet
from unmask.evaluation.demonstration import Demonstration, Findings, Media, Plot, Table, Work
from unmask.evaluation.metrics import Figure, over_seeds
from unmask.json_types import Json
from unmask.methods.x_streamer import Pyramid, Streamer
from unmask.models.elastic import Elastic, init
from unmask.models.sizes import text_config
from unmask.objectives.masked import Masked
from unmask.recipe import Optim, Recipe
from unmask.recipes.image_tokens import training
from unmask.recipes.talking_rows import CHUNKS, MASK, OPEN, SOUND, Streams, anchor_of, drive, given, played, rows
from unmask.rng import generator
from unmask.sequence import Kind
from unmask.writing import write_text

NAME = "x_streamer.talker"
_TEMPERATURE = 0.5

# -- the recipe --------------------------------------------------------------------------------------------------------


def talker(
    own_levels: bool = True, width: int = 64, layers: int = 2, steps: int = 1500, lr: float = 2e-3, seed: int = 0
) -> Recipe:
    """A network that plays a face. ``own_levels``: every chunk is masked at a time of its own; False: only the last chunk is masked, and
    the earlier ones are clean (teacher forcing).
    """

    def network() -> Elastic:
        net = _sized(width, layers)
        init(net, generator("x streamer", seed))
        return net

    return Recipe(
        name=NAME,
        model=network,
        source=Streams(seed=seed),
        objective=Masked(corruption=PerChunk(clean=0.0 if own_levels else 1.0)),
        optim=Optim(lr=lr, warmup=30, decay_from=0.3, floor=0.05, ema=0.98),
        training=training(steps, seed),
        export=_export,
        open=opened,
    )


def _sized(width: int, layers: int) -> Elastic:
    mlp = 8 * width // 3 // 8 * 8
    size = text_config(
        vocab_size=MASK + 1 + puppet.size(), width=width, heads=4, layers=layers, mlp=mlp, rope_theta=500.0
    )
    return Elastic(replace(size, codes=puppet.size(), first_code=MASK + 1), mask_id=MASK)


def _export(net: Elastic, folder: Path) -> None:
    save_module(net, folder)
    fields = {"recipe": NAME, "width": net.config.width, "layers": net.config.layers}
    write_text(folder / "config.json", json.dumps(fields, indent=1) + "\n")


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A quarter of a second: a picture, and a sound in -1..1 at ``puppet.RATE``."""

    picture: Image.Image
    sound: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Talker:
    """``stream(text, moves)`` yields chunks; each letter and move is asked for when its chunk enters. ``unmask serve`` streams it."""

    net: Elastic
    faces: int = puppet.FACES
    seconds: float = puppet.SECONDS  # of a chunk
    rate: int = puppet.RATE
    moves: str = "".join(puppet.MOVES)

    def stream(
        self,
        text: Iterable[str],
        moves: Iterable[str],
        *,
        face: int = 0,
        every: int = 16,
        held: int = CHUNKS - 1,
        seed: int = 0,
    ) -> Iterator[Chunk]:
        """``moves``: <, > or . for a letter each; the stream ends with the shorter of the two · ``face``: 0..7 · ``every``: chunks from one
        anchor to the next, which stays for ``held`` chunks: as long as a tick looks back, so that no older picture is left.

        ValueError for other moves and faces.
        """
        if not 0 <= face < puppet.FACES:
            raise ValueError(f"there is no face {face}; choose from 0 to {puppet.FACES - 1}")
        made = (given(puppet.syllable(letter), _move(sign))[None] for letter, sign in zip(text, moves, strict=False))
        rng, before = generator("x streamer", seed), played(face, 1, [0] * (CHUNKS - 1), [0] * (CHUNKS - 1))[None]
        anchor = anchor_of(face)[None]
        for ids in streamer(self.net)(made, lambda tick: anchor if tick % every < held else None, rng, before):
            yield Chunk(picture=puppet.picture(ids[0, 3:]), sound=puppet.tone(int(ids[0, 2]) - SOUND))


def _move(sign: str) -> int:
    if sign not in puppet.MOVES:
        raise ValueError(f"{sign!r} is not a move; use < for left, > for right and . for neither")
    return puppet.MOVES[sign]


def streamer(net: Elastic, window: int = 1, passes: int = 3, *, cached: bool = True) -> Streamer:
    """Ticks that read ``CHUNKS`` chunks."""
    return Streamer(
        net=net,
        rows=rows,
        open=OPEN,
        past=CHUNKS - window,
        pyramid=Pyramid(window=window),
        passes=passes,
        temperature=_TEMPERATURE,
        cached=cached,
        only={Kind.TEXT: range(SOUND, MASK)},
    )


def opened(folder: Path, device: str = "cpu") -> Talker:
    """The model of a folder of ``talker``. CheckpointError for a file that is missing or does not fit."""
    raw = read_json(folder / "config.json")
    try:
        net = _sized(int(raw["width"]), int(raw["layers"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'} does not describe a talker: {error}") from error
    return Talker(net=load_module(net, folder).to(device).eval())


def talk(model: str, text: str, moves: str, out: str, *, face: int = 0, seed: int = 0) -> None:
    """Write ``out``.gif and ``out``.wav."""
    chunks = list(opened(Path(model)).stream(text, moves, face=face, seed=seed))
    if not chunks:
        raise ValueError("the stream is empty; give a text and a move for each letter")
    puppet.save_film([chunk.picture for chunk in chunks], Path(f"{out}.gif"))
    puppet.save_sound([chunk.sound for chunk in chunks], Path(f"{out}.wav"))


# -- the demonstration -------------------------------------------------------------------------------------------------

_STEPS, _SECONDS, _STREAMS, _LIVE = 1000, 60, 8, 80  # updates, of a stream, streams of a seed, chunks that are timed
BUDGET = 1000 * puppet.SECONDS  # ms of a chunk
_LAST = int(10 / puppet.SECONDS)  # chunks of the last ten seconds
PARTS = ("face", "place", "mouth", "sound")
_EVERY, _HELD = 16, CHUNKS - 1  # chunks from one anchor to the next, and those for which it stays
ARMS = {  # own levels, chunks between anchors and with one, window, passes
    "own levels, anchor never": (True, 0, 0, 1, 3),
    "own levels, anchor every 4 s for one chunk": (True, _EVERY, 1, 1, 3),
    "own levels, anchor every 4 s for a second": (True, _EVERY, _HELD, 1, 3),
    "own levels, anchor always": (True, 1, 1, 1, 3),
    "clean past, anchor never": (False, 0, 0, 1, 3),
    "own levels, anchor every 4 s for a second, window of 3": (True, _EVERY, _HELD, 3, 1),
}


def demo(work: Work) -> Findings:
    """Every arm of every seed, and the time of a chunk."""
    found: dict[str, list[Json]] = {name: [] for name in ARMS}
    timed = []
    for n, seed in enumerate(work.seeds):
        for k, name in enumerate(ARMS):
            key = f"{name.replace(', ', ',').replace(' ', '_')}/{seed}"
            found[name].append(work.once(key, partial(_measured, work, name, seed)))
            work.on_progress("streams", n * len(ARMS) + k + 1, len(ARMS) * len(work.seeds))
        timed.append(work.once(f"latency/{seed}", partial(_timed, work, seed)))
    return _findings(found, timed, work)


def _net(work: Work, own_levels: bool, seed: int) -> Elastic:
    name = "own" if own_levels else "forced"
    net = work.train(f"{name}/{seed}", talker(own_levels, steps=work.steps(_STEPS, least=2), seed=seed))
    assert isinstance(net, Elastic)
    return net


def _measured(work: Work, name: str, seed: int) -> Json:
    """The shares of streams whose face, place, mouth and sound are right, for every chunk."""
    own_levels, every, held, window, passes = ARMS[name]
    net, chunks = _net(work, own_levels, seed), work.steps(int(_SECONDS / puppet.SECONDS), least=6)
    rng, count = Random(f"x streamer test {seed}"), work.steps(_STREAMS, least=2)
    faces = [rng.randrange(puppet.FACES) for _ in range(count)]
    truth = torch.stack([played(face, 1, *drive(rng, CHUNKS - 1 + chunks)) for face in faces])
    before, wanted = truth[:, : CHUNKS - 1], truth[:, CHUNKS - 1 :]
    anchor, noise = torch.stack([anchor_of(face) for face in faces]), generator("x streamer test", seed)
    done = streamer(net, window, passes)(
        wanted.unbind(1), lambda tick: anchor if every and tick % every < held else None, noise, before
    )
    found = torch.stack(list(done), 1)
    return {part: share for part, share in zip(PARTS, _right(found, wanted), strict=True)}


def _right(found: Tensor, wanted: Tensor) -> list[list[float]]:
    """By ``PARTS``, the share of streams that are right in each chunk."""
    looks = [puppet.read(ids[..., 3:].flatten(0, 1)) for ids in (found, wanted)]
    same = [[getattr(a, part) == getattr(b, part) for a, b in zip(*looks, strict=True)] for part in PARTS[:3]]
    parts = torch.tensor(same).view(3, *found.shape[:2]).float().mean(1)
    return [*parts.tolist(), (found[..., 2] == wanted[..., 2]).float().mean(0).tolist()]


def _timed(work: Work, seed: int) -> Json:
    """Milliseconds of the chunks of one stream with pictures and waves: by the clock, of the CPU, and where nothing is cached."""
    net, chunks = _net(work, True, seed), work.steps(_LIVE, least=4)
    said, moves = drive(Random(f"x streamer time {seed}"), chunks)
    found: Json = {}
    for name, cached in (("cached", True), ("recomputed", False)):
        made = (given(s, m)[None] for s, m in zip(said, moves, strict=True))
        stream = streamer(net, cached=cached)(made, lambda tick: None, generator("x streamer time", seed))
        clock, own = [], []
        for _ in range(chunks):
            begun, worked = time.perf_counter(), time.thread_time()
            ids = next(stream)
            puppet.picture(ids[0, 3:])
            puppet.tone(int(ids[0, 2]) - SOUND)
            clock.append(1000 * (time.perf_counter() - begun))
            own.append(1000 * (time.thread_time() - worked))
        found[name] = {"clock": _middle_and_high(clock), "cpu": _middle_and_high(own)}
    return found


def _middle_and_high(values: list[float]) -> list[float]:
    """The 50th and the 95th percentile."""
    cut = quantiles(values, n=20, method="inclusive")
    return [cut[9], cut[18]]


def _last(part: str, one: Json) -> float:
    """The share that is right in the last ten seconds."""
    own = one[part][-_LAST:]
    return float(sum(own) / len(own))


def _findings(found: dict[str, list[Json]], timed: list[Json], work: Work) -> Findings:
    from unmask.evaluation.demonstration_page import said

    def gain(a: str, b: str, part: str) -> Figure:
        return over_seeds([_last(part, x) - _last(part, y) for x, y in zip(found[a], found[b], strict=True)])

    def spent(name: str, kind: str, which: int) -> Figure:
        return over_seeds([one[name][kind][which] for one in timed], unit="ms")

    never, short, every, always, forced, pyramid = ARMS
    anchored, times = gain(every, never, "face"), gain(never, forced, "face")
    figures = {
        "anchor_minus_none.face": anchored,
        "short_anchor_minus_none.face": gain(short, never, "face"),
        "anchor_always_minus_none.face": gain(always, never, "face"),
        "own_levels_minus_clean_past.face": times,
        "own_levels_minus_clean_past.place": gain(never, forced, "place"),
        "window_minus_alone.place": gain(pyramid, every, "place"),
        **{f"chunk.{kind}.p{p}": spent("cached", kind, i) for kind in ("clock", "cpu") for i, p in ((0, 50), (1, 95))},
    }
    slow = figures["chunk.cpu.p95"]
    return Findings(
        about=f"A face with one of {puppet.FACES} looks talks for {_SECONDS} s in chunks of {BUDGET:.0f} ms, each of one sound and nine "
        f"picture codes, after a text and a stream of moves; a tick reads {CHUNKS} chunks in three passes. {len(work.seeds)} seeds of "
        f"{work.steps(_STREAMS, least=2)} streams, {work.steps(_STEPS, least=2)} updates of every network. Drift: what is right in the "
        "last ten seconds. Own level: each chunk is masked at a time of its own; clean past: teacher forcing. With a window, three chunks "
        "are open at once and a tick is one pass.",
        verdict=f"An anchor of a second every 4 s keeps the face in {said(anchored)} more of the streams after a minute; own levels "
        f"change it by {said(times)} without an anchor. A chunk takes {said(figures['chunk.cpu.p50'])} ms of the CPU at the median and "
        f"{said(slow)} at the 95th percentile, of {BUDGET:.0f}; by the clock {said(figures['chunk.clock.p50'])} and "
        f"{said(figures['chunk.clock.p95'])}.",
        seen=anchored["low"] is not None and anchored["low"] > 0 and slow["high"] is not None and slow["high"] < BUDGET,
        figures=figures,
        shown=(
            Table(
                title="Right in the last ten seconds of a minute",
                head=("trained with, anchor", *PARTS),
                rows=tuple(
                    (name, *(over_seeds([_last(part, one) for one in runs]) for part in PARTS))
                    for name, runs in found.items()
                ),
                note="Chance: face .125, place .33, mouth .25.",
            ),
            *(
                Plot(title=f"Right {part} over a minute", across="seconds", up="share", lines=_curves(found, part))
                for part in ("face", "place")
            ),
            Table(
                title=f"Milliseconds a chunk, one stream, budget {BUDGET:.0f}",
                head=("keys and values", "CPU, median", "CPU, 95 %", "clock, median", "clock, 95 %"),
                rows=tuple(
                    (name, *(spent(name, kind, i) for kind in ("cpu", "clock") for i in (0, 1)))
                    for name in ("cached", "recomputed")
                ),
                note="One thread. Both give the same chunks to the bit.",
            ),
            Media(
                title="Ten seconds", items=_filmed(work), note="Own levels, anchor every 4 s for a second, first seed."
            ),
        ),
    )


def _curves(found: dict[str, list[Json]], part: str) -> dict[str, list[tuple[float, float]]]:
    """Means of stretches of five seconds."""
    lines, step = {}, int(5 / puppet.SECONDS)
    for name, runs in found.items():
        each = torch.tensor([one[part] for one in runs]).mean(0)
        lines[name] = [
            (puppet.SECONDS * (i + len(some)), float(some.mean()))
            for i, some in zip(range(0, len(each), step), each.split(step), strict=True)
        ]
    return lines


def _filmed(work: Work) -> tuple[tuple[str, Path], ...]:
    text = "hello there I am a drawing that talks"
    chunks = list(Talker(net=_net(work, True, work.seeds[0])).stream(text, "..>>..<<<..>" * 4, face=3))
    film, sound = work.out / "film.gif", work.out / "film.wav"
    puppet.save_film([chunk.picture.resize((192, 192), Image.Resampling.NEAREST) for chunk in chunks], film)
    puppet.save_sound([chunk.sound for chunk in chunks], sound)
    return (text, film), ("its sound", sound)


DEMO = Demonstration(minutes=5, run=demo)
