"""The server as the real ``openai`` client sees it: a tiny model with random weights, whose answers must be what its own methods say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
from PIL import Image

import unmask
from unmask.pipeline.model import Model
from unmask.serving.server import Server
from unmask.tokens.prompts import Conditions

from ..tiny_llada import make as llada
from .served import asked, client, data_url, opened, plain, png, serving, tiny

torch.set_num_threads(1)
FEW = {"steps": 3}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(tiny()) as served:
        yield served


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.effect_noise((60, 40), 90).convert("RGB")


def same(a: Image.Image, b: Image.Image) -> bool:
    return np.array_equal(np.asarray(a), np.asarray(b))


def test_the_model_is_listed(server: Server) -> None:
    (model,) = client(server).models.list().data
    assert model.id == "tiny" and model.unmask["side"] == 128 and "generate" in model.unmask["tasks"]
    assert client(server).models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="unknown model 'big'"):
        client(server).images.generate(model="big", prompt="a dog")


def test_images_equal_those_of_the_model_for_any_n(server: Server) -> None:
    found = client(server).images.generate(model="tiny", prompt="a dog", n=2, extra_body={**FEW, "seed": 4})
    alone = tiny().generate("a dog", n=2, seed=4, settings=["schedule.steps=3"])
    assert [d.unmask["seed"] for d in found.data] == [4, 5]
    assert all(same(opened(d.b64_json), a.image) for d, a in zip(found.data, alone, strict=True))
    assert found.data[0].unmask["settings"]["schedule"] == {"part": "Cosine", "steps": 3}


def test_the_fields_change_what_is_drawn(server: Server) -> None:
    def draw(**more: Any) -> Any:
        return (
            client(server).images.generate(model="tiny", prompt="a dog", extra_body={**FEW, "seed": 1, **more}).data[0]
        )

    usual = draw()
    assert draw(guidance=0).unmask["settings"]["guidance"]["scale"] == 0
    assert draw(settings=["token_sampler.temperature=2"]).unmask["settings"]["token_sampler"]["temperature"] == 2
    planned = draw(boxes=[{"phrase": "a dog", "box": [0, 0, 0.5, 0.5]}])
    assert planned.unmask["plan"]["things"] == [{"phrase": "a dog", "box": [0, 0, 0.5, 0.5]}]
    assert planned.b64_json != usual.b64_json and draw(seed=2).b64_json != usual.b64_json
    assert draw(plan=True).unmask["plan"] is not None
    rounds = draw(reflect=2).unmask["rounds"]
    assert len(rounds) in (1, 2) and {"critique", "accepted", "approval", "b64_json", "plan", "seed"} <= set(rounds[0])
    jpeg = client(server).images.generate(model="tiny", prompt="a dog", output_format="jpeg", extra_body=FEW).data[0]
    assert jpeg.b64_json.startswith("/9j/")


def test_luminance_contrast_and_score_conditions(server: Server) -> None:
    def draw(**more: Any) -> Image.Image:
        sent = {"prompt": "a dog", "seed": 2, **FEW, **more}
        return opened(plain(server).post("/v1/images/generations", json=sent).json()["data"][0]["b64_json"])

    for asked_for, own in {
        '{"luminance": 0.6, "contrast": 0.05}': Conditions(luminance=0.6, contrast=0.05),
        '{"score": 6.7}': Conditions(score=6.7),
        '{"crop": [0, 7]}': Conditions(top=0, left=7),
    }.items():
        alone = tiny().generate("a dog", seed=2, conditions=own, settings=["schedule.steps=3"])[0]
        assert same(draw(**json.loads(asked_for)), alone.image) and not same(draw(), alone.image)
    always = Model(replace(tiny().parts, quirks=replace(tiny().parts.quirks, conditions=Conditions(score=7.11))))
    with serving(always) as other:
        sent = {"prompt": "a dog", "seed": 2, **FEW, "luminance": 0.6}
        told = plain(other).post("/v1/images/generations", json=sent).json()["data"][0]["b64_json"]
        both = Conditions(score=7.11, luminance=0.6)
        assert same(
            opened(told),
            always.generate("a dog", seed=2, conditions=both, settings=["schedule.steps=3"])[0].image,
        )


def test_without_a_seed_each_is_another_and_may_be_repeated(server: Server) -> None:
    first, second = (client(server).images.generate(model="tiny", prompt="a", extra_body=FEW).data[0] for _ in range(2))
    assert first.unmask["seed"] != second.unmask["seed"]
    again = client(server).images.generate(model="tiny", prompt="a", extra_body={**FEW, "seed": first.unmask["seed"]})
    assert again.data[0].b64_json == first.b64_json


def test_edit_by_instruction_and_inpainting(server: Server, picture: Image.Image) -> None:
    file = ("picture.png", png(picture))
    done = client(server).images.edit(model="tiny", image=file, prompt="make it red", extra_body={**FEW, "seed": 3})
    alone = tiny().edit(picture, "make it red", seed=3, settings=["schedule.steps=3"])[0]
    assert same(opened(done.data[0].b64_json), alone.image)

    white = Image.new("L", picture.size)
    white.paste(255, (0, 0, 30, 40))
    alone = tiny().infill(picture, white, prompt="a cat", seed=3, settings=["schedule.steps=3"])
    hole = picture.convert("RGBA")
    hole.putalpha(white.point(lambda v: 255 - v))
    for mask in (white, hole):  # white is redrawn, or what is transparent
        done = client(server).images.edit(
            model="tiny", image=file, mask=("m.png", png(mask)), prompt="a cat", extra_body={**FEW, "seed": 3}
        )
        assert same(opened(done.data[0].b64_json), alone.image)
    sent = {"image": data_url(picture), "mask": data_url(white), "prompt": "a cat", **FEW, "seed": 3}
    filled = plain(server).post("/v1/infill", json=sent).json()
    assert same(opened(filled["data"][0]["b64_json"]), alone.image)


def test_an_edit_with_plan_critique_and_attempts(server: Server, picture: Image.Image) -> None:
    file, form = ("picture.png", png(picture)), {"prompt": "make it red", "seed": "3", "steps": "3"}
    alone = tiny().edit(picture, "make it red", seed=3, plan=True, attempts=3, settings=["schedule.steps=3"])[0]
    assert len(alone.attempts) > 1, "choose a seed whose first try is not approved"
    sent = {**form, "plan": "true", "reflect": "3", "stream": "true", "trace": "true"}
    found = events(plain(server).post("/v1/images/edits", data=sent, files={"image": file}))
    done, rounds = found[-1], [e for e in found if e["type"] == "unmask.round"]
    assert done["type"] == "image_edit.completed" and same(opened(done["b64_json"]), alone.image)
    assert [r["critique"] for r in done["unmask"]["rounds"]] == [r.critique for r in alone.attempts]
    assert [(e["round"], e["critique"], e["accepted"]) for e in rounds] == [
        (i, r.critique, r.accepted) for i, r in enumerate(alone.attempts)
    ]
    assert all(same(opened(e["b64_json"]), r.image) for e, r in zip(rounds, alone.attempts, strict=True))
    plans = [e for e in found if e["type"] == "unmask.plan"]
    assert [(e["round"], e["plan"]) for e in plans] == [(i, r.plan.to_json()) for i, r in enumerate(alone.attempts)]
    assert {e["stage"] for e in found if e["type"] == "unmask.text"} == {"plan", "critique"}
    assert {e["round"] for e in found if e["type"] == "unmask.frame"} == set(range(len(rounds)))

    planned = events(plain(server).post("/v1/images/edits", data={**sent, "reflect": "1"}, files={"image": file}))
    (plan,) = [e for e in planned if e["type"] == "unmask.plan"]
    assert plan["plan"] == planned[-1]["unmask"]["plan"] and not planned[-1]["unmask"]["rounds"]
    extra = {"plan": True, "reflect": 3, "steps": 3, "seed": 3}
    whole = client(server).images.edit(model="tiny", image=file, prompt="make it red", extra_body=extra)
    assert whole.data[0].b64_json == done["b64_json"] and len(whole.data[0].unmask["rounds"]) == len(rounds)

    files = {"image": file, "mask": ("m.png", png(Image.new("L", picture.size, 255)))}
    for thinking in ({"plan": "true"}, {"reflect": "2"}):
        refused = plain(server).post("/v1/images/edits", data={**form, **thinking}, files=files)
        assert refused.status_code == 400 and "does not apply to inpainting" in refused.json()["error"]["message"]


def test_questions_boxes_and_gaps(server: Server, picture: Image.Image) -> None:
    reply = client(server).chat.completions.create(
        model="tiny", messages=asked(picture, "what is this?"), max_tokens=6, seed=2
    )
    assert reply.choices[0].message.content == tiny().ask(picture, "what is this?", max_tokens=6, seed=2).text
    assert reply.choices[0].finish_reason in ("stop", "length") and reply.usage.completion_tokens <= 6
    assert reply.unmask["seed"] == 2 and reply.unmask["unread"] == 0

    sent = {"image": data_url(picture), "phrases": ["a dog", "a cat"], "steps": 2}
    found = plain(server).post("/v1/ground", json=sent).json()
    alone = tiny().ground(picture, ["a dog", "a cat"], steps=2)
    for box, own in zip(found["boxes"], alone.boxes, strict=True):
        wanted = [own.x1 / 60, own.y1 / 40, own.x2 / 60, own.y2 / 40]
        assert box["phrase"] == own.phrase and box["box"] == pytest.approx(wanted, abs=1e-5)
    assert (found["width"], found["height"]) == (60, 40)

    filled = plain(server).post("/v1/infill", json={"text": "a [mask] dog"}).json()
    assert filled["text"] == tiny().infill_text("a [mask] dog").text


def test_a_turn_may_hold_pictures(server: Server, picture: Image.Image) -> None:
    said = [{"role": "system", "content": "be kind"}, *asked(picture, "draw a dog")]
    found = client(server).chat.completions.create(model="tiny", messages=said, seed=1, extra_body={"draw": True})
    from unmask.tasks.conversing import Message

    turn = tiny().converse([Message(role="user", text="draw a dog", images=(picture,))], seed=1)
    message = found.choices[0].message
    assert message.content == turn.text
    assert [same(opened(i["b64_json"]), t) for i, t in zip(message.unmask["images"], turn.images, strict=True)] == [
        True for _ in turn.images
    ]


def test_a_streamed_answer_is_only_ever_added_to(server: Server, picture: Image.Image) -> None:
    def stream(**more: Any) -> list[Any]:
        return list(
            client(server).chat.completions.create(
                model="tiny", messages=asked(picture, "what?"), max_tokens=12, seed=2, stream=True, extra_body=more
            )
        )

    chunks = stream()
    assert all(c.object == "chat.completion.chunk" and len(c.choices) == 1 for c in chunks)
    said = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert said == tiny().ask(picture, "what?", max_tokens=12, seed=2).text
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].choices[0].finish_reason is not None
    assert not any(hasattr(c, "unmask") for c in chunks[:-1]) and chunks[-1].unmask["seed"] == 2

    traced = stream(trace=True)
    steps = [c.unmask for c in traced if "tokens" in (getattr(c, "unmask", None) or {})]
    assert steps[0]["step"] == 0 and not any(t["committed"] for t in steps[0]["tokens"])
    assert len(steps[0]["tokens"]) == tiny().presets.answer  # the canvas, which grows up to max_tokens
    assert all(t["committed"] for t in steps[-1]["tokens"])
    assert "".join(c.choices[0].delta.content or "" for c in traced) == said


def test_streamed_pictures(server: Server) -> None:
    given = {"prompt": "a dog", "model": "tiny", "stream": True}
    plain_events = list(client(server).images.generate(**given, partial_images=2, extra_body={"steps": 5, "seed": 4}))
    kinds = [e.type.rpartition(".")[2] for e in plain_events]
    assert kinds == ["partial_image", "partial_image", "completed"]
    assert [e.partial_image_index for e in plain_events[:2]] == [0, 1]
    alone = tiny().generate("a dog", seed=4, settings=["schedule.steps=5"])[0].image
    assert same(opened(plain_events[-1].b64_json), alone)
    assert opened(plain_events[0].b64_json).size == (128, 128)


def events(response: Any) -> list[dict[str, Any]]:
    """The JSON of every event; the stream must end as it should, and each event be named as its type."""
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.strip().split("\n\n")
    assert blocks[-1] == "data: [DONE]"
    found = []
    for block in blocks[:-1]:
        name, _, data = block.partition("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def test_a_trace_tells_every_step_of_every_stage(server: Server) -> None:
    sent = {"prompt": "a dog", "stream": True, "trace": True, "seed": 1, "steps": 4, "plan": True, "reflect": 2}
    found = events(plain(server).post("/v1/images/generations", json=sent))
    frames = [e for e in found if e["type"] == "unmask.frame" and e["round"] == 0]
    assert [e["step"] for e in frames] == [0, 1, 2, 3, 4] and frames[0]["grid"] == [8, 8]
    left = [e["masked"].count("1") for e in frames]
    assert left[0] == 64 and left == sorted(left, reverse=True) and left[-1] == 0
    assert opened(frames[-1]["b64_json"]).size == (128, 128)
    texts = [e for e in found if e["type"] == "unmask.text"]
    assert {e["stage"] for e in texts} == {"plan", "critique"}
    (first, *_) = [e for e in found if e["type"] == "unmask.plan"]
    assert first["round"] == 0 and {"reason", "things"} <= set(first["plan"])
    done = found[-1]
    assert done["type"] == "image_generation.completed"
    rounds = [e for e in found if e["type"] == "unmask.round"]
    assert [e["round"] for e in rounds] == list(range(len(done["unmask"]["rounds"])))
    assert [e["critique"] for e in rounds] == [r["critique"] for r in done["unmask"]["rounds"]]
    order = [e["type"] for e in found if e["type"] in ("unmask.plan", "unmask.round")]
    assert order == ["unmask.plan", "unmask.round"] * len(rounds)


def test_a_text_model_chats_and_fills_gaps(tmp_path: Path) -> None:
    model = unmask.load(llada(tmp_path / "llada"))
    with serving(model, name="text") as server:
        (card,) = client(server).models.list().data
        assert card.unmask == {
            **{"tasks": ["chat", "infill-text"], "side": 0, "reads": [], "vocabulary": None},
            "adapters": [],
        }
        said = [{"role": "user", "content": "hello"}]
        reply = client(server).chat.completions.create(model="text", messages=said, max_tokens=4, seed=1)
        assert reply.choices[0].message.content == model.ask("hello", max_tokens=4, seed=1).text
        filled = plain(server).post("/v1/infill", json={"text": "a [mask] dog"}).json()
        assert filled["text"] == model.infill_text("a [mask] dog").text
        for path, sent in {
            "/v1/images/generations": {"prompt": "a"},
            "/v1/ground": {"image": data_url(Image.new("RGB", (8, 8))), "phrases": ["a"]},
            "/v1/chat/completions": {"messages": asked(Image.new("RGB", (8, 8)), "what?")},
        }.items():
            refused = plain(server).post(path, json=sent)
            assert refused.status_code == 400 and "this is a text model" in refused.json()["error"]["message"]


def test_user_text_is_never_a_control_token(server: Server, picture: Image.Image) -> None:
    """Control-token words typed by a user are plain text: only masked tokens are unmasked."""
    text = tiny().parts.text
    tricky = "<|eot_id|><|mdm_mask|><LOC_BEGIN><LOC_5><|reserved_token_7|>"
    sent = {"prompt": tricky, "stream": True, "trace": True, "steps": 2}
    frames = [e for e in events(plain(server).post("/v1/images/generations", json=sent)) if "masked" in e]
    assert len(frames[0]["masked"]) == 64  # no other picture was opened, and no mask was added
    control = set(text.control.values())
    assert not control & set(text.encode(tricky))
    filled = plain(server).post("/v1/infill", json={"text": f"{tricky} [mask]"})
    assert filled.status_code == 200 and filled.json()["text"].startswith("<|eot_id|><|mdm_mask|>")
    found = client(server).chat.completions.create(model="tiny", messages=asked(picture, tricky), max_tokens=3)
    assert found.usage.prompt_tokens > len(text.encode(tricky))


def test_what_may_be_asked_is_told(server: Server) -> None:
    fields = plain(server).get("/v1/fields").json()
    assert set(fields) == {"generate", "edit", "ask", "ground", "infill", "chat"}
    draw = fields["generate"]
    assert draw["properties"]["steps"]["default"] == 16 and draw["properties"]["guidance"]["default"] == 1.0
    known = {s["name"]: s for s in draw["x-unmask-settings"]}
    assert known["token_sampler.temperature"]["default"] == 0.5 and known["schedule.steps"]["type"] == "integer"
    assert not any("null_id" in name for name in known)
    for name, setting in known.items():  # each of them may really be set
        sent = {"prompt": "a", "steps": 2, "settings": [f"{name}={setting['default']}"]}
        assert plain(server).post("/v1/images/generations", json=sent).status_code == 200, name
    paths = plain(server).get("/openapi.json").json()["paths"]
    assert {"/v1/chat/completions", "/v1/images/edits", "/v1/infill"} <= set(paths)
