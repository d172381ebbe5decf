"""The canvas for notebooks: with the real anywidget in a notebook that nbclient executes, and its page part in a browser."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unmask.pipeline.model import Model

from ..pages import ROOT, environment
from ..serving.browser import MISSING, chromium, launched

SCRIPT = ROOT / "unmask" / "integrations" / "canvas.js"
CELLS = (
    'import unmask\nfrom unmask.integrations.anywidget import watch\n\nmodel = watch(unmask.load("mini", device="cpu"))',
    'model.generate("a cat", seed=3, steps=3, n=2, plan=False, attempts=1)',
)


def test_a_notebook_shows_every_step(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("anywidget")
    nbclient: Any = pytest.importorskip("nbclient")
    nbformat: Any = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    seen: list[dict[str, Any]] = []

    class Client(nbclient.NotebookClient):  # type: ignore[misc, name-defined]
        def handle_comm_msg(self, outs: Any, msg: dict[str, Any], cell_index: int) -> None:
            data = msg["content"]["data"]
            if data.get("method") == "update" and "frame" in data["state"]:
                seen.append({**data["state"]["frame"], "picture": bytes(msg["buffers"][0]), "cell": cell_index})
            super().handle_comm_msg(outs, msg, cell_index)

    for name, value in environment().items():
        monkeypatch.setitem(os.environ, name, value)
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    done = Client(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    (shown,) = done.cells[0].outputs
    assert "application/vnd.jupyter.widget-view+json" in shown["data"]
    assert [(frame["number"], frame["of"], frame["cell"]) for frame in seen] == [(1, 3, 1), (2, 3, 1), (3, 3, 1)]
    assert seen[0]["masked"] > seen[1]["masked"] > seen[2]["masked"] == 0
    drawn = model.generate("a cat", seed=3, steps=3, n=2, plan=False, attempts=1)
    both = np.concatenate([np.asarray(drawing.image) for drawing in drawn], 1)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(seen[-1]["picture"]))), both)
    widgets = done.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"].values()
    (kept,) = [one["state"] for one in widgets if "frame" in one["state"]]
    assert kept["_esm"] == SCRIPT.read_text() and kept["frame"]["number"] == 3


PAGE = """async (script) => {
  const { default: widget } = await import(`data:text/javascript;base64,${script}`);
  const heard = new Set(), state = { frame: {} };
  const model = { get: (name) => state[name], on: (_, f) => heard.add(f), off: (_, f) => heard.delete(f) };
  window.tell = (number, of, masked) => {
    state.frame = { number, of, masked, picture: new DataView(new TextEncoder().encode("png").buffer) };
    heard.forEach((f) => f());
  };
  window.heard = heard;
  window.close_ = widget.render({ model, el: document.body });
}"""


@pytest.mark.skipif(not chromium(), reason=MISSING)
def test_the_page_follows_and_goes_back() -> None:
    with launched() as browser:
        page = browser.new_page()
        page.evaluate(PAGE, base64.b64encode(SCRIPT.read_bytes()).decode())
        image, slider = page.locator("img"), page.locator("input")
        assert image.get_attribute("alt") == "no picture yet"
        for number, masked in ((1, 0.75), (2, 0.5), (3, 0.25)):
            page.evaluate(f"tell({number}, 4, {masked})")
            assert image.get_attribute("alt") == f"step {number} of 4, {round(100 * masked)} % masked"
        slider.fill("0")
        page.evaluate("tell(4, 4, 0)")  # a look back is not interrupted
        assert image.get_attribute("alt") == "step 1 of 4, 75 % masked" and slider.get_attribute("max") == "3"
        slider.fill("3")
        assert page.locator("output").inner_text() == "step 4 of 4, 0 % masked"
        page.evaluate("tell(1, 2, 0.5)")  # a new run
        assert image.get_attribute("alt") == "step 1 of 2, 50 % masked" and slider.get_attribute("max") == "0"
        assert (image.get_attribute("src") or "").startswith("blob:")
        page.evaluate("close_()")
        assert page.evaluate("heard.size") == 0
