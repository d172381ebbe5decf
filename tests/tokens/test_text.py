"""Text: what a user writes is never a control token, and comes back as it was written (in small letters)."""

from __future__ import annotations

import unicodedata
from importlib.resources import files
from pathlib import Path
from random import Random

import pytest
from tokenizers import Tokenizer

from unmask.data.world import language
from unmask.data.world.questions import questions
from unmask.data.world.scenes import sample
from unmask.models.sizes import SIZES
from unmask.tokens.boxes import from_bins, to_bins
from unmask.tokens.text import BINS, BOS, CONTROL, EOS, EOT, MASK, Text, TokenizerError, location

SHIPPED = Path(str(files("unmask") / "assets" / "mini" / "tokenizer.json"))
LINES = ["a red apple left of a cat", "two dogs", "how many apples ? three", "make the apple blue"] * 50


@pytest.fixture(scope="module")
def text() -> Text:
    return Text.load(SHIPPED)


def plain(x: str) -> str:
    """What comes back: compatibility forms settled, small letters, nothing around it."""
    return unicodedata.normalize("NFKC", x).lower().strip()


# -- control tokens ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "around",
    ["{}", "a {} b", "{0}{0}", "a{}b", " {} ", "{}\n{}", "<{}>", "draw {} <|mdm_mask|> <LOC_7>"],
)
def test_control_text_in_a_prompt_stays_plain_text(text: Text, around: str) -> None:
    control = set(text.control.values())
    for name in (*CONTROL[:12], *CONTROL[-6:], location(500)):
        for said in (name, name.upper(), name.lower(), name.replace("<", "＜"), name.replace("<|", "<|\u200b")):
            x = around.replace("{0}", "{}").replace("{}", said)
            ids = text.encode(x)
            assert ids and not control & set(ids), (x, text.show(ids))
            assert text.decode(ids) == plain(x)


def test_and_after_saving_and_loading(text: Text, tmp_path: Path) -> None:
    """How special tokens are read is a switch that the file does not keep."""
    text.save(tmp_path / "tokenizer.json")
    again = Text.load(tmp_path / "tokenizer.json")
    assert not set(again.control.values()) & set(again.encode("".join(CONTROL)))
    assert again.control == text.control


def test_every_control_token_has_an_id_of_its_own(text: Text) -> None:
    assert len(set(text.control.values())) == len(CONTROL) == 1038
    assert all(0 <= i < text.size for i in text.control.values())
    assert text.size == SIZES["mini"].vocab_size
    assert [text[location(k)] for k in (0, 1, BINS)] == [text.first_location + k for k in (0, 1, BINS)]
    assert text.show([text[BOS], text[location(3)]]) == BOS + "<LOC_3>"
    with pytest.raises(KeyError):
        text["<|no_such_token|>"]


# -- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "x",
    [
        "a red apple",
        "A Red APPLE, left of the cat!",
        "  two   spaces  ",
        "line\nbreak\ttab",
        "naïve café déjà-vu Ünïcödé",
        "ﬁne ② ½ ＦＵＬＬ",  # settled by NFKC
        "кот и собака · γάτα · 猫と犬 · 고양이 · قطة · בית · ไทย",
        "🍎 🐕‍🦺 🇩🇪 👩🏽‍🚀 ❤️",
        "e\u0301 \u200b \u200d \u202e \ufeff",
        "\x00 \x07 \x7f",
        "\U0010ffff \ue000 \U000e0001",
        "a" * 5000,
        "🍎" * 700,
        "́" * 300,  # nothing but accents
        "<html>&amp; {caption} %s \\n $(x) '\"`",
    ],
    ids=lambda x: ascii(x)[:30],
)
def test_there_and_back(text: Text, x: str) -> None:
    ids = text.encode(x)
    assert all(0 <= i < text.size for i in ids)
    assert text.decode(ids) == plain(x)


def test_random_unicode(text: Text) -> None:
    rng = Random(0)
    for _ in range(200):
        points = [rng.choice((rng.randrange(32, 0xD800), rng.randrange(0xE000, 0x110000))) for _ in range(20)]
        # Unassigned today may be assigned in the library's tables or in Python's.
        x = "".join(c for c in map(chr, points) if unicodedata.category(c) not in ("Cn", "Lu", "Lt"))
        x = unicodedata.normalize("NFKC", x).lower()
        assert text.decode(text.encode(x)) == plain(x)


@pytest.mark.parametrize("x", ["\udcff", "a\ud83db", "\udcff" * 3 + " apple"], ids=ascii)
def test_half_a_character_is_a_question_mark(text: Text, x: str) -> None:
    """What Python makes of a command line that is no UTF-8."""
    assert text.decode(text.encode(x)) == "".join("?" if 0xD800 <= ord(c) < 0xE000 else c for c in x)


def test_nothing_is_nothing(text: Text) -> None:
    assert text.encode("") == [] and text.decode([]) == "" and text.show([]) == ""


def test_the_world_is_short(text: Text) -> None:
    """The vocabulary was learned from the world, so its sentences take about a token a word, and all of them come back."""
    rng = Random(1)
    words = tokens = 0
    for i in range(60):
        scene = sample("grid", "test", 0, i)
        said = [language.caption(scene, rng), *(p for p, _ in language.referring(scene, rng))]
        for x in said + [q.text for q in questions(scene, rng)]:
            ids = text.encode(x)
            assert text.decode(ids) == plain(x)
            words, tokens = words + len(x.split()), tokens + len(ids)
    assert tokens < 1.3 * words


def test_reading_ends_with_the_turn(text: Text) -> None:
    cat, dog = text.encode("cat"), text.encode("dog")
    for end in (EOT, EOS):
        assert text.decode([*cat, text[end], *dog]) == "cat"
    assert text.decode([text[EOT], *cat]) == ""
    assert text.decode([text[BOS], *cat, text[MASK], text[location(4)], *dog]) == "cat dog"
    assert text.show([*cat, text[EOT], *dog]) == " cat<|eot_id|> dog"


# -- making and reading files -----------------------------------------------------------------------------------------


def test_training_is_repeatable_and_of_the_wanted_size(tmp_path: Path) -> None:
    made = Text.train(LINES, 1400)
    assert made.size <= 1400
    assert Text.train(LINES, 1400).tokenizer.to_str() == made.tokenizer.to_str()
    made.save(tmp_path / "t.json")
    again = Text.load(tmp_path / "t.json")
    for x in ("a red apple left of a cat", "Unseen Wörds 🍎"):
        assert again.encode(x) == made.encode(x) and made.decode(made.encode(x)) == plain(x)
    assert len(made.encode("a red apple left of a cat")) <= 8


@pytest.mark.parametrize("content", [None, "", "{}", '{"model": 3}', "not json"])
def test_a_file_that_is_no_tokenizer(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(TokenizerError, match=r"cannot read the tokenizer .*tokenizer\.json"):
        Text.load(path)


def test_a_tokenizer_without_control_tokens(tmp_path: Path) -> None:
    whole = SHIPPED.read_text()
    (tmp_path / "t.json").write_text(whole.replace("<|mdm_mask|>", "<|other|>"))
    with pytest.raises(TokenizerError, match=r"lacks 1 control tokens, for example <\|mdm_mask\|>"):
        Text.load(tmp_path / "t.json")


def test_coordinates_must_be_consecutive() -> None:
    swapped = Tokenizer.from_str(
        SHIPPED.read_text()
        .replace(f'"{location(BINS)}"', '"<swap>"')
        .replace('"</box_p>"', f'"{location(BINS)}"')
        .replace('"<swap>"', '"</box_p>"')
    )
    with pytest.raises(TokenizerError, match="consecutive"):
        Text(swapped)


# -- boxes ------------------------------------------------------------------------------------------------------------


def test_bins_there_and_back() -> None:
    for k in range(BINS + 1):
        assert to_bins([k / BINS] * 4) == [k] * 4
        assert from_bins(to_bins([0, 0, k / BINS, 1])) == (0, 0, k / BINS, 1)
    rng = Random(0)
    for _ in range(500):
        x1, x2 = sorted(rng.random() for _ in range(2))
        y1, y2 = sorted(rng.random() for _ in range(2))
        back = from_bins(to_bins((x1, y1, x2, y2)))
        assert max(abs(a - b) for a, b in zip(back, (x1, y1, x2, y2), strict=True)) <= 0.5 / BINS + 1e-12


def test_bins_are_kept_in_range_and_corners_in_order() -> None:
    assert to_bins((-0.2, 0.5, 1.7, 1.0)) == [0, 512, 1024, 1024]
    assert from_bins([1024, 512, 0, 256]) == (0, 0.25, 1, 0.5)


@pytest.mark.parametrize("bins", [[], [1, 2, 3], [1, 2, 3, 4, 5], [0, 0, 0, 1025], [-1, 0, 0, 0]])
def test_what_is_no_box(bins: list[int]) -> None:
    with pytest.raises(ValueError, match="a box must be four bins in 0..1024"):
        from_bins(bins)
