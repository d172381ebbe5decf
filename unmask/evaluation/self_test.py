"""Does the embedded model compute here what it computed where it was released?

Public idea: ``compared(figures_of(unmask.load("mini")), shipped()) -> list[Comparison]``, one for each of a few tasks.

On a machine of the same class (``Machine``) every bit of every result must be equal. Another CPU, another version of torch, another number
of threads, a GPU or another data type chooses other kernels, which round differently. Probabilities then differ in their last digits, and
where two tokens are almost equally probable another one is drawn, from which on the two results go their own ways. So numbers are then
compared within a tolerance, and texts, which ``mini`` is sure of in these tasks, must still be equal.

``python -m tests.evaluation.test_self_test`` writes ``assets/self_test.json``.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from unmask.data.world.render import render
from unmask.data.world.scenes import sample
from unmask.evaluation.history import cpu
from unmask.json_types import Json
from unmask.pipeline.model import Model
from unmask.protocols import Task
from unmask.sequence import Kind, collate
from unmask.tasks import generate, understand
from unmask.tasks.parts import Parts

FIGURES = Path(__file__).parent / "assets" / "self_test.json"
PROMPT, QUESTION = "a red apple left of a cat", "what is this?"
_PIXELS, _SHARE, _PROBABILITY = 8.0, 0.02, 1e-4  # tolerances: levels of 255, of a picture's side, of a probability


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What results may depend on beside the request: machines that are equal in all of this must give equal bits."""

    system: str
    processor: str
    instructions: str
    torch: str
    threads: int
    device: str
    dtype: str

    @staticmethod
    def of(model: Model) -> Machine:
        """This machine, as the model uses it."""
        return Machine(
            system=f"{platform.system()} {platform.machine()}",
            processor=cpu(),
            instructions=torch.backends.cpu.get_cpu_capability(),
            torch=torch.__version__,
            threads=torch.get_num_threads(),
            device=str(model.device),
            dtype=str(model.parts.net.embed.weight.dtype).removeprefix("torch."),
        )


@dataclass(frozen=True, kw_only=True)
class Figure:
    """The result of a task. ``digest``: of every bit · ``numbers``: what is compared within ``tolerance``, by the mean of the absolute
    differences · ``words``: text that must be equal.
    """

    digest: str
    numbers: tuple[float, ...] = ()
    tolerance: float = 0.0
    words: str = ""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """``exact``: whether every bit is equal · ``difference``: mean absolute difference of the numbers · ``ok``: as it must be here."""

    name: str
    exact: bool
    difference: float
    tolerance: float
    ok: bool

    def to_json(self) -> Json:
        return asdict(self)


def figures_of(model: Model) -> dict[str, Figure]:
    """What the model draws, answers, finds and predicts; about 1.3 s of a CPU with ``mini``. Loads all its parts."""
    image = Image.fromarray(render(sample("grid", "test", 0, 0), 128))
    (edited,) = model.edit(image, "make the background sand", seed=3)
    found = model.ground(image, ["the cat"], seed=4)
    box = tuple(v / 128 for b in found.boxes for v in b.corners)
    asked = understand.Ask(pixels=model.parts.question_views(image), question=QUESTION)
    return {
        "input picture": Figure(digest=_digest(np.asarray(image).tobytes())),
        "probabilities of an answer": _probabilities(model, asked, Kind.TEXT),
        "probabilities of a drawing": _probabilities(model, generate.Generate(prompt=PROMPT), Kind.CODE),
        "drawing": _picture(model.generate(PROMPT, seed=1, plan=False)[0].image),
        "planned drawing": _picture(model.generate("two blue dogs", seed=2, plan=True)[0].image),
        "edit": _picture(edited.image),
        "box": Figure(digest=_digest(repr(box).encode()), numbers=box, tolerance=_SHARE),
        "answer": _text(model.ask(image, QUESTION, seed=5).text),
        "text with gaps": _text(model.infill_text("two [mask] apples and a [mask]", seed=6).text),
    }


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _picture(image: Image.Image) -> Figure:
    """Its pixels, and the mean colours of 8 x 8 fields."""
    small = np.asarray(image.convert("RGB").resize((8, 8), Image.Resampling.BOX))
    pixels = np.asarray(image.convert("RGB"))
    return Figure(digest=_digest(pixels.tobytes()), numbers=tuple(small.ravel().tolist()), tolerance=_PIXELS)


def _text(words: str) -> Figure:
    return Figure(digest=_digest(words.encode()), words=words)


@torch.no_grad()
def _probabilities(model: Model, task: Task[Parts, object], kind: int) -> Figure:
    """The four largest probabilities of the first eight masked tokens of a task, before the first step."""
    batch = collate([task.build(model.parts)], [0]).to(model.device)
    logits_NV = model.parts.net(batch).logits(kind)[:8].float()
    top = logits_NV.softmax(-1).topk(4).values.flatten().tolist()
    bits = logits_NV.cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return Figure(digest=_digest(bits), numbers=tuple(round(p, 7) for p in top), tolerance=_PROBABILITY)


def compared(found: dict[str, Figure], wanted: dict[str, Figure], *, exactly: bool) -> list[Comparison]:
    """``exactly``: the machines are of one class, so every bit must be equal. ValueError for other tasks than the shipped ones."""
    if found.keys() != wanted.keys():
        raise ValueError(f"{FIGURES.name} has {', '.join(wanted)}, and this version computes {', '.join(found)}")
    return [_comparison(name, found[name], wanted[name], exactly=exactly) for name in wanted]


def _comparison(name: str, found: Figure, wanted: Figure, *, exactly: bool) -> Comparison:
    exact, difference = found.digest == wanted.digest, _difference(found.numbers, wanted.numbers)
    near = difference <= wanted.tolerance and found.words == wanted.words
    # A result without numbers and words has nothing to be near in.
    ok = exact if exactly or not (wanted.numbers or wanted.words) else near
    return Comparison(name=name, exact=exact, difference=difference, tolerance=wanted.tolerance, ok=ok)


def _difference(found: Sequence[float], wanted: Sequence[float]) -> float:
    """The mean of the absolute differences; infinite for lists of two lengths."""
    if len(found) != len(wanted):
        return float("inf")
    return sum(abs(a - b) for a, b in zip(found, wanted, strict=True)) / max(1, len(wanted))


def shipped() -> tuple[Machine, dict[str, Figure]]:
    """The machine on which the figures of this release were computed, and the figures."""
    record = json.loads(FIGURES.read_text(encoding="utf-8"))
    figures = {}
    for name, found in record["figures"].items():
        figures[name] = replace(Figure(**found), numbers=tuple(found["numbers"]))
    return Machine(**record["machine"]), figures


def to_json(machine: Machine, figures: dict[str, Figure]) -> Json:
    """The content of ``FIGURES``."""
    return {"machine": asdict(machine), "figures": {name: asdict(figure) for name, figure in figures.items()}}
