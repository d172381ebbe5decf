"""Requests of Lumina-DiMOO: the sentences of every released task, lines of codes, and holes in a picture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unmask.sequence import Kind
from unmask.tokens.build import Builder
from unmask.tokens.lumina_dimoo import CONTROL, LINE, RELEASED_QUIRKS, Request, covered, drawing, editing, request_of
from unmask.tokens.prompts import RELEASED
from unmask.tokens.text import Text

GOLDEN = Path(__file__).parents[1] / "golden" / "lumina_dimoo_tiny"


@pytest.fixture
def b() -> Builder:
    return Builder(text=Text.load(GOLDEN / "tokenizer.json", CONTROL), wording=RELEASED, look_tokens=0)


@pytest.mark.parametrize(
    ("kind", "system", "text"),
    [
        ("edit_remove", "Generate an image applying the following editing instruction based on the original image.", "words"),
        ("hed_control", "Generate an image according to the text prompt and the given control image.", "words"),
        ("subject_driven", "Generate an image according to the text prompt and the given object image.", "words"),
        ("image_ref_transfer", "Transform the current image into the style of the provided image.", None),
        ("multi_view_left", "Generate a view-image based on the given image.",
         "Generate the left view based on the provided front view."),
        ("dense_depth", "Perform dense prediction on the given images.", "Generate a depth map according to the image."),
        ("depth_pred", "Perform dense prediction on the given images.", "Generate a depth map according to the image."),
    ],
)  # fmt: skip
def test_each_task_has_its_sentences(kind: str, system: str, text: str | None) -> None:
    assert request_of(kind, "words") == Request(system=system, text=system if text is None else text)


def test_the_released_names_of_predictions_got_a_general_sentence() -> None:
    found = request_of("depth_pred", "words", RELEASED_QUIRKS)
    assert found == Request(system="Generate an image according to the prompt and image.", text="words")
    assert request_of("dense_depth", "", RELEASED_QUIRKS) == request_of("depth_pred", "")


def test_an_unknown_dense_prediction_is_named() -> None:
    with pytest.raises(ValueError, match="unknown dense prediction 'dense_smell'; name one of canny, hed"):
        request_of("dense_smell", "")


def test_every_line_of_codes_has_its_end(b: Builder) -> None:
    row = drawing(b, Request(system="s", text="red cat"), (2, 3))
    image = [s for s in row.spans if s.name == "image"]
    assert [s.grid for s in image] == [(1, 3), (1, 3)] and all(s.kind == Kind.CODE and s.writable for s in image)
    assert all(int(row.ids[s.stop]) == b.text[LINE] for s in image)
    assert int(row.masked.sum()) == 6 and bool(row.masked[image[0].start : image[0].stop].all())


def test_the_prompts_of_guidance_have_segments_of_their_own(b: Builder) -> None:
    source = torch.arange(6).view(2, 3)
    row = editing(b, Request(system="s", text="make it blue"), [source], (2, 3))
    kinds = {
        name: {s.segment for s in row.spans if s.name == name}
        for name in ("null text", "null image", "prompt", "source")
    }
    assert kinds == {"null text": {1}, "null image": {2}, "prompt": {0}, "source": {0}}
    codes = [row.ids[s.start : s.stop].tolist() for s in row.spans if s.kind == Kind.CODE and not s.writable]
    assert codes == [[0, 1, 2], [3, 4, 5]] * 2  # with and without the words


def test_codes_of_which_half_is_covered_are_kept_by_both() -> None:
    share = covered((6, 8), 8, (0.5, 0.5))
    assert [int(n) for n in (share > 0.5).sum(1)] == [0, 0, 4, 4, 0, 0]
    assert [int(n) for n in (share < 0.5).sum(1)] == [8, 4, 4, 4, 4, 8]
