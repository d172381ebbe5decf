"""The server of the Model Context Protocol with the official SDK's client, in memory and over stdio. Run by ``make test-integrations``."""

from __future__ import annotations

import asyncio
import base64
import io
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from unmask.integrations.shelf import Shelf
from unmask.pipeline.model import Model
from unmask.tokens.pictures import ImageError

from ..pages import environment
from ..tiny_llada import make


def told(tools: Any, *calls: tuple[str, dict[str, Any]]) -> list[Any]:
    """The results of tool calls, one after the other, of a client in the same process."""
    mcp = pytest.importorskip("mcp")

    async def run() -> list[Any]:
        async with mcp.Client(tools) as client:
            return [await client.call_tool(name, given) for name, given in calls]

    return asyncio.run(run())


@pytest.fixture
def server(model: Model) -> Any:
    module: Any = pytest.importorskip("unmask.integrations.mcp", exc_type=ImportError)
    return module.server_for(model, Shelf())


def pictures(result: Any) -> list[Image.Image]:
    assert not result.is_error, result.content
    found = [part for part in result.content if part.type == "image"]
    assert all(part.mime_type == "image/png" for part in found)
    return [Image.open(io.BytesIO(base64.b64decode(part.data))) for part in found]


def text(result: Any) -> str:
    return "\n".join(part.text for part in result.content if part.type == "text")


def test_the_tools_and_what_they_take(server: Any) -> None:
    mcp = pytest.importorskip("mcp")

    async def run() -> Any:
        async with mcp.Client(server) as client:
            return await client.list_tools()

    tools = {tool.name: tool for tool in asyncio.run(run()).tools}
    assert list(tools) == ["draw", "edit", "ask", "ground", "infill", "infill_text"]
    assert tools["draw"].input_schema["required"] == ["prompt"]
    assert tools["draw"].input_schema["properties"]["n"] == {
        **{"default": 1, "maximum": 8, "minimum": 1, "title": "N", "type": "integer"},
        "description": "How many pictures, with consecutive seeds.",
    }
    assert all(tool.description and tool.annotations.read_only_hint for tool in tools.values())
    assert "boxes" in tools["ground"].output_schema["properties"]


def test_a_session_with_every_tool(server: Any, model: Model) -> None:
    drawn, edited, said, found, filled, words = told(
        server,
        ("draw", {"prompt": "a red apple", "n": 2, "seed": 7, "steps": 4}),
        ("edit", {"image": "picture-1", "instruction": "make the apple blue", "steps": 4}),
        ("ask", {"image": "picture-1", "question": "what is it?"}),
        ("ground", {"image": "picture-1", "phrases": ["the apple"]}),
        ("infill", {"image": "picture-1", "prompt": "a cat", "box": [32, 32, 96, 96], "steps": 4}),
        ("infill_text", {"text": "a [mask] apple"}),
    )
    first, second = model.generate("a red apple", n=2, seed=7, steps=4)
    assert [p.tobytes() for p in pictures(drawn)] == [first.image.tobytes(), second.image.tobytes()]
    assert text(drawn).splitlines() == ["picture-1 (seed 7)", "picture-2 (seed 8)"]
    (one,) = pictures(edited)
    assert one.tobytes() == model.edit(first.image, "make the apple blue", steps=4)[0].image.tobytes()
    assert text(edited).startswith("picture-3")
    assert text(said) == model.ask(first.image, "what is it?").text
    (box,) = found.structured_content["boxes"]
    (same,) = model.ground(first.image, ["the apple"]).boxes
    assert (box["phrase"], box["x1"], box["y2"]) == ("the apple", same.x1, same.y2)
    assert found.structured_content["picture"] == "picture-4" and found.structured_content["width"] == 128
    assert pictures(filled)[0].crop((0, 0, 128, 32)).tobytes() == first.image.crop((0, 0, 128, 32)).tobytes()
    assert text(words) == model.infill_text("a [mask] apple").text


def test_mistakes_are_told_to_the_assistant(server: Any) -> None:
    results = told(
        server,
        ("ask", {"image": "picture-9", "question": "what is it?"}),
        ("ask", {"image": "/etc/passwd", "question": "what is it?"}),
        ("draw", {"prompt": "a red apple", "steps": 2}),
        ("infill", {"image": "picture-1", "prompt": "a cat"}),
        ("infill", {"image": "picture-1", "prompt": "a cat", "box": [0, 0, 500, 20]}),
        ("draw", {"prompt": "a cat", "n": 9}),
        ("draw", {"prompt": " "}),
        ("draw", {"prompt": "a zeppelin", "steps": 2}),
    )
    assert [result.is_error for result in results] == [True, True, False, True, True, True, True, False]
    assert "'picture-9' is not the name of a picture; draw one first" in text(results[0])
    assert "give one of them" in text(results[3]) and "128 x 128" in text(results[4])
    assert "the prompt is empty" in text(results[6]) and "zeppelin" in text(results[7])


def test_a_text_model_has_the_tools_for_text(tmp_path: Path) -> None:
    module: Any = pytest.importorskip("unmask.integrations.mcp", exc_type=ImportError)
    import unmask

    opened: Any = unmask.load(make(tmp_path / "llada"), device="cpu")
    said, filled = told(
        module.server_for(opened, Shelf()),
        ("ask", {"question": "hello", "max_tokens": 4}),
        ("infill_text", {"text": "hello [mask]"}),
    )
    assert not said.is_error and text(said) == opened.ask("hello", max_tokens=4).text
    assert text(filled) == opened.infill_text("hello [mask]").text


def test_unmask_mcp_over_stdio(tmp_path: Path) -> None:
    mcp = pytest.importorskip("mcp")
    Image.new("RGB", (128, 128), "white").save(tmp_path / "white.png")
    program = mcp.StdioServerParameters(
        command=sys.executable,
        args=["-m", "unmask", "mcp", "mini", "--pictures", str(tmp_path), "--device", "cpu", "--threads", "1"],
        env=environment(),
    )

    async def run(use: Callable[[Any], Awaitable[Any]]) -> Any:
        async with mcp.Client(program) as client:
            return await use(client)

    async def asked(client: Any) -> Any:
        drawn = await client.call_tool("draw", {"prompt": "a red apple", "seed": 1, "steps": 2})
        return drawn, await client.call_tool("ask", {"image": "white.png", "question": "what is it?"})

    drawn, said = asyncio.run(run(asked))
    assert pictures(drawn)[0].size == (128, 128) and not said.is_error and text(said)


def test_the_shelf(tmp_path: Path) -> None:
    white = Image.new("RGB", (8, 8), "white")
    (tmp_path / "in").mkdir()
    white.save(tmp_path / "in" / "white.png")
    white.save(tmp_path / "out.png")
    shelf = Shelf(folder=tmp_path / "in", most=2)
    assert [shelf.keep(white) for _ in range(3)] == ["picture-1", "picture-2", "picture-3"]
    assert list(shelf.kept) == ["picture-2", "picture-3"]
    assert shelf.open("picture-3") is white and shelf.open("white.png").size == (8, 8)
    data = base64.b64encode((tmp_path / "out.png").read_bytes()).decode()
    assert shelf.open(f"data:image/png;base64,{data}").size == (8, 8)
    for source, said in (
        ("../out.png", "is not in the folder"),
        (str(tmp_path / "out.png"), "is not in the folder"),
        ("other.png", "use one of picture-2, picture-3"),
        ("data:image/png,xx", "not valid base64"),
        ("data:image/png;base64,%%", "not valid base64"),
    ):
        with pytest.raises(ImageError, match=said):
            shelf.open(source)
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "out.png")
    with pytest.raises(ImageError, match="is not in the folder"):
        shelf.open("link.png")
