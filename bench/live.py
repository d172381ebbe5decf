"""How soon a drawing follows a change: seconds from the PATCH to the first frame that shows it, and to the last one.

``python bench/live.py [--drawings 20] [--history bench/history.jsonl]`` serves ``mini`` in this process, one drawing at a time, and
changes each once: its prompt, a box, or a painted region, at a step that differs from drawing to drawing. The client is an ordinary one
over HTTP. ``--judged`` also has the judge say how many pictures show the new prompt, by the share ``least`` of its rule.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from PIL import Image, ImageDraw

import unmask
from unmask.evaluation.history import Line, append
from unmask.evaluation.judge import load_judge
from unmask.evaluation.metrics import share
from unmask.serving.server import Server, listen
from unmask.serving.service import Service
from unmask.tasks.live import Live
from unmask.tasks.running import StepEvent

COLOURS, OBJECTS = ("red", "blue", "green", "yellow"), ("apple", "cup", "ball", "car", "book")
KINDS = ("prompt", "boxes", "mask")
NAMES = ("first", "last", "first.cpu", "last.cpu")
PATH = "/v1/images/generations"
LEASTS = (0.0, 0.5, 0.9, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--drawings", type=int, default=20, help="of each kind of change")
    parser.add_argument("--judged", type=int, default=0, help="prompts that the judge sees, for each share")
    parser.add_argument("--history", type=Path, help="add the figures to this file")
    given = parser.parse_args()
    model = unmask.load("mini")
    for measure, number in ((timed, given.drawings), (judged, given.judged)):
        for line in measure(model, number) if number else ():
            print(f"{line.name}: {line.value:.3f} {line.unit} {json.dumps(line.more)}", flush=True)
            if given.history:
                append(given.history, [line])


def timed(model: Any, drawings: int) -> Iterator[Line]:
    with Server(Service(model, name="mini"), listen("127.0.0.1", 0)) as server:
        client = httpx2.Client(base_url=server.url, timeout=300)
        for kind in KINDS:
            once(client, kind, 0)  # warm
            found = [once(client, kind, seed) for seed in range(drawings)]
            more = {"n": drawings, "load": round(os.getloadavg()[0], 1)}
            for name, values in zip(NAMES, zip(*found, strict=True), strict=True):
                for share, value in zip((50, 95), np.percentile(values, [50, 95]), strict=True):
                    unit = "CPU s" if name.endswith("cpu") else "s"
                    yield Line(name=f"live.{kind}.{name}.p{share}", value=float(value), unit=unit, more=more)


def once(client: httpx2.Client, kind: str, seed: int) -> tuple[float, float, float, float]:
    """Seconds from the change to the first frame that shows it and to the last frame, and the CPU seconds of both."""
    body = {"prompt": "a red apple", "plan": False, "seed": seed, "stream": True, "trace": True, "live": 0}
    with client.stream("POST", PATH, json=body) as answer:
        sent = first = last = (0.0, 0.0)
        for line in answer.iter_lines():
            event = json.loads(line[6:]) if line.startswith("data: {") else {}
            if event.get("type") != "unmask.frame":
                continue
            last = now()
            if event.get("patch") and not first[0]:
                first = last
            if not sent[0] and event["step"] == 3 + seed % 9:
                sent = now()
                client.patch(f"{PATH}/{answer.headers['x-unmask-run']}", json=change(kind)).raise_for_status()
    return first[0] - sent[0], last[0] - sent[0], first[1] - sent[1], last[1] - sent[1]


def now() -> tuple[float, float]:
    """Wall time, and CPU time of this process: server, model and client, which other processes hardly change."""
    return time.perf_counter(), time.process_time()


def change(kind: str) -> dict[str, Any]:
    if kind == "prompt":
        return {"prompt": "a blue car"}
    if kind == "boxes":
        return {"boxes": [{"phrase": "red apple", "box": [0.0, 0.0, 0.5, 0.5]}]}
    canvas = Image.new("RGB", (128, 128))
    ImageDraw.Draw(canvas).ellipse((20, 20, 70, 70), fill="white")
    file = io.BytesIO()
    canvas.save(file, "PNG")
    return {"mask": f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"}


def judged(model: Any, prompts: int) -> Iterator[Line]:
    """Pictures that show the new prompt, which comes after step 10 of 16. "anew": all is masked again; "never": the new prompt from the
    beginning.
    """
    judge, rng = load_judge(), random.Random(0)
    cases = [pair(rng, i) for i in range(prompts)]
    for least in (*LEASTS, "anew", "never"):
        right, kept = list[bool](), 0.0
        for seed, (old, new) in enumerate(cases):
            drawn, stays = changed(model, old, new, seed, least)
            seen = judge.look([np.asarray(drawn.convert("RGB"))])[0].objects
            right.append(len(seen) == 1 and (seen[0].colour, seen[0].name) == new)
            kept += stays
        figure = share(right, kept=round(kept / prompts, 3))
        more = {name: value for name, value in figure.items() if name != "value"}
        yield Line(name=f"live.judged.{least}", value=figure["value"], unit="share", more=more)


def pair(rng: random.Random, number: int) -> tuple[tuple[str, str], tuple[str, str]]:
    """Two prompts of one object each, of another colour or of another kind."""
    colour, name = rng.choice(COLOURS), rng.choice(OBJECTS)
    if number % 2:
        return (colour, name), (colour, rng.choice([other for other in OBJECTS if other != name]))
    return (colour, name), (rng.choice([other for other in COLOURS if other != colour]), name)


def changed(
    model: Any, old: tuple[str, str], new: tuple[str, str], seed: int, least: float | str
) -> tuple[Image.Image, float]:
    """The picture, and the share of its unmasked codes that the change left."""
    counts: dict[int, int] = {}  # masked codes at the last step before the change, and at the first one after it

    def follow(event: StepEvent) -> None:
        if not event.patch:
            counts[0] = masked(event)
        counts.setdefault(event.patch, masked(event))
        if event.number == 10 and not live.count:
            region = Image.new("L", (8, 8), 255) if least == "anew" else None
            live.change(prompt=f"a {new[0]} {new[1]}", region=region)

    if least == "never":
        return model.generate(f"a {new[0]} {new[1]}", seed=seed, plan=False, attempts=1)[0].image, 1.0
    live = Live(on_step=follow, least=least if isinstance(least, float) else 0.5)
    drawn = model.generate(f"a {old[0]} {old[1]}", seed=seed, plan=False, live=live)[0]
    return drawn.image, (64 - counts[1]) / (64 - counts[0])


def masked(event: StepEvent) -> int:
    return int(event.sequence.masked.sum())


if __name__ == "__main__":
    main()
