"""Python clients of OpenAI's API against a server: openai, LangChain and LiteLLM. One line of JSON for every client and task.

    python bench/client_python.py http://127.0.0.1:8000 picture.png "what colour is the car?" [CLIENT]

Without CLIENT, all that are installed are tried. ``bench/real_clients.py`` runs this script.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

DRAW = "draw a red apple"
PNG = "data:image/png;base64,"
SCHEMA = {
    "title": "Answer",
    "description": "what colour it is",
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green", "blue"]}, "cat": {"type": "boolean"}},
    "required": ["colour", "cat"],
    "additionalProperties": False,
}


def openai_tasks(url: str, picture: bytes, question: str) -> dict[str, Callable[[], object]]:
    import openai
    from pydantic import BaseModel

    class Answer(BaseModel):
        cat: bool
        count: int

    client: Any = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    about = [{"role": "user", "content": content(picture, question)}]
    drawing = [{"role": "user", "content": DRAW}]

    def chat(messages: Any = drawing, **more: Any) -> Any:
        return client.chat.completions.create(model="mini", messages=messages, **more)

    def usage() -> object:
        (*_, last) = chat(about, stream=True, stream_options={"include_usage": True})
        return last.usage.total_tokens and not last.choices

    parse = client.chat.completions.parse
    return {
        "chat": lambda: chat().choices[0].finish_reason == "stop",
        "stream": lambda: "".join(c.choices[0].delta.content or "" for c in chat(about, stream=True)),
        "usage of a stream": usage,
        "picture in": lambda: chat(about).choices[0].message.content,
        "picture out": lambda: chat().choices[0].message.images[0]["image_url"]["url"].startswith(PNG),
        "picture out, streamed": lambda: [c for c in chat(stream=True) if getattr(c.choices[0].delta, "images", None)],
        "picture out, Markdown": lambda: PNG in chat(extra_body={"image_output": "markdown"}).choices[0].message.content,
        "structured output": lambda: parse(model="mini", messages=about, response_format=Answer).choices[0].message.parsed,
        "image generation": lambda: client.images.generate(model="mini", prompt="a red apple").data[0].b64_json,
        "image edit": lambda: client.images.edit(
            model="mini", image=("a.png", picture), prompt="make the background sand"
        ).data[0].b64_json,
    }  # fmt: skip


def langchain_tasks(url: str, picture: bytes, question: str) -> dict[str, Callable[[], object]]:
    langchain: Any = import_module("langchain_openai")

    def model(**more: Any) -> Any:
        return langchain.ChatOpenAI(base_url=f"{url}/v1", api_key="none", model="mini", **more)

    about = [{"role": "user", "content": content(picture, question)}]
    markdown = {"image_output": "markdown"}
    return {
        "chat": lambda: model().invoke(DRAW).response_metadata["finish_reason"] == "stop",
        "stream": lambda: "".join(chunk.content for chunk in model().stream(about)),
        "usage of a stream": lambda: [c for c in model(stream_usage=True).stream(about) if c.usage_metadata],
        "picture in": lambda: model().invoke(about).content,
        "picture out, Markdown": lambda: PNG in model(extra_body=markdown).invoke(DRAW).content,
        "picture out, streamed": lambda: PNG in "".join(c.content for c in model(extra_body=markdown).stream(DRAW)),
        "structured output": lambda: (
            model().with_structured_output(SCHEMA, method="json_schema").invoke(about)["colour"]
        ),
    }


def litellm_tasks(url: str, picture: bytes, question: str) -> dict[str, Callable[[], object]]:
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it looks for prices on the network
    litellm: Any = import_module("litellm")

    where: Any = {"model": "openai/mini", "api_base": f"{url}/v1", "api_key": "none"}
    about = [{"role": "user", "content": content(picture, question)}]

    def chat(messages: Any = None, **more: Any) -> Any:
        return litellm.completion(messages=messages or [{"role": "user", "content": DRAW}], **where, **more)

    def named() -> io.BytesIO:
        file = io.BytesIO(picture)
        file.name = "picture.png"
        return file

    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    return {
        "chat": lambda: chat().choices[0].finish_reason == "stop",
        "stream": lambda: "".join(c.choices[0].delta.content or "" for c in chat(about, stream=True)),
        "usage of a stream": lambda: [
            c for c in chat(about, stream=True, stream_options={"include_usage": True}) if getattr(c, "usage", None)
        ],
        "picture in": lambda: chat(about).choices[0].message.content,
        "picture out": lambda: chat().choices[0].message.images[0]["image_url"]["url"].startswith(PNG),
        "picture out, streamed": lambda: [c for c in chat(stream=True) if getattr(c.choices[0].delta, "images", None)],
        "picture out, Markdown": lambda: (
            PNG in chat(extra_body={"image_output": "markdown"}).choices[0].message.content
        ),
        "structured output": lambda: json.loads(chat(about, response_format=wanted).choices[0].message.content)[
            "colour"
        ],
        "image generation": lambda: litellm.image_generation(prompt="a red apple", **where).data[0].b64_json,
        "image edit": lambda: (
            litellm.image_edit(image=named(), prompt="make the background sand", **where).data[0].b64_json
        ),
    }


def content(picture: bytes, question: str) -> list[dict[str, Any]]:
    """A question about a picture as the parts of a message."""
    url = PNG + base64.b64encode(picture).decode()
    return [{"type": "text", "text": question}, {"type": "image_url", "image_url": {"url": url}}]


CLIENTS = {
    "openai": ("openai", openai_tasks),
    "langchain-openai": ("langchain_openai", langchain_tasks),
    "litellm": ("litellm", litellm_tasks),
}


def main() -> None:
    url, file, question, *only = sys.argv[1:]
    for client, (module, tasks) in CLIENTS.items():
        if (only and client not in only) or not importlib.util.find_spec(module):
            continue
        for task, run in tasks(url, Path(file).read_bytes(), question).items():
            try:
                passed, trouble = bool(run()), ""
            except Exception as error:
                passed, trouble = False, f"{type(error).__name__}: {error}"[:300]
            row = {"client": client, "version": version(client), "task": task, "passed": passed, "trouble": trouble}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
