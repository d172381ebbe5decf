"""A talk in a browser: the time of a chunk, the chunks that came late, and how soon the picture follows a change.

``python bench/talk.py runs/talker [--seconds 60] [--threads 1] [--history bench/history.jsonl]`` serves a model of ``x_streamer.talker``
in this process, opens its page in Chromium and types and moves all the time. The clock is that of the page, from the click to the
frame on its canvas.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import sys
import time
from pathlib import Path

import numpy as np
import torch
from playwright.sync_api import Page

import unmask
from unmask.evaluation.history import Line, append
from unmask.serving.server import Server, listen
from unmask.serving.talks import Talker, Talks

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.serving.browser import Visit, launched


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="folder of a model that unmask train x_streamer.talker has made")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--picture", type=Path, help="write a picture of the page to this file")
    parser.add_argument("--history", type=Path, help="add the figures to this file")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    lines = measured(given.model, given.seconds, given.picture)
    for line in lines:
        print(f"{line.name}: {line.value:.1f} {line.unit}", flush=True)
    if given.history:
        append(given.history, lines)


def measured(model: str, seconds: int, picture: Path | None) -> list[Line]:
    followed, rng, opened = list[float](), random.Random(0), unmask.load(model)
    if not isinstance(opened, Talker):
        sys.exit(f"{model} is not a model of talks; make one with unmask train x_streamer.talker")
    talks = Talks(opened, name="talker")
    with Server(talks, listen("127.0.0.1", 0)) as server, launched() as browser:
        page = Visit(context=browser.new_context(viewport={"width": 1100, "height": 720}), url=server.url).page(tab="")
        page.get_by_label("Face", exact=True).select_option("3")
        page.get_by_role("button", name="Start").click()
        until(page, "chunk", 8)  # the first ones warm the network
        end, changes = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            changes += 1
            if rng.random() < 0.5:
                page.get_by_role("button", name=rng.choice(("Left", "Right"))).click()
            else:
                page.get_by_label("Say").press_sequentially(rng.choice("abcdefgh"))
            until(page, "change", changes)
            followed.append(shown(page, "followed"))
            page.wait_for_timeout(rng.randrange(500))  # at any time within a chunk
        said = page.locator(".line").inner_text()
        late, chunks = shown(page, "late"), shown(page, "chunk")
        if picture:
            page.screenshot(path=picture)
    found = re.search(r"· (\d+) ms each, 95 % within (\d+) of", said)
    assert found, said
    more = {"chunks": chunks, "changes": len(followed), "load": round(os.getloadavg()[0], 1), "budget_ms": 250}
    values = {
        "talk.chunk.p50": float(found[1]),
        "talk.chunk.p95": float(found[2]),
        "talk.followed.p50": float(np.percentile(followed, 50)),
        "talk.followed.p95": float(np.percentile(followed, 95)),
    }
    lines = [Line(name=name, value=value, unit="ms", more=more) for name, value in values.items()]
    return [*lines, Line(name="talk.late", value=100 * late / max(1, chunks), unit="% of chunks", more=more)]


def shown(page: Page, name: str) -> float:
    return float(page.evaluate(f"document.body.dataset.{name} || 0"))


def until(page: Page, name: str, value: int) -> None:
    while shown(page, name) < value:
        page.wait_for_timeout(5)


if __name__ == "__main__":
    main()
