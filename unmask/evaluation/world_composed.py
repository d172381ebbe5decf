"""Prompts that combine two or three of count, relation, attribute, background and size. Public idea: ``COMPOSED``, kinds of prompts.

"two red apples left of a cat on a sky background". Every prompt has one exact meaning: as many objects of each named class as it says, all
in the named colour and size; a relation holds for every object of the first group with every object of the second; the background is the
named one. What a prompt does not mention is free, further objects of other classes included (``scoring.strict`` forbids these).
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial
from random import Random

from unmask.data.world.language import common_size, group_phrase, groups_of
from unmask.data.world.scenes import Draft, Scene, SceneObject, relation_of_groups
from unmask.data.world.vocabulary import BACKGROUNDS
from unmask.evaluation.scoring import Related, Want, Wanted
from unmask.evaluation.world_geneval import Composed, PromptKind

ASPECTS = ("count", "relation", "attribute", "background", "size")
Aspects = tuple[str, ...]
_INEXACT = 0.015  # of the picture's side: error of the judge's boxes that must not change the verdict on the prompt's own scene


def compose(aspects: Aspects, scene: Scene, rng: Random) -> Composed | None:
    """A prompt about all objects of a scene that combines exactly these aspects; None for a scene that does not suit."""
    groups = groups_of(scene.objects)
    rng.shuffle(groups)
    names = [group[0].name for group in groups]
    if len(groups) > 2 or len(set(names)) < len(groups):
        return None
    found = _clear_relation(*groups) if len(groups) == 2 and "relation" in aspects else ""
    sizes = [common_size(group, scene.level) if "size" in aspects else "" for group in groups]
    counted = any(len(group) > 1 for group in groups)
    if bool(found) != ("relation" in aspects) or ("size" in aspects and "" in sizes) or counted != ("count" in aspects):
        return None
    tinted = "attribute" in aspects
    if tinted and any(not group[0].colour for group in groups):
        return None
    phrases = [
        group_phrase(group if tinted else _natural(group), size) for group, size in zip(groups, sizes, strict=True)
    ]
    items = tuple(
        Wanted(name=group[0].name, count=len(group), colour=group[0].colour if tinted else None, exact=True, size=size)
        for group, size in zip(groups, sizes, strict=True)
    )
    background = scene.background if "background" in aspects else ""
    text = f" {found or 'and'} ".join(phrases) + (f" {BACKGROUNDS[background][0]}" if background else "")
    related = Related(first=items[0], relation=found, second=items[-1], every=True) if found else None
    named = [(group[0].colour, group[0].name) for group in groups if tinted]
    named_pairs: list[tuple[str, ...]] = [(names[0], names[1])] if len(names) == 2 else []
    named_pairs += [(found, names[0], names[1])] if found else []
    opening = "a photo of " if rng.random() < 0.5 else ""
    return opening + text, Want(items=items, related=related, background=background), (*named, *named_pairs)


def _clear_relation(first: list[SceneObject], second: list[SceneObject]) -> str:
    """``relation_of_groups`` where an error of ``_INEXACT`` in the position of one group does not change it, else ""."""
    found = {
        relation_of_groups([replace(t, x=t.x + x, y=t.y + y) for t in first], second)
        for x in (-_INEXACT, _INEXACT)
        for y in (-_INEXACT, _INEXACT)
    }
    return found.pop() if len(found) == 1 else ""


def _natural(group: list[SceneObject]) -> list[SceneObject]:
    return [SceneObject(name=t.name, colour="", x=t.x, y=t.y, size=t.size) for t in group]


def draft(aspects: Aspects, number: int) -> Draft:
    """The distribution of scenes for prompt ``number``: two groups where there is a relation, else one and two in turns."""
    two = "relation" in aspects or number % 2 == 1
    tinted = float("attribute" in aspects)
    if "count" not in aspects:
        return Draft(counts=((1 + two, 1.0),), alike=0.0, tinted=tinted, grouped=float(two))
    counts = ((3, 1.0), (4, 1.0)) if two else ((2, 1.0), (3, 1.0), (4, 1.0))
    return Draft(counts=counts, alike=1.0, tinted=tinted, grouped=float(two))


COMPOSED: tuple[PromptKind, ...] = tuple(
    PromptKind(
        suite="composed", name="_".join(aspects), draft=partial(draft, aspects), compose=partial(compose, aspects)
    )
    for count in (2, 3)
    for aspects in itertools.combinations(ASPECTS, count)
)
