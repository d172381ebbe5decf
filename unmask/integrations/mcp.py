"""A server of the Model Context Protocol, with which assistants draw, edit, ask, ground and infill.

Public idea: ``server_for(model, Shelf())`` is an ``MCPServer`` of the official SDK; ``unmask mcp`` runs it over stdin and stdout. A
language model cannot pass pictures, so every picture that a tool returns has a name (picture-1, …), which the other tools take.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

from PIL import Image, ImageDraw
from pydantic import BaseModel, Field

from unmask import __version__
from unmask.integrations import missing
from unmask.integrations.shelf import Shelf
from unmask.pipeline.model import Model
from unmask.pipeline.text_model import TextModel
from unmask.tasks.notebook import to_png
from unmask.tasks.results import Drawing
from unmask.tokens.pictures import draw_boxes

try:
    from mcp.server.mcpserver import Image as Picture
    from mcp.server.mcpserver import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp.types import ToolAnnotations
except ModuleNotFoundError as error:
    raise missing("mcp", "mcp") from error

Named = Annotated[
    str, Field(description="The name of a picture (picture-1), a data URL, or a file in the folder of --pictures.")
]
Seed = Annotated[int, Field(description="Of the random numbers: the same seed gives the same result.")]
Steps = Annotated[int | None, Field(description="Of the unmasking schedule; null for the model's own number.", ge=1)]
Count = Annotated[int, Field(description="How many pictures, with consecutive seeds.", ge=1, le=8)]
Corners = Annotated[
    tuple[float, float, float, float] | None,
    Field(description="The region as corners x1, y1, x2, y2 in pixels, as ground returns them."),
]
_INSTRUCTIONS = """Tools of one model that draws pictures, edits them, answers questions about them and finds objects in them.
Pictures have names, such as picture-1. Every tool that returns a picture says its name; pass it as `image` to the other tools."""


class Found(BaseModel):
    """A phrase and its box, corners in pixels."""

    phrase: str
    x1: float
    y1: float
    x2: float
    y2: float


class Boxes(BaseModel):
    """One box for every phrase. ``picture``: the name of the picture with the boxes drawn in."""

    boxes: list[Found]
    width: int
    height: int
    picture: str


@dataclass(frozen=True, kw_only=True)
class PictureTools:
    """The tools of a model that draws. Calls run one after the other."""

    model: Model
    shelf: Shelf
    lock: threading.Lock = field(default_factory=threading.Lock)

    def draw(self, prompt: str, n: Count = 1, seed: Seed = 0, steps: Steps = None) -> list[Any]:
        """Draw pictures from a description in English, such as "a dog left of a cat"."""
        with self._call():
            return self._shown(self.model.generate(prompt, n=n, seed=seed, steps=steps))

    def edit(self, image: Named, instruction: str, seed: Seed = 0, steps: Steps = None) -> list[Any]:
        """Change a picture by an instruction in English, such as "make the cat blue"."""
        with self._call():
            return self._shown(self.model.edit(self.shelf.open(image), instruction, seed=seed, steps=steps))

    def ask(self, image: Named, question: str, seed: Seed = 0) -> str:
        """Answer a question about a picture."""
        with self._call():
            return self.model.ask(self.shelf.open(image), question, seed=seed).text

    def ground(self, image: Named, phrases: list[str]) -> Boxes:
        """Find an object for every phrase, such as "the cat", as a box in pixels of the picture."""
        with self._call():
            picture = self.shelf.open(image)
            found = self.model.ground(picture, phrases)
            name = self.shelf.keep(draw_boxes(picture, [(box.phrase, box.corners) for box in found.boxes]))
        boxes = [Found(phrase=b.phrase, x1=b.x1, y1=b.y1, x2=b.x2, y2=b.y2) for b in found.boxes]
        return Boxes(boxes=boxes, width=picture.width, height=picture.height, picture=name)

    def infill(
        self, image: Named, prompt: str, box: Corners = None, mask: str = "", seed: Seed = 0, steps: Steps = None
    ) -> list[Any]:
        """Draw a region of a picture anew, so that the whole picture shows the prompt.

        Give the region as box, or as mask: the name of a picture of the same size that is white in the region.
        """
        with self._call():
            picture = self.shelf.open(image)
            if (box is None) == (not mask):
                raise ValueError("the region is a box or a mask; give one of them")
            region = self.shelf.open(mask) if mask else _region(picture, box)
            return self._shown([self.model.infill(picture, region, prompt=prompt, seed=seed, steps=steps)])

    def infill_text(self, text: str, seed: Seed = 0) -> str:
        """Fill the gaps of a text: [mask] is one token, [mask:N] are N, as in "a [mask] apple and a cat"."""
        with self._call():
            return self.model.infill_text(text, seed=seed).text

    def tools(self) -> tuple[Callable[..., Any], ...]:
        return (self.draw, self.edit, self.ask, self.ground, self.infill, self.infill_text)

    def _shown(self, drawings: Sequence[Drawing]) -> list[Any]:
        """Every picture after a line with its name, and what the model says about the prompt."""
        shown: list[Any] = []
        for drawing in drawings:
            said = [f"{self.shelf.keep(drawing.image)} (seed {drawing.seed})", *drawing.warnings]
            shown += ["\n".join(said), Picture(data=to_png(drawing.image), format="png")]
        return shown

    @contextmanager
    def _call(self) -> Iterator[None]:
        with self.lock, _told():
            yield


@dataclass(frozen=True, kw_only=True)
class TextTools:
    """The tools of a text model."""

    model: TextModel
    lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, question: str, max_tokens: Annotated[int | None, Field(ge=1)] = None, seed: Seed = 0) -> str:
        """Answer a question."""
        with self.lock, _told():
            return self.model.ask(question, max_tokens=max_tokens, seed=seed).text

    def infill_text(self, text: str, seed: Seed = 0) -> str:
        """Fill the gaps of a text: [mask] is one token, [mask:N] are N."""
        with self.lock, _told():
            return self.model.infill_text(text, seed=seed).text

    def tools(self) -> tuple[Callable[..., Any], ...]:
        return (self.ask, self.infill_text)


def server_for(model: Model | TextModel, shelf: Shelf) -> MCPServer:
    """A server with the tools of a model. ``shelf``: its pictures."""
    draws = isinstance(model, Model)
    own = PictureTools(model=model, shelf=shelf) if draws else TextTools(model=model)
    server = MCPServer(
        "unmask", instructions=_INSTRUCTIONS if draws else None, version=__version__, log_level="WARNING"
    )
    for tool in own.tools():
        hints = ToolAnnotations(read_only_hint=True, open_world_hint=False)  # they change no state but the shelf
        pictures = tool.__annotations__["return"] == "list[Any]"
        server.add_tool(tool, annotations=hints, structured_output=False if pictures else None)
    return server


@contextmanager
def _told() -> Iterator[None]:
    """A user's mistake as an error that the assistant reads and can mend."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise ToolError(str(error)) from error


def _region(picture: Image.Image, box: tuple[float, float, float, float] | None) -> Image.Image:
    """A mask that is white inside a box."""
    if box is None or not (0 <= box[0] < box[2] <= picture.width and 0 <= box[1] < box[3] <= picture.height):
        raise ValueError(f"the box {box} is not inside the picture of {picture.width} x {picture.height} pixels")
    region = Image.new("L", picture.size)
    ImageDraw.Draw(region).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=255)
    return region
