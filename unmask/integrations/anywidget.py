"""A canvas for notebooks that shows pictures while they are unmasked, with the library anywidget.

Public idea: ``model = watch(unmask.load("mini"))`` shows a canvas below the cell; from then on every picture that ``model`` draws appears
on it, step by step. Results are those of the model. The slider below the canvas goes back through the steps of the last run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unmask.integrations import missing
from unmask.integrations.frames import Frame, canvases, in_a_row, watched
from unmask.pipeline.model import Model
from unmask.tasks.notebook import to_png

try:
    import anywidget
    import traitlets
    from IPython.display import display
except ModuleNotFoundError as error:
    raise missing("anywidget", "notebook") from error

_LARGEST = (1024, 512)  # pixels of a picture that is sent to the page at every step
_STYLE = """
.unmask-canvas { display: grid; gap: 0.3em; max-width: 32em; }
.unmask-canvas img { min-height: 8em; max-width: 100%; justify-self: start; image-rendering: pixelated; }
.unmask-canvas progress, .unmask-canvas input { width: 100%; }
"""


class Canvas(anywidget.AnyWidget):
    """The widget. ``frame``: the pictures of a run side by side after its last step, as {"picture": a PNG, "number": steps taken, "of":
    steps planned, "masked": the fraction of tokens that are masked}; empty before the first.
    """

    _esm = Path(__file__).with_name("canvas.js")
    _css = _STYLE
    frame = traitlets.Dict({}).tag(sync=True)

    def follow(self, model: Model) -> Model:
        """The model with the same results, whose pictures appear here."""

        def show(frame: Frame) -> None:
            shown = in_a_row(canvases(model, frame.codes))
            shown.thumbnail(_LARGEST)
            state: dict[str, Any] = {"number": frame.number, "of": frame.of, "masked": frame.masked}
            self.frame = {**state, "picture": to_png(shown)}

        return watched(model, show)


def watch(model: Model) -> Model:
    """Show a canvas in the notebook; the model with the same results, whose pictures appear on it."""
    canvas = Canvas()
    display(canvas)
    return canvas.follow(model)
