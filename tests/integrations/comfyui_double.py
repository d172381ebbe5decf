"""A stand-in for ComfyUI's server, which no package registry has: its documented contract with custom nodes, and nothing else.

Public idea: ``with comfyui() as server: server.run(workflow)``. It imports the folder as ComfyUI does, checks every value against
``INPUT_TYPES`` and every link against ``RETURN_TYPES``, runs each node once under ``torch.inference_mode``, checks what it returns, and
keeps the progress and the previews.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

from ..pages import ROOT

FOLDER = ROOT / "integrations" / "comfyui"
_VALUES = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool}
Previewed = tuple[str, Image.Image, int]


class Interrupted(Exception):
    """What comfy.model_management raises after the user cancelled."""


@dataclass
class Server:
    """``steps``: (value, total, preview) of every update, by node · ``stop_after``: updates until the user cancels."""

    nodes: dict[str, Any] = field(default_factory=dict)
    module: Any = None
    steps: dict[str, list[tuple[int, int, Previewed]]] = field(default_factory=dict)
    ui: dict[str, Any] = field(default_factory=dict)
    running: str = ""
    stop_after: int | None = None

    def run(self, workflow: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
        """The outputs of every node of a workflow as the page saves it."""
        graph, done = prompt_of(workflow, self.nodes), dict[str, tuple[Any, ...]]()
        while len(done) < len(graph):
            ready = [i for i in graph if i not in done and all(source in done for source, _ in links(graph[i]))]
            assert ready, "the workflow has a circle"
            for self.running in ready:
                node, cls = graph[self.running], self.nodes[graph[self.running]["class_type"]]
                given = self._checked(cls, node["inputs"], graph, done)
                with torch.inference_mode():
                    made = getattr(cls(), cls.FUNCTION)(**given)
                if isinstance(made, dict):
                    self.ui[self.running], made = made.get("ui", {}), made.get("result", ())
                check(cls, made)
                done[self.running] = made
        return done

    def _checked(self, cls: Any, given: dict[str, Any], graph: dict[str, Any], done: dict[str, Any]) -> dict[str, Any]:
        wanted = cls.INPUT_TYPES()
        every = {**wanted["required"], **wanted.get("optional", {})}
        assert not wanted["required"].keys() - given.keys(), f"{cls.__name__} lacks an input"
        assert not given.keys() - every.keys(), f"{cls.__name__} has no input of this name"
        values = {}
        for name, value in given.items():
            kind, options = every[name][0], (every[name][1] if len(every[name]) > 1 else {})
            if isinstance(value, list):
                source = self.nodes[graph[value[0]]["class_type"]]
                assert kind in ("*", source.RETURN_TYPES[value[1]]), f"{cls.__name__}.{name} is a {kind}"
                values[name] = done[value[0]][value[1]]
                continue
            assert value in kind if isinstance(kind, list) else isinstance(value, _VALUES[kind]), (name, value)
            assert options.get("min", value) <= value <= options.get("max", value), (name, value)
            values[name] = value
        return values

    def update(self, value: int, total: int, preview: Previewed) -> None:
        self.steps.setdefault(self.running, []).append((value, total, preview))
        if self.stop_after is not None:
            self.stop_after -= 1


def links(node: dict[str, Any]) -> list[tuple[str, int]]:
    return [tuple(value) for value in node["inputs"].values() if isinstance(value, list)]


def check(cls: Any, made: Any) -> None:
    """As many values as RETURN_TYPES, of these types: an IMAGE is float32 [B, H, W, 3] in 0..1, a MASK float32 [B, H, W] in 0..1."""
    assert isinstance(made, tuple) and len(made) == len(cls.RETURN_TYPES)
    assert len(getattr(cls, "RETURN_NAMES", made)) == len(made)
    for kind, value in zip(cls.RETURN_TYPES, made, strict=True):
        if kind in ("IMAGE", "MASK"):
            assert value.dtype == torch.float32 and value.ndim == {"IMAGE": 4, "MASK": 3}[kind] and len(value)
            assert kind == "MASK" or value.shape[-1] == 3
            assert value.device.type == "cpu" and 0 <= value.min() and value.max() <= 1
        if kind == "STRING":
            assert isinstance(value, str)


def prompt_of(workflow: dict[str, Any], nodes: dict[str, Any]) -> dict[str, Any]:
    """A workflow in the page's format as what the page sends to the server: {id: {class_type, inputs}}, links as [id, output].

    The values of a node's widgets stand in the order of INPUT_TYPES; a seed is followed by what happens to it after a run.
    """
    wires = {link[0]: link for link in workflow["links"]}
    graph = {}
    for node in workflow["nodes"]:
        wanted = nodes[node["type"]].INPUT_TYPES()
        every = {**wanted["required"], **wanted.get("optional", {})}
        linked = {i["name"]: i["link"] for i in node.get("inputs", ()) if i["link"] is not None}
        inputs, values = {}, iter(node.get("widgets_values", ()))
        for name, (kind, *more) in every.items():
            options = more[0] if more else {}
            if (isinstance(kind, list) or kind in _VALUES) and not options.get("forceInput"):
                inputs[name] = next(values)
                if options.get("control_after_generate"):
                    assert next(values) in ("fixed", "increment", "decrement", "randomize")
            if name in linked:
                number, source, output, target, slot, _ = wires[linked[name]]
                assert number == linked[name] and target == node["id"] and node["inputs"][slot]["name"] == name
                inputs[name] = [str(source), output]
        assert next(values, None) is None, f"{node['type']} has values for no widget"
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return graph


class _Preview:
    """ComfyUI's own nodes that show a result."""

    RETURN_TYPES: tuple[str, ...] = ()
    FUNCTION, OUTPUT_NODE, CATEGORY = "show", True, "image"
    KIND, NAME = "IMAGE", "images"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {cls.NAME: (cls.KIND,)}}

    def show(self, **shown: Any) -> dict[str, Any]:
        return {"ui": shown}


class PreviewImage(_Preview):
    pass


class MaskPreview(_Preview):
    KIND, NAME = "MASK", "mask"


class PreviewAny(_Preview):
    KIND, NAME = "*", "source"


@contextmanager
def comfyui() -> Iterator[Server]:
    """The server with our folder as a custom node; afterwards the modules are as before."""
    server, before = Server(), dict(sys.modules)

    class ProgressBar:
        def __init__(self, total: int) -> None:
            self.total, self.current = total, 0

        def update_absolute(self, value: int, total: int | None = None, preview: Previewed | None = None) -> None:
            assert preview and preview[0] in ("JPEG", "PNG") and 0 <= value <= (total or self.total)
            server.update(value, total or self.total, preview)

    def throw_exception_if_processing_interrupted() -> None:
        if server.stop_after == 0:
            raise Interrupted

    comfy, utils = types.ModuleType("comfy"), types.ModuleType("comfy.utils")
    management = types.ModuleType("comfy.model_management")
    utils.ProgressBar = ProgressBar  # type: ignore[attr-defined]
    management.throw_exception_if_processing_interrupted = throw_exception_if_processing_interrupted  # type: ignore[attr-defined]
    comfy.utils, comfy.model_management = utils, management  # type: ignore[attr-defined]
    sys.modules |= {"comfy": comfy, "comfy.utils": utils, "comfy.model_management": management}
    try:
        name = str(FOLDER).replace(".", "_x_")
        spec = importlib.util.spec_from_file_location(name, FOLDER / "__init__.py")
        assert spec and spec.loader
        sys.modules[name] = server.module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(server.module)
        own = {"PreviewImage": PreviewImage, "MaskPreview": MaskPreview, "PreviewAny": PreviewAny}
        server.nodes = {**own, **server.module.NODE_CLASS_MAPPINGS}
        yield server
    finally:
        for added in set(sys.modules) - set(before):
            if added.startswith("comfy") or added.startswith(str(FOLDER).replace(".", "_x_")):
                del sys.modules[added]
