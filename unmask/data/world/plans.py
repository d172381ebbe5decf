"""Layouts as plans: of a whole scene, and of the objects that an edit changes. Public ideas: ``scene_layout``, ``edit_layout``."""

from __future__ import annotations

from random import Random

from unmask.data.world.edits import SceneEdit
from unmask.data.world.language import layout, noun
from unmask.data.world.scenes import Scene, SceneObject, only_in
from unmask.tokens.layouts import Layout, Placed
from unmask.tokens.prompts import Wording


def scene_layout(scene: Scene, caption: str, wording: Wording, rng: Random) -> Layout:
    """All visible objects of a scene, in the order of their mention in ``caption``."""
    objects = tuple(Placed(phrase=phrase, box=box) for phrase, box in layout(scene, rng, caption))
    return Layout(objects=objects, reason=wording.plan_reason)


def edit_layout(edit: SceneEdit, wording: Wording) -> Layout:
    """The objects that an edit changes: the removed one or, if there is one, the new or changed one; for a move or resize old and new."""
    removed, added = only_in(edit.source, edit.target), only_in(edit.target, edit.source)
    touched = [*removed, *added] if edit.kind in ("move", "resize") else added or removed
    return Layout(objects=tuple(_placed(t) for t in touched), reason=wording.reason(edit.kind))


def _placed(obj: SceneObject) -> Placed:
    return Placed(phrase=noun(obj), box=obj.box)
