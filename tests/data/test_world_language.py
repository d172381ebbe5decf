"""Statements about a scene are true, refer to one object and contain no held-out combination; edits match their instructions."""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations as pairs
from random import Random

import pytest

from unmask.data.world import critiques, edits, language
from unmask.data.world.questions import KINDS, Question, questions
from unmask.data.world.scenes import SPLITS, Draft, Scene, SceneObject, apart, held_out, relation, sample, split_of
from unmask.data.world.vocabulary import CLASS_NAMES, CLASSES, COLOUR_NAMES, LEVELS

_DRAFT = Draft()
GROUPED = Draft(counts=((2, 1.0), (3, 1.0), (4, 1.0)), alike=0.0, grouped=1.0)
_MANY = {many: name for name, (many, _) in CLASSES.items()}
_WORDS = "|".join(sorted({*CLASS_NAMES, *_MANY}, key=len, reverse=True))
_COLOURS = "|".join(COLOUR_NAMES)
_COUNTED = re.compile(rf"\b(a|an|two|three|four|five|six) (?:big |small )?(?:({_COLOURS}) )?({_WORDS})\b")
_TINTED = re.compile(rf"\b({_COLOURS}) ({_WORDS})\b")
_LYING = re.compile(
    rf"\b({_WORDS}) (?:is |should be )?(?:to the )?(left of|right of|above|below)"
    rf" (?:a |an |the |two |three |four |five )?(?:big |small )?(?:(?:{_COLOURS}) )?({_WORDS})\b"
)
_ASKED_LYING = re.compile(rf"is the ({_WORDS}) (left of|right of|above|below) the ({_WORDS})\?")


def _one(word: str) -> str:
    """The class a singular or plural noun stands for."""
    return word if word in CLASSES else _MANY[word]


def _counts(text: str) -> Counter[str]:
    """Classes and how many of each a caption speaks of, read back from its words alone."""
    found: Counter[str] = Counter()
    for many, _, word in _COUNTED.findall(text):
        found[_one(word)] += 1 if many in ("a", "an") else language.NUMBERS.index(many) + 1
    return found


def _scenes(level: str, split: str, count: int, draft: Draft = _DRAFT) -> list[Scene]:
    return [sample(level, split, 7, i, draft) for i in range(count)]


def _texts(scene: Scene, rng: Random) -> list[str]:
    asked = questions(scene, rng)
    referred = [text for text, _ in language.referring(scene, rng)]
    return [language.caption(scene, rng), *critiques.negative_pair(scene, rng), *referred, *(q.text for q in asked)]


@pytest.mark.parametrize("level", sorted(LEVELS))
def test_captions_name_every_class_and_count_and_no_false_colour(level: str) -> None:
    rng = Random(1)
    for scene in _scenes(level, "train", 400, Draft(distractors=0.3)):
        told = [t for t in scene.objects if not t.distractor]
        text = language.caption(scene, rng)
        assert _counts(text) == Counter(t.name for t in told), text
        for colour, word in _TINTED.findall(text):
            assert any(t.name == _one(word) and t.colour == colour for t in told), text
        for a, side, b in _LYING.findall(text):
            found = {
                relation(s, t) for s in told for t in told if s.name == _one(a) and t.name == _one(b) and s is not t
            }
            assert side in found, text


@pytest.mark.parametrize("level", ["grid", "free"])
def test_captions_combine_counts_relations_colours_and_sizes(level: str) -> None:
    rng = Random(1)
    combined: Counter[str] = Counter()
    for scene in _scenes(level, "train", 400, GROUPED):
        text = language.relating(scene, rng) or language.caption(scene, rng)
        assert _counts(text) == Counter(t.name for t in scene.objects), text
        lying = _LYING.findall(text)
        for a, side, b in lying:
            first, second = ([t for t in scene.objects if t.name == _one(word)] for word in (a, b))
            assert {relation(s, t) for s in first for t in second} == {side}, text
        for size, word in re.findall(rf"\b(big|small) (?:(?:{_COLOURS}) )?({_WORDS})\b", text):
            assert size in {language.size_word(t, level) for t in scene.objects if t.name == _one(word)}, text
        kinds = (bool(lying), bool(_TINTED.search(text)), bool(re.search(r"\b(two|three)\b", text)), "big " in text)
        combined[" ".join(str(int(k)) for k in kinds)] += 1
    assert combined["1 1 1 0"] > 20 and combined["1 1 1 1"] > 2, combined


def test_captions_are_varied_and_short() -> None:
    rng = Random(2)
    texts = [language.caption(scene, rng) for scene in _scenes("grid", "train", 1000)]
    words = sorted(len(text.split()) for text in texts)
    assert words[500] <= 10 and words[950] <= 22
    assert 0.3 < sum("background" in text for text in texts) / 1000 < 0.5
    assert len(set(texts)) > 850


def test_position_words_split_the_picture_in_nine() -> None:
    def word(x: float, y: float) -> str:
        return language.position_word(SceneObject(name="dog", colour="", x=x, y=y, size=0.2))

    assert [word(x, y) for y in (0.0, 0.4, 0.8) for x in (0.0, 0.4, 0.8)] == [
        "top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right",
    ]  # fmt: skip


def test_layout_holds_every_thing_once() -> None:
    rng = Random(3)
    for scene in _scenes("free", "train", 100):
        said = language.layout(scene, rng)
        assert sorted(box for _, box in said) == sorted(t.box for t in scene.objects)
        assert Counter(_one(re.search(rf"({_WORDS})$", text)[0]) for text, _ in said) == Counter(
            t.name for t in scene.objects
        )


def _fits(words: str, obj: SceneObject, scene: Scene) -> bool:
    """Whether a referring expression without its relation can be said of the object, read word by word."""
    colour = re.match(rf"(?:the )?({_COLOURS}) ", words)
    name = re.search(rf"({_WORDS})(?: (?:at|in) the .*)?$", words)[1]
    alike = [t for t in scene.objects if t.name == name and t is not obj]
    ends = {"leftmost": (0, min), "rightmost": (0, max), "topmost": (1, min), "bottommost": (1, max)}
    extreme = re.match(r"the (leftmost|rightmost|topmost|bottommost)", words)
    sized = re.match(r"the (big|small)", words)
    where = re.search(r" (?:at|in) the (.*)$", words)
    lies = not extreme or ends[extreme[1]][1](
        t.centre[ends[extreme[1]][0]] for t in (obj, *alike)
    ) == obj.centre[ends[extreme[1]][0]]  # fmt: skip
    return (
        obj.name == name
        and lies
        and (not colour or obj.colour in ("", colour[1]))
        and (not sized or language.size_word(obj, scene.level) in ("", sized[1]))
        and (not where or language.position_word(obj) == where[1])
    )


@pytest.mark.parametrize("level", sorted(LEVELS))
def test_referring_expressions_fit_one_thing_alone(level: str) -> None:
    rng = Random(4)
    kinds: Counter[str] = Counter()
    for scene in _scenes(level, "train", 400):
        said = language.referring(scene, rng)
        assert len({index for _, index in said}) == len(said)
        for text, index in said:
            subject, _, rest = re.match(r"(.*?)(?: (left of|right of|above|below) (the .*))?$", text).groups()
            side = re.search(r" (left of|right of|above|below) the ", text)
            fitting = [i for i, t in enumerate(scene.objects) if _fits(subject, t, scene)]
            if side:
                anchor = [t for t in scene.objects if _fits(rest, t, scene)]
                assert len(anchor) == 1, text
                fitting = [i for i in fitting if relation(scene.objects[i], anchor[0]) == side[1]]
            kinds["relation" if side else "extreme" if "most " in text else "name"] += 1
            assert fitting == [index], (text, scene)
    assert all(kinds[k] > 10 for k in (("name",) if level == "grid_half" else ("name", "relation", "extreme"))), kinds


def test_a_relation_is_said_only_if_it_tells_two_of_a_class_apart() -> None:
    def said(*dogs: tuple[float, float]) -> set[str]:
        cat = SceneObject(name="cat", colour="", x=0.5, y=0.25, size=0.25)
        objects = (cat, *(SceneObject(name="dog", colour="", x=x, y=y, size=0.25) for x, y in dogs))
        scene = Scene(objects=objects, background="white", level="grid")
        return {text for i in range(60) for text, index in language.referring(scene, Random(i)) if index}

    assert not [text for text in said((0.0, 0.0), (0.0, 0.5)) if "cat" in text]
    assert {"the dog left of the cat", "the dog below the cat"} <= said((0.0, 0.25), (0.5, 0.75))


def _answer(question: Question, scene: Scene) -> str | None:
    """The answer worked out from the question's words, or None for a wording that this check does not read."""
    text = question.text
    named = [(c, _one(w)) for c, w in re.findall(rf"(?:\b({_COLOURS}) )?\b({_WORDS})\b", text)]
    fitting = [[t for t in scene.objects if t.name == n and c in ("", t.colour)] for c, n in named]
    if question.kind == "exists":
        return "yes" if fitting[0] else "no"
    if question.kind == "count":
        return language.number(len(fitting[0]) if named else len(scene.objects))
    if question.kind == "colour":
        return " ".join({t.colour for t in fitting[0]})
    if question.kind == "where":
        return " ".join({language.position_word(t) for t in fitting[0]})
    if question.kind == "what" and (side := re.search(r"is (?:to the )?(left of|right of|above|below) the", text)):
        return " ".join(t.name for t in scene.objects if relation(t, fitting[0][0]) == side[1])
    if (
        question.kind == "what"
        and (place := re.search(r"what is (?:at|in) the (.*)\?", text))
        and place[1] != "picture"
    ):
        return " ".join(t.name for t in scene.objects if language.position_word(t) == place[1])
    if lying := _ASKED_LYING.match(text):
        return "yes" if relation(fitting[0][0], fitting[1][0]) == lying[2] else "no"
    if more := re.match(r"which is (bigger|smaller)", text):
        return (max if more[1] == "bigger" else min)((t for ts in fitting for t in ts), key=lambda t: t.size).name
    if text.startswith("are there more"):
        return "yes" if len(fitting[0]) > len(fitting[1]) else "no"
    return None


@pytest.mark.parametrize("level", sorted(LEVELS))
def test_answers_follow_from_the_scene(level: str) -> None:
    rng = Random(5)
    read: Counter[str] = Counter()
    for scene in _scenes(level, "test", 500):
        asked = questions(scene, rng)
        assert len({q.kind for q in asked}) == len(asked)
        for question in asked:
            assert question.text.endswith("?") and 1 <= len(question.answer.split()) <= 3
            if (answer := _answer(question, scene)) is not None:
                assert answer == question.answer, (question, scene)
                read[question.kind] += 1
    assert set(read) == set(KINDS)


def test_no_answer_wins_by_being_frequent() -> None:
    rng = Random(6)
    answers: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    coloured: Counter[str] = Counter()
    for scene in _scenes("grid", "train", 3000):
        for q in questions(scene, rng):
            answers[q.kind][q.answer] += 1
            if q.kind == "exists" and _TINTED.search(q.text):
                coloured[q.answer] += 1
    for kind, found in answers.items():
        share = found.most_common(1)[0][1] / found.total()
        assert share <= (0.55 if kind in ("exists", "compare") else 0.4), (kind, found.most_common(3))
        assert found.total() > 500, kind
    assert set(answers["count"]) >= {"zero", "one", "two", "three", "four"}
    assert 0.4 < coloured["yes"] / coloured.total() < 0.6, "the wording gives the answer away"


@pytest.mark.parametrize("draft", [_DRAFT, GROUPED], ids=["draft", "grouped"])
@pytest.mark.parametrize("level", sorted(LEVELS))
def test_train_texts_name_no_held_out_combination(level: str, draft: Draft) -> None:
    rng = Random(8)
    seen: Counter[str] = Counter()
    for scene in _scenes(level, "train", 800, draft):
        texts = [*_texts(scene, rng), language.relating(scene, rng), *critiques.sample_pair(scene, rng, 1.0)]
        text, negatives = critiques.make_negatives(scene, rng)
        texts += [text, *(n.critique for n in negatives)]
        assert all(split_of(n.scene) == "train" for n in negatives)
        if made := edits.edit(scene, "train", rng):
            texts.append(made.instruction)
        for text in texts:
            for colour, word in _TINTED.findall(text):
                seen["colour"] += 1
                assert not held_out(colour, _one(word)), text
            for a, side, b in _LYING.findall(text):
                seen["relation"] += 1
                assert _one(a) == _one(b) or not held_out(side, _one(a), _one(b)), text
    assert seen["colour"] > 500 and seen["relation"] > 20


def test_what_is_said_depends_on_the_random_numbers_given_alone() -> None:
    scene = _scenes("grid", "train", 3)[1]
    assert _texts(scene, Random(1)) == _texts(scene, Random(1))
    assert len({tuple(_texts(scene, Random(i))) for i in range(9)}) > 5


# -- edits ------------------------------------------------------------------------------------------------------------


def _edits(level: str, split: str, count: int) -> list[edits.SceneEdit]:
    rng = Random(11)
    asked = [(s, kind) for s in _scenes(level, split, count) for kind in edits.EDIT_KINDS]
    return [made for scene, kind in asked if (made := edits.edit(scene, split, rng, kind))]


def _check(made: edits.SceneEdit) -> None:
    """Everything but what the instruction speaks of is as before, and that is as it says."""
    gone = [t for t in made.source.objects if t not in made.target.objects]
    came = [t for t in made.target.objects if t not in made.source.objects]
    assert (made.source.background != made.target.background) == (made.kind == "background")
    sizes = {"add": (0, 1), "remove": (1, 0), "background": (0, 0)}
    assert (len(gone), len(came)) == sizes.get(made.kind, (1, 1)), made
    old, new = (gone or came or [None])[0], (came or [None])[0]
    said = made.instruction
    claims = {
        "add": lambda: language.at(language.position_word(new)) in said and language.noun(new) in said,
        "remove": lambda: old.name in said,
        "replace": lambda: old.name in said and said.endswith(language.noun(new)) and old.box == new.box,
        "recolour": lambda: said.endswith(new.colour) and (old.name, old.box) == (new.name, new.box),
        "move": lambda: said.endswith("to the " + language.position_word(new)) and old.size == new.size,
        "resize": lambda: bool(re.search("bigger|enlarge", said)) == (new.size > old.size) and new.size != old.size,
        "background": lambda: made.target.background in said,
    }
    assert claims[made.kind](), (said, old, new)


@pytest.mark.parametrize("level", sorted(LEVELS))
@pytest.mark.parametrize("split", SPLITS)
def test_edits_do_what_they_say_within_the_split(level: str, split: str) -> None:
    found = _edits(level, split, 100)
    for made in found:
        _check(made)
        assert split == "test" or split_of(made.target) == split
        assert all(
            0 <= t.x and 0 <= t.y and t.x + t.size <= 1 + 1e-9 and t.y + t.size <= 1 + 1e-9 for t in made.target.objects
        )
        assert all(apart((a.x, a.y, a.size), (b.x, b.y, b.size)) for a, b in pairs(made.target.objects, 2))
        lattice = LEVELS[level].lattice
        assert not lattice or all((v * lattice).is_integer() for t in made.target.objects for v in (t.x, t.y, t.size))
    assert split == "validation" or {made.kind for made in found} == set(edits.EDIT_KINDS)


def test_edits_are_refused_for_foreign_scenes_and_unknown_kinds() -> None:
    scene = _scenes("grid", "train", 1)[0]
    with pytest.raises(ValueError, match="belongs to"):
        edits.edit(scene, "validation", Random(0))
    with pytest.raises(ValueError, match="unknown kind"):
        edits.edit(scene, "train", Random(0), "explode")


def test_an_edit_that_cannot_be_made_is_none() -> None:
    lonely = next(s for s in _scenes("grid", "train", 50) if len(s.objects) == 1)
    assert edits.edit(lonely, "train", Random(0), "remove") is None
