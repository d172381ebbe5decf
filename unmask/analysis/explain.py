"""What the words of a prompt tell a model about a picture, as maps over its codes.

Public ideas: ``explain(model, picture, prompt, ("red", "apple")) -> Explanation`` splits what two words tell; ``contributions(model,
picture, prompt) -> Contributions`` has a map for each word. Both have ``sheet()`` for people.

The other words stay: the information of a word is that of the prompt with it over the prompt without both, or without it. All prompts see
the same masks, so most of the sampling noise cancels. ``information.py`` has the estimator and the decomposition.

Shapes: R masks · h, w rows and columns of codes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from unmask.analysis.information import Decomposition, Patterns, decompose, information, sampled_patterns
from unmask.json_types import Json
from unmask.objectives.likelihood import token_log_probabilities
from unmask.rng import generator
from unmask.sequence import Sequence as Tokens
from unmask.sequence import collate
from unmask.tasks.generate import Generate, picture_places
from unmask.tasks.infill import Infill

if TYPE_CHECKING:
    from unmask.pipeline.model import Model
    from unmask.tasks.parts import Parts

OnProgress = Callable[[int, int], None]
_SIDE, _ROWS = 224, 8
_FUNCTION_WORDS = frozenset(
    "a an and at by for from in is are it its no not of on or that the there this to with".split()
)
_UP, _DOWN = (200, 40, 40), (40, 90, 200)  # more probable with the words, less probable


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """``maps``: nats per code, each part [h, w] · ``errors``: standard errors of the sums, by the names of ``totals`` · ``picture``: as the
    image tokenizer sees it.
    """

    prompt: str
    words: tuple[str, str]
    picture: Image.Image
    maps: Decomposition
    errors: dict[str, float]

    @property
    def parts(self) -> dict[str, Tensor]:
        """The maps by name."""
        first, second = self.words
        both = {"both words": self.maps.total, "redundant": self.maps.redundant}
        return both | {
            f"only {first}": self.maps.unique[0],
            f"only {second}": self.maps.unique[1],
            "synergy": self.maps.synergy,
        }

    @property
    def totals(self) -> dict[str, float]:
        """The sum of each map, in nats."""
        return {name: float(part.sum()) for name, part in self.parts.items()}

    def to_json(self) -> Json:
        about: Json = {"prompt": self.prompt, "words": list(self.words), "unit": "nats"}
        return {**about, "totals": self.totals, "standard_errors": self.errors, "maps": _rounded(self.parts)}

    def sheet(self) -> Image.Image:
        """The picture and its maps in one image: red where the words make the picture more probable, blue where less."""
        return _sheet(self.picture, self.parts)


@dataclass(frozen=True, kw_only=True)
class Contributions:
    """``maps``: word -> nats per code [h, w] that it adds to the other words of the prompt · ``errors``: standard errors of their sums."""

    prompt: str
    picture: Image.Image
    maps: dict[str, Tensor]
    errors: dict[str, float]

    @property
    def totals(self) -> dict[str, float]:
        """The sum of each map, in nats."""
        return {name: float(part.sum()) for name, part in self.maps.items()}

    def to_json(self) -> Json:
        about: Json = {"prompt": self.prompt, "words": list(self.maps), "unit": "nats"}
        return {**about, "totals": self.totals, "standard_errors": self.errors, "maps": _rounded(self.maps)}

    def sheet(self) -> Image.Image:
        """The picture and a map for each word: red where the word makes the picture more probable, blue where less."""
        return _sheet(self.picture, self.maps)


def explain(
    model: Model,
    picture: Image.Image,
    prompt: str,
    words: tuple[str, str],
    *,
    masks: int = 64,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Explanation:
    """The information of two words of ``prompt`` about ``picture``.

    ``masks``: forwards of each prompt; the error falls with its root. ValueError for words that the prompt does not have, that overlap, or
    that are all it has.
    """
    codes, patterns, found = _under_prompts(model, picture, without(prompt, words), masks, seed, on_progress)
    null, first, second, both = found
    i1, i2, i12 = (information(p, null, patterns).view(codes.shape) for p in (first, second, both))
    maps = decompose(i1, i2, i12)
    errors = {"both words": _error(both, null, patterns)}
    errors |= {word: _error(p, null, patterns) for word, p in zip(words, (first, second), strict=True)}
    seen = model.parts.decode(codes[None])[0]
    return Explanation(prompt=prompt, words=words, picture=seen, maps=maps, errors=errors)


def contributions(
    model: Model,
    picture: Image.Image,
    prompt: str,
    words: Sequence[str] = (),
    *,
    masks: int = 64,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Contributions:
    """What each word adds to the others: the information of ``prompt`` over the prompt without that word.

    ``words``: of the prompt; by default all but articles, prepositions and the like. ValueError for words that the prompt does not have, or
    that are all it has.
    """
    chosen = tuple(words) or content_words(prompt)
    shorter = [_removed(prompt, word) for word in chosen]
    codes, patterns, found = _under_prompts(model, picture, (*shorter, prompt), masks, seed, on_progress)
    *less, whole = found
    pairs = list(zip(chosen, less, strict=True))
    return Contributions(
        prompt=prompt,
        picture=model.parts.decode(codes[None])[0],
        maps={word: information(whole, one, patterns).view(codes.shape) for word, one in pairs},
        errors={word: _error(whole, one, patterns) for word, one in pairs},
    )


def content_words(prompt: str) -> tuple[str, ...]:
    """The different words of a prompt but for articles, prepositions and the like. ValueError where there are fewer than two words."""
    words = tuple(dict.fromkeys(re.findall(r"\w[\w'-]*", prompt)))
    if len(words) < 2:
        raise ValueError(f"the prompt {prompt!r} has fewer than two words, so none adds to another; write at least two")
    return tuple(word for word in words if word.lower() not in _FUNCTION_WORDS) or words


def _removed(prompt: str, word: str) -> str:
    """The prompt without every occurrence of a word."""
    places = [m.span() for m in _occurrences(prompt, word)]
    if not places:
        raise ValueError(f"the prompt {prompt!r} has no word {word!r}; name words or phrases of it")
    if not (rest := _cut(prompt, places)):
        raise ValueError(f"the prompt {prompt!r} has no other word than {word!r}; write at least one more")
    return rest


def _occurrences(prompt: str, word: str) -> list[re.Match[str]]:
    word = word.strip()
    return list(re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", prompt, re.IGNORECASE)) if word else []


def _under_prompts(
    model: Model,
    picture: Image.Image,
    prompts: Sequence[str],
    masks: int,
    seed: int,
    on_progress: OnProgress | None,
) -> tuple[Tensor, Patterns, list[Tensor]]:
    """The picture's codes, the masks, and ln p of the codes under each prompt."""
    parts = model.parts
    parts.require(Infill.needs)  # those of drawing, and the encoder of pictures
    codes = parts.encode(parts.preprocess(picture)[0].to(model.device))
    patterns = sampled_patterns(codes.numel(), masks, generator("explain", seed))
    found: list[Tensor] = []
    for number, one in enumerate(prompts):
        done = None if on_progress is None else _later(on_progress, number * masks, len(prompts) * masks)
        found.append(_log_p(parts, one, codes, patterns, model.device, done))
    return codes, patterns, found


def without(prompt: str, words: tuple[str, str]) -> tuple[str, str, str, str]:
    """The prompt without both words, with the first alone, with the second alone, and whole. ValueError as of ``explain``."""
    places = []
    for word in words:
        found = _occurrences(prompt, word)
        if not found:
            raise ValueError(f"the prompt {prompt!r} has no word {word!r}; name two words or phrases of it")
        places.append(found[0].span())
    (a, b), (c, d) = places
    if a < d and c < b:
        raise ValueError(f"{words[0]!r} and {words[1]!r} overlap in the prompt; name two different words")
    null, only_first, only_second = _cut(prompt, places), _cut(prompt, places[1:]), _cut(prompt, places[:1])
    if not null:
        raise ValueError(f"the prompt {prompt!r} has no other word; write at least one more")
    return null, only_first, only_second, prompt


def _cut(prompt: str, places: list[tuple[int, int]]) -> str:
    for start, stop in sorted(places, reverse=True):
        prompt = prompt[:start] + " " + prompt[stop:]
    return " ".join(prompt.split())


def _log_p(
    parts: Parts, prompt: str, codes: Tensor, patterns: Patterns, device: torch.device, on_progress: OnProgress | None
) -> Tensor:
    """[R, h w]: ln p of the picture's codes under each mask."""
    sequence = Generate(prompt=parts.wording.read(prompt)).build(parts)
    places, _ = picture_places(sequence, "image")
    found = []
    for masked in patterns.masked.split(_ROWS):
        rows = [_given(sequence, places, codes.flatten().cpu(), one) for one in masked]
        log_p = token_log_probabilities(parts.net, collate(rows, [0] * len(rows)).to(device))
        found.append(log_p[:, places.to(log_p.device)].cpu())
        if on_progress is not None:
            on_progress(sum(map(len, found)), len(patterns.masked))
    return torch.cat(found)


def _given(sequence: Tokens, places: Tensor, codes: Tensor, masked: Tensor) -> Tokens:
    """The drawing with all its codes, of which some are masked."""
    ids, hidden = sequence.ids.clone(), sequence.masked.clone()
    ids[places], hidden[places] = codes, masked
    return Tokens(ids=ids, masked=hidden, spans=sequence.spans)


def _error(with_words: Tensor, null: Tensor, patterns: Patterns) -> float:
    """Standard error of the sum over the picture, from its spread over masks."""
    each = (patterns.weight * (with_words - null)).sum(1) * len(patterns.masked)
    return float(each.std()) / math.sqrt(len(each)) if len(each) > 1 else math.inf


def _later(on_progress: OnProgress, before: int, of: int) -> OnProgress:
    return lambda done, _: on_progress(before + done, of)


def _rounded(maps: Mapping[str, Tensor]) -> Json:
    return {name: [[round(v, 4) for v in row] for row in part.tolist()] for name, part in maps.items()}


def _sheet(picture: Image.Image, maps: Mapping[str, Tensor]) -> Image.Image:
    """The picture and its maps, three in a row, with their sums."""
    font = ImageFont.load_default(size=14)
    most = max(float(part.abs().max()) for part in maps.values()) or 1.0
    panels = [("picture", picture.resize((_SIDE, _SIDE)))]
    panels += [(f"{n}: {float(p.sum()):+.1f} nats", _over(picture, p, most)) for n, p in maps.items()]
    sheet = Image.new("RGB", (3 * (_SIDE + 12) + 12, -(-len(panels) // 3) * (_SIDE + 34) + 10), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (title, panel) in enumerate(panels):
        x, y = 12 + number % 3 * (_SIDE + 12), 8 + number // 3 * (_SIDE + 34)
        pen.text((x, y), title, "black", font)
        sheet.paste(panel, (x, y + 22))
    return sheet


def _over(picture: Image.Image, part: Tensor, most: float) -> Image.Image:
    """A map over the picture in grey."""
    grey = picture.convert("L").convert("RGB").resize((_SIDE, _SIDE))
    strength = (part.abs() / most).clamp(0, 1).sqrt()
    values = [
        tuple(_UP if v > 0 else _DOWN) + (round(220 * s),)
        for v, s in zip(part.flatten().tolist(), strength.flatten().tolist(), strict=True)
    ]
    layer = Image.new("RGBA", (part.shape[1], part.shape[0]))
    layer.putdata(values)
    return Image.alpha_composite(grey.convert("RGBA"), layer.resize((_SIDE, _SIDE), Image.Resampling.NEAREST)).convert(
        "RGB"
    )
