"""What a newcomer types: 20 prompts at three seeds, plain, from a plan, and from a plan with further attempts.

    python bench/first_picture.py

Right is a picture with the requested objects, colours, relation and background and no other object, as the independent judge sees it.
Every figure is appended to bench/history.jsonl, with its 95 % interval and the CPU seconds a picture on one thread, which other processes
on the machine hardly change.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import unmask
from unmask.evaluation.history import Line, append
from unmask.evaluation.judge import Seen, load_judge
from unmask.evaluation.scoring import (
    Related,
    Want,
    Wanted,
    color_attr,
    colors,
    counting,
    interval,
    position,
    single,
    two,
)
from unmask.evaluation.scoring import strict as right
from unmask.pipeline.model import Model
from unmask.tasks.results import Drawing

HISTORY = Path(__file__).with_name("history.jsonl")
_APPLES, _CAT = Wanted(name="apple", count=2, colour="red", exact=True), Wanted(name="cat")
_GREEN, _RED = Wanted(name="apple", colour="green"), Wanted(name="apple", colour="red")
PROMPTS: dict[str, tuple[Want, str]] = {
    "a red apple": (colors("apple", "red"), ""),
    "two red apples left of a cat": (
        Want(items=(_APPLES, _CAT), related=Related(first=_APPLES, relation="left of", second=_CAT)),
        "",
    ),
    "a dog and a cat": (two("dog", "cat"), ""),
    "a dog left of a cat": (position(Wanted(name="dog"), "left of", _CAT), ""),
    "three dogs": (counting("dog", 3), ""),
    "a blue car": (colors("car", "blue"), ""),
    "a red car and a blue bus": (color_attr("car", "red", "bus", "blue"), ""),
    "a banana on a white background": (single("banana"), "white"),
    "a cat above a dog": (position(_CAT, "above", Wanted(name="dog")), ""),
    "a horse on a sand background": (single("horse"), "sand"),
    "two cats": (counting("cat", 2), ""),
    "a green apple and a red apple": (Want(items=(_GREEN, _RED)), ""),
    "a pink umbrella": (colors("umbrella", "pink"), ""),
    "an elephant right of a bird": (position(Wanted(name="elephant"), "right of", Wanted(name="bird")), ""),
    "four carrots": (counting("carrot", 4), ""),
    "a cup and a book": (two("cup", "book"), ""),
    "a bear below a clock": (position(Wanted(name="bear"), "below", Wanted(name="clock")), ""),
    "a photo of a pizza": (single("pizza"), ""),
    "two blue birds and a red car": (
        Want(items=(Wanted(name="bird", count=2, colour="blue", exact=True), Wanted(name="car", colour="red"))),
        "",
    ),
    "a purple chair left of a yellow cup": (
        position(Wanted(name="chair", colour="purple"), "left of", Wanted(name="cup", colour="yellow")),
        "",
    ),
}  # what must be in the picture, and its background ("" for any)


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to draw: from a plan or not, in at most ``attempts`` attempts."""

    name: str
    plan: bool
    attempts: int = 1

    def draw(self, model: Model, prompt: str, seed: int) -> Drawing:
        return model.generate(prompt, seed=seed, plan=self.plan, attempts=self.attempts)[0]


WAYS = (
    Way(name="plain", plan=False),
    Way(name="plan", plan=True),
    Way(name="attempts2", plan=True, attempts=2),
    Way(name="attempts4", plan=True, attempts=4),
)


def measured(model: Model, way: Way, seeds: range) -> list[Line]:
    """Share of right pictures, prompts that are right at every seed, and CPU seconds a picture."""
    seconds, verdicts, tried = [], [], []
    for prompt in PROMPTS:
        found = []
        for seed in seeds:
            began = time.process_time()
            drawn = way.draw(model, prompt, seed)
            seconds.append(time.process_time() - began)
            tried.append(max(1, len(drawn.attempts)))
            found.append(_right(load_judge().look([np.asarray(drawn.image)])[0], prompt))
        verdicts.append(found)
        print(f"{way.name:10} {prompt:40} {sum(found)} of {len(found)}", flush=True)
    hits, count = sum(map(sum, verdicts)), len(seconds)
    low, high = interval(hits, count)
    every = sum(map(all, verdicts))
    more = {"low": low, "high": high, "n": count, "prompts_right_at_every_seed": every, "prompts": len(verdicts)}
    name = f"first_picture.{way.name}"
    beside = {"mean": statistics.fmean(seconds), "most": max(seconds), "attempts": statistics.fmean(tried)}
    print(f"{name} {hits} of {count}, {every} prompts at every seed, {beside}", flush=True)
    return [
        Line(name=name, value=hits / count, unit="share", more=more),
        Line(name=f"{name}.seconds", value=statistics.median(seconds), unit="s", more=beside),
    ]


def _right(seen: Seen, prompt: str) -> bool:
    want, background = PROMPTS[prompt]
    return right(seen, want) and background in ("", seen.background)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, … of every prompt")
    parser.add_argument("--history", type=Path, default=HISTORY, help="file to append to")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = unmask.load("mini")
    assert isinstance(model, Model)
    model.generate("a dog", plan=True, attempts=2)  # the first call loads and warms up
    for way in WAYS:
        append(given.history, measured(model, way, range(given.seeds)))


if __name__ == "__main__":
    main()
