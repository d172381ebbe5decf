"""The nodes for ComfyUI against its documented contract (``comfyui_double``): no registry has ComfyUI's server."""

from __future__ import annotations

import json
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unmask.pipeline.model import Model
from unmask.tokens.layouts import layout_in, layout_text

from .comfyui_double import FOLDER, Interrupted, Server, comfyui

PLAIN: dict[str, Any] = {"steps": 3, "guidance_scale": -1.0, "temperature": -1.0}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with comfyui() as running:
        yield running


def node(server: Server, name: str, /, **given: Any) -> Any:
    cls = server.nodes[f"Unmask{name}"]
    server.running = name
    with torch.inference_mode():
        return getattr(cls(), cls.FUNCTION)(**given)


def as_image(*images: Image.Image) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255) for image in images])


def test_the_nodes_follow_the_contract(server: Server) -> None:
    own = server.module.NODE_CLASS_MAPPINGS
    assert [name.removeprefix("Unmask") for name in own] == ["Load", "Plan", "Draw", "Edit", "Inpaint", "Ask", "Ground"]
    assert own.keys() == server.module.NODE_DISPLAY_NAME_MAPPINGS.keys()
    for cls in own.values():
        assert cls.CATEGORY == "unmask" and callable(getattr(cls, cls.FUNCTION))
        assert len(cls.RETURN_TYPES) == len(cls.RETURN_NAMES) and cls.DESCRIPTION
        wanted = cls.INPUT_TYPES()
        for kind, *more in (*wanted["required"].values(), *wanted.get("optional", {}).values()):
            assert isinstance(kind, list) or kind in (
                "INT",
                "FLOAT",
                "STRING",
                "BOOLEAN",
                "IMAGE",
                "MASK",
                "UNMASK_MODEL",
            )
            assert not more or isinstance(more[0], dict)


@pytest.mark.slow
def test_the_workflow_runs(server: Server, model: Model) -> None:
    (path,) = (FOLDER / "example_workflows").glob("*.json")
    workflow = json.loads(path.read_text())
    for step in workflow["nodes"]:
        if step["type"] in ("UnmaskDraw", "UnmaskEdit", "UnmaskInpaint"):
            (free,) = [i for i, value in enumerate(step["widgets_values"]) if value == 0]
            step["widgets_values"][free] = 4  # steps, so that the test is short
    done = server.run(workflow)
    boxes, prompt = done["2"][0], "a red apple left of a blue cat"
    assert server.ui["2"] == {"boxes": [boxes]}
    (drawn,) = model.generate(prompt, seed=7, plan=layout_in(boxes), steps=4, attempts=1)
    assert torch.equal(done["3"][0], as_image(drawn.image))
    assert layout_text(drawn.plan).replace("\n", "; ") in done["3"][1]
    (edited,) = model.edit(drawn.image, "make the cat green", seed=1, steps=4)
    assert torch.equal(done["5"][0], as_image(edited.image))
    (box,) = model.ground(drawn.image, ["the cat"]).boxes
    mask = done["7"][0][0]
    rows, columns = mask.nonzero().T
    assert abs(int(columns.min()) - box.x1) <= 1 and abs(int(rows.max()) + 1 - box.y2) <= 1
    assert layout_in(done["7"][2]).objects[0].phrase == "the cat"
    region = Image.fromarray((mask.numpy() * 255).astype(np.uint8))
    filled = model.infill(drawn.image, region, prompt="a red apple left of a yellow dog", seed=2, steps=4)
    assert torch.equal(done["9"][0], as_image(filled.image))
    assert done["11"][0] == model.ask(filled.image, "what is left of the dog?").text
    assert {"3", "5", "9"} <= server.steps.keys()


def test_pictures_of_a_seed_are_those_of_the_model(server: Server, model: Model) -> None:
    images, report = node(server, "Draw", model=model, prompt="a cat", seed=3, count=2, attempts=1, **PLAIN)
    same = model.generate("a cat", n=2, seed=3, steps=3, attempts=1)
    assert torch.equal(images, as_image(*(drawing.image for drawing in same)))
    assert [line.split(" · ")[0] for line in report.splitlines()] == ["seed 3", "seed 4"]


def test_the_preview_shows_every_step(server: Server, model: Model) -> None:
    server.steps.clear()
    images, _ = node(
        server, "Draw", model=model, prompt="a cat", seed=3, count=2, attempts=1, boxes="cat: 0.1,0.1,0.9,0.9", **PLAIN
    )
    seen = server.steps["Draw"]
    assert [(value, total) for value, total, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    assert all(kind == "JPEG" and shown.size == (256, 128) and most == 512 for _, _, (kind, shown, most) in seen)
    first, last = (np.asarray(seen[at][2][1]) for at in (0, -1))
    assert (first == 212).mean() > 0.4 > (last == 212).mean()  # grey tiles where nothing is decided yet
    both = (torch.cat(list(images), 1) * 255).round().byte().numpy()
    assert np.array_equal(last, both)


def test_the_user_can_cancel(server: Server, model: Model) -> None:
    server.steps.clear()
    server.stop_after = 2
    with pytest.raises(Interrupted):
        node(
            server,
            "Edit",
            model=model,
            image=torch.ones(1, 64, 64, 3),
            instruction="make it red",
            seed=0,
            count=1,
            **PLAIN,
        )
    server.stop_after = None
    assert len(server.steps["Edit"]) == 2


def test_a_plan_is_a_list_that_can_be_edited(server: Server, model: Model) -> None:
    prompt = "a dog left of a cat"
    planned = node(server, "Plan", model=model, prompt=prompt, seed=5, boxes="")["result"][0]
    (drawn,) = model.generate(prompt, seed=5, plan=True, steps=2, attempts=1)
    assert planned == layout_text(drawn.plan)
    moved = planned.splitlines()[0].rsplit(":", 1)[0] + ": 0.5,0.5,1,1"
    assert node(server, "Plan", model=model, prompt=prompt, seed=5, boxes=moved)["result"] == (moved,)
    with pytest.raises(ValueError, match="is not a layout; write"):
        node(server, "Plan", model=model, prompt=prompt, seed=5, boxes="a dog on the left")


def test_batches_of_pictures_and_masks(server: Server, model: Model) -> None:
    white = torch.ones(2, 64, 96, 4)  # pictures with transparency, as LoadImage can give them
    images, report = node(server, "Edit", model=model, image=white, instruction="make it red", seed=1, count=2, **PLAIN)
    assert images.shape == (4, 128, 128, 3) and len(report.splitlines()) == 4
    assert torch.equal(images[:2], images[2:]) and not torch.equal(images[0], images[1])
    mask = torch.zeros(2, 32, 48)  # half as large as the picture
    mask[:, 8:24, 8:24] = 1
    filled, _ = node(server, "Inpaint", model=model, image=white[:1], mask=mask, prompt="a cat", seed=1, **PLAIN)
    assert len(filled) == 2 and torch.equal(filled[0], filled[1])
    with pytest.raises(ValueError, match="3 masks came with 2 pictures"):
        node(server, "Inpaint", model=model, image=white, mask=torch.ones(3, 8, 8), prompt="a cat", seed=1, **PLAIN)
    masks, shown, boxes = node(server, "Ground", model=model, image=white, phrases="the cat\n\nthe dog\n")
    assert masks.shape == (4, 64, 96) and len(shown) == 2 and isinstance(boxes, str)


def test_mistakes(server: Server, tmp_path: Path) -> None:
    from ..tiny_llada import make

    given: dict[str, Any] = {"device": "cpu", "dtype": "as stored", "speed": "exact", "download": False}
    with pytest.raises(ValueError, match="is a text model, which draws nothing"):
        node(server, "Load", name=str(make(tmp_path / "llada")), **given)
    (half,) = node(server, "Load", name="mini", **{**given, "dtype": "bfloat16", "speed": "fast"})
    assert half.parts.net.embed.weight.dtype == torch.bfloat16
    assert half.generate("a cat", plan=False, attempts=1, steps=4)[0].approximate  # fast mode acted


PAGE = """
globalThis.extensions = [];
export const app = { registerExtension: (one) => globalThis.extensions.push(one) };
"""
USE = """
import "./extensions/unmask/boxes.js";
const [extension] = globalThis.extensions, told = [];
class Plan { constructor(text) { this.widgets = [{name: "prompt", value: ""}, {name: "boxes", value: text}]; } }
Plan.prototype.onExecuted = (output) => told.push(output);
extension.beforeRegisterNodeDef(Plan, {name: "UnmaskPlan"});
const texts = ["", " ", "cat: 0,0,1,1"].map((text) => {
  const node = new Plan(text);
  node.onExecuted({boxes: ["dog: 0,0,1,1"]});
  return node.widgets[1].value;
});
class Other {}
extension.beforeRegisterNodeDef(Other, {name: "UnmaskDraw"});
console.log(JSON.stringify({texts, told: told.length, other: "onExecuted" in Other.prototype}));
"""


@pytest.mark.skipif(not shutil.which("node"), reason="no node")
def test_the_page_writes_a_plan_into_an_empty_field(tmp_path: Path) -> None:
    files = {"package.json": '{"type": "module"}', "scripts/app.js": PAGE, "use.js": USE}
    files["extensions/unmask/boxes.js"] = (FOLDER / "web" / "boxes.js").read_text()
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    done = subprocess.run(["node", "use.js"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    boxes = "dog: 0,0,1,1"
    assert json.loads(done.stdout) == {"texts": [boxes, boxes, "cat: 0,0,1,1"], "told": 3, "other": False}


def test_the_folder_is_what_the_registry_reads() -> None:
    import unmask

    about = tomllib.loads((FOLDER / "pyproject.toml").read_text())
    assert about["project"]["version"] == unmask.__version__ and about["tool"]["comfy"]["DisplayName"]
    assert (FOLDER / "requirements.txt").read_text().split() == about["project"]["dependencies"]
