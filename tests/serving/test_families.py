"""Dream, LaViDa and Dimple served: the openai client gets the answers that the models give without a server."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
from PIL import Image

import unmask

from .. import tiny_dimple, tiny_dream, tiny_lavida
from ..families import FAMILIES
from .served import client, serving

torch.set_num_threads(1)
QUESTION = "is the sky blue?"
READERS: dict[str, Callable[[Path], Path]] = {
    "lavida": tiny_lavida.make,
    "lavida on dream": lambda folder: tiny_lavida.make(folder, on_dream=True),
    "dimple": tiny_dimple.make,
}


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 50, 3), dtype=np.uint8))


def as_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def test_dream_answers(tmp_path: Path) -> None:
    model = unmask.load(tiny_dream.make(tmp_path / "dream"))
    said: Any = [{"role": "user", "content": QUESTION}]
    with serving(model, name="m") as server:
        chat = client(server).chat.completions.create(model="m", messages=said, max_tokens=9, seed=3)
        text = client(server).completions.create(model="m", prompt=QUESTION, max_tokens=9, seed=3)
    assert chat.choices[0].message.content == model.ask(QUESTION, max_tokens=9, seed=3).text
    assert text.choices[0].text.strip() == model.complete(QUESTION, max_tokens=9, seed=3).text


@pytest.mark.parametrize("name", READERS)
def test_a_model_that_reads_pictures_answers(name: str, tmp_path: Path) -> None:
    model = unmask.load(READERS[name](tmp_path / "model"))
    content = [{"type": "image_url", "image_url": {"url": as_url(picture())}}, {"type": "text", "text": QUESTION}]
    said: Any = [{"role": "user", "content": content}]
    with serving(model, name="m") as server:
        chat = client(server).chat.completions.create(model="m", messages=said, max_tokens=9, seed=3)
    assert chat.choices[0].message.content == model.ask(picture(), QUESTION, max_tokens=9, seed=3).text


@pytest.mark.parametrize("name", READERS)
def test_an_answer_from_a_draft(name: str, tmp_path: Path) -> None:
    model = unmask.load(READERS[name](tmp_path / "model"))
    content = [{"type": "image_url", "image_url": {"url": as_url(picture())}}, {"type": "text", "text": QUESTION}]
    seen: Any = [{"role": "user", "content": content}]
    alone: Any = [{"role": "user", "content": QUESTION}]
    draft, gaps = {"draft": "it is [mask:3] so"}, {"draft": "[mask]"}
    wrong: list[tuple[Any, dict[str, Any], dict[str, Any], str]] = [
        (seen, {"draft": "no gap"}, {}, "draft: no .mask. in .no gap"),
        (seen, {"draft": "[mask:513]"}, {}, "draft: .* 1 to 512 tokens"),
        (seen, gaps, {"max_tokens": 3}, "max_tokens: it cannot be combined with draft"),
        (seen, gaps, {"stop": "a"}, "stop: it cannot be combined with draft"),
        (seen, {**gaps, "draw": True}, {}, "draw: it cannot be combined with draft"),
        (alone, gaps, {}, "draft: it is for answers about an image"),
    ]
    with serving(model, name="m") as server:
        chat = client(server).chat.completions
        whole = chat.create(model="m", messages=seen, seed=3, extra_body=draft)
        parts = chat.create(model="m", messages=seen, seed=3, extra_body=draft, stream=True)
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in parts if chunk.choices)
        for messages, body, more, said in wrong:
            with pytest.raises(openai.BadRequestError, match=said) as refused:
                chat.create(model="m", messages=messages, extra_body=body, **more)
            assert refused.value.param == said.partition(":")[0]
    text = model.ask(picture(), QUESTION, seed=3, **draft).text
    assert whole.choices[0].message.content == streamed == text and text.startswith("it is")


def test_a_text_model_answers_from_a_draft_and_has_no_quirks(tmp_path: Path) -> None:
    said: Any = [{"role": "user", "content": QUESTION}]
    model = unmask.load(tiny_dream.make(tmp_path / "dream"))
    with serving(model, name="m") as server:
        chat, draft = client(server).chat.completions, {"draft": "it is [mask:3] so"}
        whole = chat.create(model="m", messages=said, seed=3, extra_body=draft)
        parts = chat.create(model="m", messages=said, seed=3, extra_body=draft, stream=True)
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in parts if chunk.choices)
        with pytest.raises(openai.BadRequestError, match="draft: no .mask. in .no gap"):
            chat.create(model="m", messages=said, extra_body={"draft": "no gap"})
        with pytest.raises(openai.BadRequestError, match="no deviations of released scripts") as refused:
            chat.create(model="m", messages=said, extra_body={"quirks": "none"})
    assert whole.choices[0].message.content == streamed == model.ask(QUESTION, seed=3, **draft).text
    assert refused.value.param == "quirks"


def test_lumina_dimoo_draws_edits_and_answers(tmp_path: Path) -> None:
    model = unmask.load(FAMILIES["lumina_dimoo"].make(tmp_path / "model"))
    few: Any = {"steps": 2, "seed": 3}
    said: Any = [{"role": "user", "content": QUESTION}]
    shown: Any = [{"type": "image_url", "image_url": {"url": as_url(picture())}}, {"type": "text", "text": QUESTION}]
    with serving(model, name="m") as server:
        drawn = client(server).images.generate(model="m", prompt="a red cat", extra_body=few)
        texts = [
            client(server).chat.completions.create(
                model="m",
                messages=[{"role": "user", "content": content}],  # type: ignore[misc, list-item]
                max_tokens=6,
            )
            for content in (QUESTION, shown)
        ]
        with pytest.raises(openai.BadRequestError, match="cannot judge its pictures"):
            client(server).images.generate(model="m", prompt="a red cat", extra_body={"reflect": 2, **few})
        with pytest.raises(openai.BadRequestError, match="answers one message at a time"):
            turns: Any = [*said, {"role": "assistant", "content": "yes"}, *said]
            client(server).chat.completions.create(model="m", messages=turns)
    assert drawn.data and drawn.data[0].b64_json
    alone = model.generate("a red cat", **few)[0].image
    assert Image.open(io.BytesIO(base64.b64decode(drawn.data[0].b64_json))).convert("RGB").tobytes() == alone.tobytes()
    assert all(text.choices[0].message.content for text in texts)


@pytest.mark.parametrize("name", READERS)
def test_a_model_that_reads_pictures_says_what_it_lacks(name: str, tmp_path: Path) -> None:
    said: Any = [{"role": "user", "content": QUESTION}]
    with serving(unmask.load(READERS[name](tmp_path / "model")), name="m") as server:
        with pytest.raises(openai.BadRequestError):
            client(server).images.generate(model="m", prompt="a red cat")
        with pytest.raises(openai.BadRequestError, match="picture|image"):
            client(server).chat.completions.create(model="m", messages=said)
        (card,) = client(server).models.list().data
    assert "generate" not in card.model_dump()["unmask"]["tasks"]
