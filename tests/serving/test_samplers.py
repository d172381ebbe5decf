"""A method's sampler by name: over HTTP, in a file of requests and at the command line, with the result of the Python API."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unmask.cli.main import main
from unmask.evaluation.sampler_axes import named_change
from unmask.methods.eb_sampler import eb_sampler
from unmask.methods.remdm import remdm
from unmask.pipeline.model import Model
from unmask.serving.batch import Share, plan, run_batch
from unmask.serving.server import Server

from .served import data_url, opened, plain, serving, tiny

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(tiny()) as running:
        yield running


def same(a: Image.Image, b: Image.Image) -> bool:
    return np.array_equal(np.asarray(a), np.asarray(b))


def remasked(eta: float) -> Model:
    return tiny().with_sampler(lambda sampler: remdm(sampler, eta=eta))


def test_a_picture_over_http(server: Server) -> None:
    sent: dict[str, Any] = {"prompt": "a dog", "seed": 2, "steps": 5, "plan": False}

    def draw(**more: Any) -> Image.Image:
        reply = plain(server).post("/v1/images/generations", json={**sent, **more})
        return opened(reply.json()["data"][0]["b64_json"])

    alone = remasked(0.7).generate("a dog", seed=2, plan=False, steps=5)[0]
    assert same(draw(sampler="remdm", settings=["eta=0.7"]), alone.image)
    warm = remasked(0.7).generate("a dog", seed=2, plan=False, steps=5, settings=["token_sampler.temperature=2"])[0]
    assert same(draw(sampler="remdm", settings=["eta=0.7", "token_sampler.temperature=2"]), warm.image)
    assert not same(draw(), alone.image)


def parts(schedule: str | None, cache: str | None = None, eta: float | None = None) -> Model:
    model = tiny() if eta is None else remasked(eta)
    return model.with_sampler(named_change(schedule, cache))


def test_a_schedule_and_a_cache_over_http(server: Server) -> None:
    sent: dict[str, Any] = {"prompt": "a dog", "seed": 2, "plan": False}

    def draw(**more: Any) -> tuple[Image.Image, Any]:
        reply = plain(server).post("/v1/images/generations", json={**sent, **more})
        assert reply.status_code == 200, reply.text
        found = reply.json()["data"][0]
        return opened(found["b64_json"]), found["unmask"]["settings"]

    wanted = parts("cosine:steps=5", "block:refresh=2").generate("a dog", seed=2, plan=False)[0]
    image, settings = draw(schedule="cosine:steps=5", cache="block:refresh=2")
    assert same(image, wanted.image) and settings == json.loads(json.dumps(wanted.settings))
    assert settings["schedule"]["part"] == "Cosine" and settings["cache"]["part"] == "BlockCache"
    assert same(
        draw(schedule="cosine", steps=5)[0], parts("cosine:steps=5").generate("a dog", seed=2, plan=False)[0].image
    )
    both = parts("shift:steps=5", eta=0.7).generate("a dog", seed=2, plan=False)[0]
    assert same(draw(schedule="shift:steps=5", sampler="remdm", settings=["eta=0.7"])[0], both.image)


def test_answers_with_a_cache_over_http(server: Server) -> None:
    picture = Image.new("RGB", (128, 128), "red")
    parts_ = [{"type": "image_url", "image_url": {"url": data_url(picture)}}, {"type": "text", "text": "what is this?"}]
    sent = {"seed": 1, "schedule": "equal:steps=4", "cache": "prefix"}
    reply = plain(server).post("/v1/chat/completions", json={**sent, "messages": [{"role": "user", "content": parts_}]})
    wanted = parts("equal:steps=4", "prefix").ask(picture, "what is this?", seed=1)
    assert reply.json()["choices"][0]["message"]["content"] == wanted.text


def test_answers_and_turns_over_http(server: Server) -> None:
    picture = data_url(Image.new("RGB", (128, 128), "red"))
    parts = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": "what is this?"}]
    sent = {"seed": 1, "sampler": "eb_sampler", "settings": ["gamma=100"]}
    reply = plain(server).post("/v1/chat/completions", json={**sent, "messages": [{"role": "user", "content": parts}]})
    changed = tiny().with_sampler(lambda sampler: eb_sampler(sampler, gamma=100.0))
    wanted = changed.ask(Image.new("RGB", (128, 128), "red"), "what is this?", seed=1)
    assert reply.json()["choices"][0]["message"]["content"] == wanted.text
    turn = plain(server).post(
        "/v1/chat/completions", json={**sent, "messages": [{"role": "user", "content": "draw a dog"}]}
    )
    assert turn.status_code == 200, turn.text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"sampler": "remmd"}, "did you mean 'remdm'"),
        ({"sampler": "remdm", "settings": ["gamma=1"]}, "no argument 'gamma'"),
        ({"sampler": "remdm", "settings": ["eta=2"]}, "eta must be in 0..1"),
        ({"sampler": "remdm", "settings": ["eta=inf"]}, "beyond all use|at most"),
        ({"schedule": "cosin"}, "there is no schedule 'cosin'; did you mean 'cosine'"),
        ({"schedule": "equal:steps=1e9"}, "steps is above 16384"),
        ({"cache": "all"}, "there is no cache 'all'"),
        ({"cache": "block:refresh=0.5"}, "refresh counts steps"),
    ],
)
def test_what_does_not_exist_is_a_user_error(server: Server, more: dict[str, Any], message: str) -> None:
    reply = plain(server).post("/v1/images/generations", json={"prompt": "a", **more})
    assert reply.status_code == 400
    with pytest.raises(ValueError, match=message):
        raise ValueError(reply.json()["error"]["message"])


def test_a_file_of_requests(tmp_path: Path) -> None:
    line: dict[str, Any] = {"id": "a", "task": "generate", "prompt": "a dog", "seed": 2, "plan": False}
    line["settings"] = ["schedule.steps=5", "eta=0.7"]
    lines = [{**line, "sampler": "remdm"}, {**line, "id": "b", "sampler": "remmd"}]
    manifest = tmp_path / "in.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)))
    done = run_batch(tiny(), plan(manifest, tmp_path / "out", Share()), live=2)
    assert (done.done, done.failed) == (2, 1)
    (picture,) = (tmp_path / "out").rglob("*.png")
    assert same(
        Image.open(picture).convert("RGB"), remasked(0.7).generate("a dog", seed=2, plan=False, steps=5)[0].image
    )


def test_a_schedule_and_a_cache_in_a_file_of_requests(tmp_path: Path) -> None:
    line: dict[str, Any] = {"id": "a", "task": "generate", "prompt": "a dog", "seed": 2, "plan": False}
    lines = [{**line, "schedule": "cosine:steps=5", "cache": "block"}, {**line, "id": "b", "cache": "all"}]
    manifest = tmp_path / "in.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)))
    done = run_batch(tiny(), plan(manifest, tmp_path / "out", Share()), live=2)
    assert (done.done, done.failed) == (2, 1)
    (picture,) = (tmp_path / "out").rglob("*.png")
    wanted = parts("cosine:steps=5", "block").generate("a dog", seed=2, plan=False)[0]
    assert same(Image.open(picture).convert("RGB"), wanted.image)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.png"
    words = ["generate", "a dog", "--steps", "3", "--out", str(out), "--json"]
    assert main([*words, "--sampler", "remdm", "-o", "eta=0.7", "-o", "guidance.scale=2"]) == 0
    settings = json.loads(capsys.readouterr().out)[0]["settings"]
    assert settings["selection"]["sigma"] == {"part": "Cap", "eta": 0.7} and settings["guidance"]["scale"] == 2
    assert main([*words, "--sampler", "remmd"]) == 2
    assert "error: there is no sampler 'remmd'\nhint: did you mean 'remdm'?" in capsys.readouterr().err
    assert main(["methods"]) == 0
    assert "arXiv 2503.00307" in capsys.readouterr().out
    assert main(["methods", "show", "remdm", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"][0] == "--sampler remdm -o eta=0.3 -o switch=1.0"
    assert main(["methods", "show", "eb_sampler"]) == 0 and "H_1 + ... + H_k" in capsys.readouterr().out
    assert main(["methods", "show", "nothing"]) == 2
    assert re.search(r"the methods are .*eb_sampler, .*remdm", capsys.readouterr().err)
