"""Shared by the serving scripts: a server in its own process, mixed jobs, and the answers that the model gives without a server.

Public idea: ``with Hosted("mini") as server: server.url``, ``mixed(8)``, ``answered(model, jobs)``.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
from clients import Job, connect, digest
from PIL import Image
from rich.progress import Progress, track
from speed import HISTORY, scene_of, show

import unmask
from unmask.checkpoints.elastic import WeightStorage
from unmask.data.world.render import render
from unmask.evaluation.history import Line, append
from unmask.pipeline.model import Model
from unmask.serving.answers import grounded
from unmask.serving.streams import encoded
from unmask.tasks.conversing import Message
from unmask.tokens.pictures import read_image, read_region

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = ("two red apples and a cat", "a clock", "a blue bus left of a dog", "a yellow cup")
QUESTIONS = ("how many apples are there?", "what is this?", "is there a cat?", "what color is the chair?")
INSTRUCTIONS = ("make the cat blue", "make the background sand", "remove the cup", "add a red apple")
STEPS = 8


class Hosted:
    """``unmask serve`` with its log in a file. It is stopped at the end, unless it has stopped already.

    ``program``: how Python starts ``unmask``; a rehearsal starts one whose limits of time are short.
    """

    program: ClassVar[tuple[str, ...]] = ("-m", "unmask.cli.main")

    def __init__(self, model: str, *options: str, threads: int | None = None, variables: dict[str, str] | None = None):
        self._folder = TemporaryDirectory()
        self.log = Path(self._folder.name) / "log.jsonl"
        more = ["--threads", str(threads)] if threads else []
        command = [sys.executable, *self.program, "serve", model, "--port", "0", *more, *options]
        self.began = time.monotonic()
        with self.log.open("wb") as log:
            path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
            around = {**os.environ, "PYTHONPATH": path, **(variables or {})}
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=around, text=True)

    def __enter__(self) -> Hosted:
        assert self.process.stdout
        self.url = self.process.stdout.readline().strip()
        if not self.url.startswith("http"):
            self.process.wait(60)
            raise RuntimeError(f"the server did not start: {self.log.read_text()[-2000:]}")
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.stop()
        self._folder.cleanup()

    @property
    def memory(self) -> int:
        """Resident bytes (Linux)."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    @property
    def peak(self) -> int:
        """The most resident bytes so far (Linux)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))

    @property
    def files(self) -> int:
        """Open files and sockets (Linux)."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    @property
    def threads(self) -> int:
        """Threads of the process (Linux)."""
        return len(os.listdir(f"/proc/{self.process.pid}/task"))

    @property
    def metrics(self) -> dict[str, float]:
        text = self.get("/metrics")[1].decode()
        rows = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in rows}

    def get(self, path: str) -> tuple[int, bytes]:
        connection = connect(self.url, 60)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def idle(self, seconds: float = 60.0) -> float:
        """Wait until no call is in progress; the seconds that took. TimeoutError."""
        began, now = time.monotonic(), self.metrics
        while time.monotonic() - began < seconds:
            now = self.metrics
            if not (now["unmask_calls"] or now["unmask_engine_live"] or now["unmask_engine_waiting"]):
                return time.monotonic() - began
            time.sleep(0.02)
        raise TimeoutError(f"calls are still in progress after {seconds:.0f} s: {now}")

    def stop(self, seconds: float = 120.0) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def logged(self) -> str:
        return self.log.read_text(errors="replace")


def scene(index: int) -> Image.Image:
    return Image.fromarray(render(scene_of(index), 128))


def data_url(image: Image.Image) -> str:
    return f"data:image/png;base64,{encoded(image, 'png')}"


def _half(side: int) -> Image.Image:
    """A region: the upper half, white."""
    mask = Image.new("RGB", (side, side))
    mask.paste((255, 255, 255), (0, 0, side, side // 2))
    return mask


def mixed(each: int, steps: int = STEPS) -> list[Job]:
    """``each`` jobs of every kind: drawing, planning, edits, regions, questions, boxes, gaps in text, turns; some as streams."""
    jobs = []
    for i in range(each):
        prompt, url = PROMPTS[i % 4], data_url(scene(i % 8))
        drawn = {"prompt": prompt, "seed": i, "steps": steps}
        shown = [{"type": "text", "text": QUESTIONS[i % 4]}, {"type": "image_url", "image_url": {"url": url}}]
        asked = {"messages": [{"role": "user", "content": shown}], "seed": i}
        edit = {"prompt": INSTRUCTIONS[i % 4], "seed": i, "steps": steps, "image": url}
        turn = {"messages": [{"role": "user", "content": f"draw {prompt}"}], "seed": i}
        region = {**drawn, "image": url, "mask": data_url(_half(128))}
        draw, chat = "/v1/images/generations", "/v1/chat/completions"
        jobs += [
            Job(kind="draw", path=draw, body={**drawn, "plan": False}),
            Job(kind="plan", path=draw, body={**drawn, "plan": True}),
            Job(kind="draw_streamed", path=draw, body={**drawn, "plan": False, "stream": True, "partial_images": 2}),
            Job(kind="plan_traced", path=draw, body={**drawn, "plan": True, "stream": True, "trace": True}),
            Job(kind="edit", path="/v1/images/edits", body=edit, form=True),
            Job(kind="region", path="/v1/infill", body=region),
            Job(kind="ask", path=chat, body=asked),
            Job(kind="ask_streamed", path=chat, body={**asked, "stream": True}),
            Job(kind="turn", path=chat, body=turn),
            Job(kind="ground", path="/v1/ground", body={"image": url, "phrases": ["the cat"], "seed": i}),
            Job(kind="gaps", path="/v1/infill", body={"text": "two [mask] apples and a [mask]", "seed": i}),
        ]
    return jobs


def answered(model: Model, jobs: Sequence[Job]) -> list[Job]:
    """The same jobs with the answers of the model's own methods, called in this process one by one."""
    known: dict[str, str] = {}
    done = []
    for job in track(jobs, description="reference"):
        kind = job.kind.partition("_")[0]
        key = f"{kind}:{job.body['seed']}:{job.body.get('steps')}"
        if key not in known:
            known[key] = digest(_alone(model, kind, job.body))
        done.append(replace(job, answer=known[key]))
    return done


def _alone(model: Model, kind: str, body: dict[str, Any]) -> dict[str, Any]:
    seed, settings = body["seed"], [f"schedule.steps={body['steps']}"] if "steps" in body else []
    image = lambda: base64.b64decode(body["image"].partition(",")[2])  # noqa: E731
    match kind:
        case "draw" | "plan":
            return _pictures(model.generate(body["prompt"], seed=seed, plan=kind == "plan", settings=settings))
        case "edit":
            return _pictures(model.edit(image(), body["prompt"], seed=seed, settings=settings))
        case "region":
            region = read_region(base64.b64decode(body["mask"].partition(",")[2]))
            return _pictures([model.infill(image(), region, prompt=body["prompt"], seed=seed, settings=settings)])
        case "ask":
            words, picture = body["messages"][0]["content"]
            seen = read_image(base64.b64decode(picture["image_url"]["url"].partition(",")[2]))
            return _said(model.ask(seen, words["text"], seed=seed).text)
        case "turn":
            turn = model.converse([Message(role="user", text=body["messages"][0]["content"], images=())], seed=seed)
            return _said(turn.text, turn.images)
        case "ground":
            return {"boxes": grounded(model.ground(image(), body["phrases"], seed=seed))["boxes"]}
        case "gaps":
            return {"text": model.infill_text(body["text"], seed=seed).text}
    raise ValueError(f"no method of the model answers a job of kind {kind!r}")


def _pictures(drawn: Sequence[Any]) -> dict[str, Any]:
    return {"data": [{"b64_json": encoded(one.image, "png")} for one in drawn]}


def _said(text: str, images: Sequence[Image.Image] = ()) -> dict[str, Any]:
    shown = [{"b64_json": encoded(image, "png")} for image in images]
    return {"choices": [{"message": {"content": text, "unmask": {"images": shown}}}]}


def opened(name: str, threads: int | None, dtype: str = "float32") -> Model:
    if threads:
        torch.set_num_threads(threads)
    model = unmask.load(name, storage=WeightStorage(dtype=getattr(torch, dtype)))
    if not isinstance(model, Model):
        raise ValueError(f"{name} is a text model, and these jobs need pictures; give another model")
    return model


def options(doc: str | None) -> argparse.ArgumentParser:
    """The options of every serving script. ``doc`` is its docstring, whose indented lines are examples."""
    words = (doc or "").split("\n")
    examples = "\n".join(line for line in words if line.startswith("    "))
    parser = argparse.ArgumentParser(
        description=words[0], epilog=f"examples:\n{examples}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini", help="name of a shipped model, or a folder")
    parser.add_argument("--threads", type=int, help="CPU threads of the model")
    parser.add_argument("--record", action="store_true", help="append the figures to the history")
    parser.add_argument("--history", type=Path, default=HISTORY, help="file of the history")
    return parser


def finish(given: argparse.Namespace, lines: list[Line], wrong: list[str]) -> None:
    """Print the figures, record them, and exit with 1 if there are complaints."""
    show(lines)
    if given.record:
        append(given.history, lines)
    for complaint in wrong:
        print(f"error: {complaint}", file=sys.stderr)
    if wrong:
        sys.exit(1)


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank; 0 without values."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else 0.0


def tracebacks(text: str) -> int:
    """The number of tracebacks in a text."""
    return len(re.findall(r"Traceback \(most recent call last\)", text))


def ticking(progress: Progress, what: str, total: float | None) -> Callable[[], None]:
    """A progress bar, as a function that advances it by one."""
    task = progress.add_task(what, total=total)
    return lambda: progress.advance(task)
