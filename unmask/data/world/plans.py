"""Layouts to think of before drawing: of a whole scene, and of what an edit touches. Public ideas: ``scene_layout``, ``edit_layout``."""

from __future__ import annotations

from random import Random

from unmask.data.world.edits import Edit
from unmask.data.world.language import layout, noun
from unmask.data.world.scenes import Scene, SceneObject, only_in
from unmask.tokens.layouts import Layout, Placed
from unmask.tokens.prompts import Wording


def scene_layout(scene: Scene, said: str, wording: Wording, rng: Random) -> Layout:
    """Every visible object of a scene, in the order in which the caption ``said`` names them."""
    objects = tuple(Placed(phrase=phrase, box=box) for phrase, box in layout(scene, rng, said))
    return Layout(objects=objects, reason=wording.plan_reason)


def edit_layout(edit: Edit, wording: Wording) -> Layout:
    """What an edit touches: the object that goes or, where another comes or it changes, that one; for a new place or size first the old."""
    gone, come = only_in(edit.source, edit.target), only_in(edit.target, edit.source)
    touched = [*gone, *come] if edit.kind in ("move", "resize") else come or gone
    return Layout(objects=tuple(_placed(t) for t in touched), reason=wording.reason(edit.kind))


def _placed(obj: SceneObject) -> Placed:
    return Placed(phrase=noun(obj), box=obj.box)
