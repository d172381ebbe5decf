"""ComfyUI's own page, which a registry has (comfyui-frontend-package), with our nodes: it loads the workflow and shows a plan.

Its server is the stand-in: ``/api/object_info`` describes the nodes as ComfyUI does. Run by ``make test-integrations``.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from ..serving.browser import MISSING, PATIENCE, chromium, launched
from .comfyui_double import FOLDER, Server, comfyui, prompt_of

pytestmark = [
    pytest.mark.skipif(not chromium(), reason=MISSING),
    pytest.mark.skipif(not find_spec("comfyui_frontend_package"), reason="comfyui-frontend-package is not installed"),
]
SCRIPT = "/extensions/unmask/boxes.js"
SYSTEM = {"os": "posix", "comfyui_version": "0.3.60", "python_version": "3.11", "pytorch_version": "2.13", "argv": []}
ANSWERS: dict[str, Any] = {
    "extensions": [SCRIPT],
    "users": {"storage": "server", "migrated": True},
    "settings": {"Comfy.TutorialCompleted": True},
    "system_stats": {"system": {**SYSTEM, "embedded_python": False, "ram_total": 1, "ram_free": 1}, "devices": []},
    "queue": {"queue_running": [], "queue_pending": []},
    "userdata": [], "v2/userdata": [], "embeddings": [], "experiment/models": [],
}  # fmt: skip
READY = "!!(window.app && window.app.graph && window.LiteGraph && window.LiteGraph.registered_node_types.UnmaskPlan)"


def described(server: Server) -> dict[str, Any]:
    """The nodes as /object_info has them."""
    found = {}
    for name, cls in server.nodes.items():
        inputs, outputs = cls.INPUT_TYPES(), list(cls.RETURN_TYPES)
        found[name] = {
            "name": name, "display_name": server.module.NODE_DISPLAY_NAME_MAPPINGS.get(name, name),
            "description": getattr(cls, "DESCRIPTION", ""), "category": cls.CATEGORY,
            "python_module": "custom_nodes.unmask", "output_node": getattr(cls, "OUTPUT_NODE", False),
            "input": inputs, "input_order": {kind: list(names) for kind, names in inputs.items()},
            "output": outputs, "output_is_list": [False] * len(outputs),
            "output_name": list(getattr(cls, "RETURN_NAMES", outputs)),
        }  # fmt: skip
    return found


@pytest.fixture
def address() -> Iterator[tuple[Server, str]]:
    import uvicorn
    from fastapi import FastAPI
    from fastapi.responses import FileResponse, JSONResponse, Response

    page = Path(str(files("comfyui_frontend_package"))) / "static"
    with comfyui() as server:
        app, known = FastAPI(), {**ANSWERS, "object_info": described(server)}

        @app.get("/api/{path:path}")
        def api(path: str) -> Response:
            return JSONResponse(known.get(path, {}), 404 if path.startswith("userdata/") else 200)

        @app.get("/{path:path}")
        def static(path: str) -> Response:
            file = FOLDER / "web" / "boxes.js" if f"/{path}" == SCRIPT else page / (path or "index.html")
            return FileResponse(file) if file.is_file() else Response(status_code=404)

        place = socket.create_server(("127.0.0.1", 0))
        web = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=web.run, args=([place],), daemon=True)
        thread.start()
        yield server, f"http://127.0.0.1:{place.getsockname()[1]}/"
        web.should_exit = True
        thread.join()


def test_the_page_loads_the_workflow_and_a_plan(address: tuple[Server, str]) -> None:
    """What it would send to the server is what the stand-in's tests run."""
    server, url = address
    (path,) = (FOLDER / "example_workflows").glob("*.json")
    workflow = json.loads(path.read_text())
    with launched() as browser:
        page = browser.new_page()
        page.set_default_timeout(2 * PATIENCE)
        page.goto(url)
        page.wait_for_function(READY)
        page.evaluate("async (workflow) => { await window.app.loadGraphData(workflow); }", workflow)
        sent = page.evaluate("async () => (await window.app.graphToPrompt()).output")
        page.evaluate("window.app.graph.getNodeById(2).onExecuted({boxes: ['dog: 0,0,1,1']})")
        shown = page.evaluate("window.app.graph.getNodeById(2).widgets.find((one) => one.name === 'boxes').value")
    wanted = prompt_of(workflow, server.nodes)
    plain = {number: {name: node[name] for name in ("class_type", "inputs")} for number, node in sent.items()}
    assert plain == wanted and shown == "dog: 0,0,1,1"
