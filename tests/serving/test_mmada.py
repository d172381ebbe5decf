"""MMaDA behind the server: the OpenAI client draws and chats, and the model card lists only what it can do."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import unmask
from unmask.serving.server import Server

from .served import client, serving

torch.set_num_threads(1)
GOLDEN = Path(__file__).parents[1] / "golden" / "mmada_tiny"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(unmask.load(GOLDEN), name="mmada") as served:
        yield served


def test_it_draws_what_it_draws_alone(server: Server) -> None:
    made = client(server).images.generate(model="mmada", prompt="a red cat", extra_body={"seed": 5})
    assert made.data and made.data[0].b64_json
    alone = unmask.load(GOLDEN).generate("a red cat", seed=5)[0].image
    assert Image.open(io.BytesIO(base64.b64decode(made.data[0].b64_json))).convert("RGB").tobytes() == alone.tobytes()


def test_it_chats_with_and_without_a_picture(server: Server) -> None:
    shown = io.BytesIO()
    Image.new("RGB", (40, 32), "red").save(shown, "PNG")
    url = "data:image/png;base64," + base64.b64encode(shown.getvalue()).decode()
    look = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what?"}]
    said = []
    for content in ("what?", look):
        reply = client(server).chat.completions.create(
            model="mmada",
            messages=[{"role": "user", "content": content}],  # type: ignore[misc, list-item]
            max_tokens=6,
        )
        said.append(reply.choices[0].message.content)
    assert said[0] and said[0] != said[1]


def test_an_answer_without_a_picture_has_a_draft_and_settings(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN, tmp_path / "model"))
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"max_sequence_length": 1024}))  # its answers have 512 tokens
    model, few = unmask.load(folder), ["schedule.steps=2"]
    with serving(model, name="mmada") as server:
        create = client(server).chat.completions.create
        for draft in ("it is [mask:3]", ""):
            own: dict[str, Any] = {"draw": False, "settings": few, "draft": draft}
            reply = create(model="mmada", messages=[{"role": "user", "content": "what?"}], seed=3, extra_body=own)
            assert reply.choices[0].message.content == model.ask(None, "what?", seed=3, settings=few, draft=draft).text


def test_its_card_lists_what_it_can_do(server: Server) -> None:
    (card,) = client(server).models.list().data
    assert card.model_dump()["unmask"]["tasks"] == ["generate", "ask", "infill", "chat"]
