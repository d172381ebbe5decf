"""Layouts to think of before drawing: of a whole scene, and of what an edit touches. Public ideas: ``scene_layout``, ``edit_layout``."""

from __future__ import annotations

from random import Random

from unmask.data.world.edits import Edit
from unmask.data.world.language import layout, noun
from unmask.data.world.scenes import Scene, Thing, only_in
from unmask.tokens.layouts import Layout, Placed
from unmask.tokens.prompts import Wording


def scene_layout(scene: Scene, said: str, wording: Wording, rng: Random) -> Layout:
    """Every visible thing of a scene, in the order in which the caption ``said`` names them."""
    things = tuple(Placed(phrase=phrase, box=box) for phrase, box in layout(scene, rng, said))
    return Layout(things=things, reason=wording.plan_reason)


def edit_layout(edit: Edit, wording: Wording) -> Layout:
    """What an edit touches: the thing that goes or, where another comes or it changes, that one; for a new place or size first the old."""
    gone, come = only_in(edit.source, edit.target), only_in(edit.target, edit.source)
    touched = [*gone, *come] if edit.kind in ("move", "resize") else come or gone
    return Layout(things=tuple(_placed(t) for t in touched), reason=wording.reason(edit.kind))


def _placed(thing: Thing) -> Placed:
    return Placed(phrase=noun(thing), box=thing.box)
