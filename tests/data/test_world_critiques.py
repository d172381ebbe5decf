"""Critiques are true: what they call wrong is wrong, and of the caption's picture nothing is."""

from __future__ import annotations

import re
from collections import Counter
from random import Random

import pytest

from tests.data.test_world_language import _COLOURS, _LYING, _TINTED, _WORDS, GROUPED, _counts, _one, _scenes
from unmask.data.world import critiques, edit_critiques
from unmask.data.world.edits import EDIT_KINDS, edit
from unmask.data.world.language import noun, size_word
from unmask.data.world.plans import edit_layout, scene_layout
from unmask.data.world.scenes import INVERSE, Draft, Scene, SceneObject, relation, relation_of_groups, split_of
from unmask.data.world.vocabulary import BACKGROUNDS
from unmask.evaluation import world_edit
from unmask.evaluation.judge import Found, Seen
from unmask.tokens.prompts import COMPACT


def _of(scene: Scene, word: str) -> list[SceneObject]:
    return [t for t in scene.objects if t.name == _one(word)]


@pytest.mark.parametrize("draft", [Draft(), GROUPED], ids=["draft", "grouped"])
def test_wrong_captions_are_wrong_and_their_critique_says_where(draft: Draft) -> None:
    rng = Random(9)
    kinds: Counter[str] = Counter()
    for scene in _scenes("grid", "train", 800, draft):
        text, critique = critiques.negative_pair(scene, rng)
        told, shown = _counts(text), Counter(t.name for t in scene.objects)
        if "background" in critique:
            kind, wrong = "background", scene.background not in text and "background" in text
        elif side := re.search(r"the (.*) should be (left of|right of|above|below) the (.*)", critique):
            said = [
                {relation(s, t) for s in _of(scene, a) for t in _of(scene, b)} == {how}
                for a, how, b in _LYING.findall(text)
            ]
            first, second = (_of(scene, side[i]) for i in (1, 3))
            named = [critiques.those(first), critiques.those(second)] == [side[1], side[3]]
            kind, wrong = "relation", said == [False] and relation_of_groups(first, second) != side[2] and named
        elif size := re.search(rf"the ({_WORDS}) should be (bigger|smaller)", critique):
            words = {size_word(t, scene.level) for t in _of(scene, size[1])}
            wrong = words == {"small" if size[2] == "bigger" else "big"}
            kind, wrong = "size", wrong and {"bigger": "big ", "smaller": "small "}[size[2]] in text and told == shown
        elif tint := re.search(rf"the ({_WORDS}) should be ({_COLOURS}), not ({_COLOURS})", critique):
            colours = {t.colour for t in scene.objects if t.name == _one(tint[1])}
            kind, wrong = "colour", tint[2] not in colours and tint[3] in colours and tint[2] in text
        else:
            kind, wrong = "count", told != shown
        kinds[kind] += 1
        assert wrong, (text, critique, scene)
    assert set(kinds) == {"background", "relation", "colour", "count", "size"}, kinds
    assert "is correct" in critiques.positive_pair(scene, rng)[1]


def test_claims_are_right_and_wrong_and_tell_places_as_often_as_asked() -> None:
    scenes = [
        s for s in _scenes("grid", "train", 1500) if len(s.objects) == 2 and not any(t.distractor for t in s.objects)
    ]
    pairs = [s for s in scenes if relation(*s.objects) and s.objects[0].name != s.objects[1].name]
    for share, few, many in ((0.0, 0.2, 0.5), (1.0, 0.8, 1.0)):
        rng = Random(3)
        claims = [critiques.sample_pair(scene, rng, share) for scene in pairs]
        assert few <= sum(any(f" {how} " in text for how in INVERSE) for text, _ in claims) / len(claims) <= many
        right = [(text, scene) for (text, words), scene in zip(claims, pairs, strict=True) if "is correct" in words]
        assert 0.4 < len(right) / len(claims) < 0.6
        assert all(_shows(scene, text) for text, scene in right if "left of" in text or "above" in text)


def _shows(scene: Scene, text: str) -> bool:
    """Whether a scene has what a caption says, as far as its words alone tell."""
    objects = scene.objects
    return (
        _counts(text) == Counter(t.name for t in objects)
        and all(
            any((t.name, t.colour) == (_one(word), colour) for t in objects) for colour, word in _TINTED.findall(text)
        )
        and all(
            {relation(s, t) for s in _of(scene, a) for t in _of(scene, b) if s is not t}
            <= {side, *[INVERSE[side]] * (a == b)}
            for a, side, b in _LYING.findall(text)
        )
        and all(name == scene.background for name, (words, *_) in BACKGROUNDS.items() if text.endswith(words))
    )


@pytest.mark.parametrize(
    "draft", [Draft(counts=((1, 1), (2, 2), (3, 1)), alike=0.3), GROUPED], ids=["draft", "grouped"]
)
def test_spoilt_pictures_miss_the_caption_that_the_scene_meets(draft: Draft) -> None:
    rng = Random(3)
    words: Counter[str] = Counter()
    for scene in _scenes("grid", "train", 400, draft):
        text, spoilt = critiques.make_negatives(scene, rng)
        assert _shows(scene, text), (text, scene)
        assert len({s.critique for s in spoilt}) == len(spoilt) <= 3
        for wrong in spoilt:
            words[re.sub(rf"{_COLOURS}|{_WORDS}", "_", wrong.critique)] += 1
            assert not _shows(wrong.scene, text), (text, wrong)
            assert split_of(wrong.scene) == "train"
    said = " ".join(words)
    assert all(w in said for w in ("no _", "missing", "be _, not", "left of", "background", "not three")), words


def _seen(scene: Scene) -> Seen:
    """What a judge without fault sees."""
    objects = (Found(name=t.name, colour=t.colour, box=t.box, score=1.0) for t in scene.objects)
    return Seen(objects=tuple(objects), background=scene.background)


def test_an_edit_has_a_fault_where_the_measurement_finds_one() -> None:
    rng = Random(6)
    verdicts: Counter[tuple[str, bool]] = Counter()
    for scene in _scenes("grid", "train", 500):
        made = [m for kind in EDIT_KINDS for _ in range(2) if (m := edit(scene, "train", rng, kind))]
        for asked in made:
            assert edit_critiques.edit_critique(asked, asked.target, rng) == ""
            assert edit_critiques.edit_critique(asked, scene, rng) == edit_critiques.UNCHANGED
            for done in rng.sample(made, 3):
                for after in (done, edit(done.target, "train", rng)):
                    if after is None:
                        continue
                    right = world_edit.success(asked, _seen(after.target))
                    words = edit_critiques.edit_critique(asked, after.target, rng)
                    assert (words == "") == right, (asked, after.target, words)
                    verdicts[asked.kind, right] += 1
    assert set(verdicts) == {(kind, right) for kind in EDIT_KINDS for right in (True, False)}, verdicts


def test_critiques_of_edits_are_true_and_of_what_was_asked_first() -> None:
    rng = Random(8)
    words: Counter[str] = Counter()
    for number, scene in enumerate(_scenes("grid", "train", 1200)):
        made = edit(scene, "train", rng, EDIT_KINDS[number % len(EDIT_KINDS)])
        if made is None:
            continue
        shown, asked = edit_critiques.edited_pairs(made, rng)
        assert split_of(shown) == "train"
        for instruction, critique in asked:
            words[re.sub(rf"{_COLOURS}|{_WORDS}", "_", critique)] += 1
            if "is correct" in critique:
                assert (instruction, shown) == (made.instruction, made.target)
            elif critique == edit_critiques.UNCHANGED:
                assert shown.signature == scene.signature
            elif gone := re.search(rf"no ((?:{_COLOURS}) )?({_WORDS})$", critique):
                there = [t for t in shown.objects if t.name == gone[2] and (gone[1] or "").strip() in ("", t.colour)]
                assert bool(there) == critique.startswith("there should be"), (critique, shown)
            elif tint := re.search(rf"the ({_WORDS}) should be ({_COLOURS}), not ({_COLOURS})$", critique):
                assert [t.colour for t in shown.objects if t.name == tint[1]] == [tint[3]], (critique, shown)
    said = " ".join(words)
    for form in ("is correct", "nothing", "no _", "missing", "be _, not", "be a", "should be at", "bigger", "two"):
        assert form in said, (form, words)
    assert all("background should be" in w for w in words if "background" in w)


def test_layouts_say_where_things_are_and_what_an_edit_touches() -> None:
    rng = Random(4)
    seen: set[str] = set()
    for scene in _scenes("grid", "train", 300):
        layout = scene_layout(scene, "", COMPACT, rng)
        assert Counter(t.box for t in layout.objects) == Counter(t.box for t in scene.objects)
        for kind in EDIT_KINDS:
            made = edit(scene, "train", rng, kind)
            if made is None:
                continue
            seen.add(kind)
            found = edit_layout(made, COMPACT)
            boxes = {t.box for t in found.objects}
            before, after = ({t.box for t in s.objects} for s in (made.source, made.target))
            wanted = {
                "add": after - before,
                "remove": before - after,
                "move": before ^ after,
                "resize": before ^ after,
                "background": set(),
            }
            assert found.reason == COMPACT.reason(kind)
            if kind in wanted:
                assert boxes == wanted[kind], (kind, made)
            else:
                (obj,) = [t for t in made.target.objects if t not in made.source.objects]
                assert boxes == {obj.box} and found.objects[0].phrase == noun(obj)
    assert seen == set(EDIT_KINDS)
