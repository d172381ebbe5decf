"""Rewards by the names that the command line takes. Public idea: ``rewards_of("judge,format=0.5") -> Weighted``.

| name | what it scores | weight unless ``=NUMBER`` follows |
|---|---|---|
| ``judge`` | a picture: does it show what the row's ``include`` and ``exclude`` say, as GenEval states it; of mini's world | 1 |
| ``answer`` | words: the row's ``answer`` | 2 |
| ``format`` | words: the row's ``format``, a regular expression; without one <think>…</think> before the answer | 0.5 |
| ``regex:PATTERN`` | words: the whole answer matches | 1 |
| ``clip:FOLDER`` | a picture: its similarity to the prompt by a CLIP model, 0..100 | 0.1 |
| ``FILE.py:FUNCTION`` | anything: a function of a ``posttraining.rewards.Sample`` | 1 |

The weights of ``answer``, ``format`` and ``clip`` are those of MMaDA (arXiv 2505.15809, section 4.2.1). A name ends at a comma; in a
pattern or a path write a comma as a backslash and a comma.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Callable
from collections.abc import Sequence as Items
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from unmask.data.geneval import prompt_of
from unmask.data.published import entry_of
from unmask.evaluation import scoring
from unmask.evaluation.encoders import Encoder, read_clip
from unmask.evaluation.judge import Seen, load_judge
from unmask.evaluation.public_geneval import shows
from unmask.posttraining.rewards import AnswerMatch, Format, Function, Pattern, Pictures, Reward, Sample, Weighted

NAMES = ("judge", "answer", "format", "regex:PATTERN", "clip:FOLDER", "FILE.py:FUNCTION")
_WEIGHTS = {"answer": 2.0, "format": 0.5, "clip": 0.1}


def rewards_of(words: str) -> Weighted:
    """The rewards of a list of names. ValueError for an unknown one, with the nearest."""
    named = [word.replace("\\,", ",").strip() for word in re.split(r"(?<!\\),", words)]
    parts = [_part(word) for word in named if word]
    if not parts:
        raise ValueError(f"there is no reward in {words!r}; choose from {', '.join(NAMES)}")
    if twice := {name for i, (name, *_) in enumerate(parts) if name in [n for n, *_ in parts[:i]]}:
        raise ValueError(f"the reward {sorted(twice)[0]} occurs twice; give each once, with a weight such as =0.5")
    return Weighted(parts=tuple(parts))


def _part(word: str) -> tuple[str, Reward, float]:
    name, weight = word, None
    if found := re.fullmatch(r"(.+)=(-?\d+(?:\.\d*)?|-?\.\d+)", word):
        name, weight = found[1], float(found[2])
    kind, _, rest = name.partition(":")
    known: dict[str, Reward] = {"judge": JUDGE, "answer": AnswerMatch(), "format": Format()}
    if kind == "regex" and rest:
        reward: Reward = Pattern(pattern=rest)
    elif kind == "clip" and rest:
        reward = Pictures(name="clip", score=partial(_similarity, rest))
    elif kind.endswith(".py") and rest:
        reward = Function(name=name, function=_function(Path(kind), rest))
    elif name in known:
        reward = known[name]
    else:
        near = difflib.get_close_matches(name, NAMES, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(NAMES)}"
        raise ValueError(f"no reward is called {name!r}; {hint}")
    own = name if kind not in ("clip", "regex") else kind
    return own, reward, _WEIGHTS.get(kind, 1.0) if weight is None else weight


def _function(path: Path, name: str) -> Callable[[Sample], float]:
    """A function of a user's file. ValueError where there is none."""
    spec = importlib.util.spec_from_file_location(path.stem, path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise ValueError(f"there is no file {path} with a reward; give FILE.py:FUNCTION")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(found := getattr(module, name, None)):
        raise ValueError(f"{path} has no function {name!r}; define it as def {name}(sample) -> float")
    return found


def judged(pictures: Items[np.ndarray], samples: Items[Sample]) -> list[float]:
    """The judge's verdicts: 1 for a picture that shows what its row wants and no other object, 0.5 where others are there too, else 0."""
    looks = load_judge().look(_of_one_size(pictures))
    return [_verdict(seen, sample) for seen, sample in zip(looks, samples, strict=True)]


def _verdict(seen: Seen, sample: Sample) -> float:
    if isinstance(want := sample.wanted.get("want"), scoring.Want):
        return 0.5 * scoring.verdict(seen, want) + 0.5 * scoring.strict(seen, want)
    if "include" not in sample.wanted:
        raise ValueError(
            f"the reward judge needs 'include' in every row, as GenEval has it, and {sample.prompt[:60]!r} has none; add it"
        )
    row = {"tag": "counting", "prompt": sample.prompt, **sample.wanted}
    prompt = prompt_of(0, entry_of(row, f"the row of {sample.prompt[:60]!r}"))
    few = len(seen.objects) == sum(entry.count for entry in prompt.include)
    right = shows(seen, prompt)
    return 0.5 * right + 0.5 * (right and few)


def _of_one_size(pictures: Items[np.ndarray]) -> Items[np.ndarray]:
    if len({picture.shape for picture in pictures}) > 1:
        raise ValueError("the judge wants pictures of one size; draw them without a size of their own")
    return pictures


JUDGE = Pictures(name="judge", score=judged)


def _similarity(folder: str, pictures: Items[np.ndarray], samples: Items[Sample]) -> list[float]:
    encoder = _clip(folder)
    a, b = encoder.images(pictures).astype(np.float64), encoder.texts([s.prompt for s in samples]).astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines: Any = (a * b).sum(1) / np.where(lengths > 0, lengths, 1)
    return (100 * cosines.clip(min=0)).tolist()


@lru_cache(maxsize=2)
def _clip(folder: str) -> Encoder:
    return read_clip(Path(folder))
