"""The pages about serving: their tables are the schema's, and what they ask their reader to do works as it stands there.

After a change of the schema, or new figures: ``python -m tests.serving.test_docs`` writes the tables of docs/api.md and docs/operate.md.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from unmask.serving import completions, live_runs, schema, schema_chat, talk_routes
from unmask.serving.answers import ENDPOINTS
from unmask.serving.counting import _MEANING, PATHS

from ..pages import ROOT, environment, python
from ..warm import warm

DOCS = ROOT / "docs"
API, SERVE, OPERATE = DOCS / "api.md", DOCS / "serve.md", DOCS / "operate.md"
_TABLE = re.compile(r"(<!-- fields of (\w+) -->\n).*?(<!-- end -->)", re.S)
_BODIES = (schema_chat, completions, schema, live_runs, talk_routes)
ADDRESS = "http://127.0.0.1:8000"


def table(name: str) -> str:
    """The fields of a body as Markdown."""
    body = next(getattr(room, name) for room in _BODIES if hasattr(room, name))
    whole = body.model_json_schema()
    rows = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for field, said in whole["properties"].items():
        default = (
            "" if field in whole.get("required", []) else f"`{json.dumps(said.get('default'))}`".replace("`null`", "")
        )
        kind = _kind(said).replace("|", "\\|")
        rows.append(f"| `{field}` | {kind} | {default} | {said.get('description', '')} |")
    return "\n".join(rows) + "\n"


def _kind(said: dict[str, Any]) -> str:
    """A JSON schema's type in few words."""
    if "$ref" in said:
        return said["$ref"].rpartition("/")[2]
    if "anyOf" in said:
        return " or ".join(dict.fromkeys(_kind(s) for s in said["anyOf"] if s.get("type") != "null"))
    if "enum" in said:
        return ", ".join(str(v) for v in said["enum"])
    if "const" in said:
        return str(said["const"])
    kind = said.get("type", "any")
    if kind == "array":
        inner = _kind(said["items"]) if isinstance(said.get("items"), dict) else "numbers"
        return f"list of {inner}"
    bounds = [said.get("minimum"), said.get("maximum")]
    return f"{kind}, {bounds[0]} to {bounds[1]}" if None not in bounds else kind


FIGURES = {
    "serving.load.lost": "load test: requests lost",
    "serving.load.twice": "… answered twice",
    "serving.load.wrong": "… answers that differ from the model's own, alone",
    "serving.load.memory_growth": "… growth of the server's memory",
    "serving.load.answers": "… answers per second",
    "serving.soak.answers": "soak test of 10,000 mixed requests in four hours: answers per second",
    "serving.soak.wrong": "… answers that differ from the model's own, alone",
    "serving.soak.memory_growth": "… change of the server's memory after the warm-up",
    "serving.soak.files_growth": "… more open descriptors after it",
    "serving.soak.threads_growth": "… more threads after it",
    "serving.company.answers": "answers to all tasks together, beside clients that disconnect, with caches on and off",
    "serving.company.wrong": "… that differ from the model's own, alone",
    "serving.attacks.connections": "slow clients at the same time; all were closed within 30 s, and others were served",
    "serving.attacks.bodies": "bodies of 30 MiB at the same time; all were freed within 30 s, and others were served",
    "serving.attacks.pictures": "cut, altered and very large images, 40 at a time; none got a 5xx, and memory rose by less than 1 GB",
    "serving.faults.clients_left": "clients that disconnected at a random moment",
    "serving.faults.places_left": "… slots still occupied afterwards",
    "serving.faults.freed": "… seconds until all slots were free",
    "serving.faults.wrong_after": "… wrong answers afterwards",
    "serving.faults.engine_deaths": "engine crashes; every running request got an error",
    "serving.faults.answer_after_death": "… seconds until the next correct answer",
    "serving.faults.drained": "SIGTERM: seconds until all running requests were finished",
    "serving.fuzz.requests": "malformed or hostile requests",
    "serving.fuzz.failures": "… answered with a 5xx, a traceback, or an invalid error body",
    "serving.fuzz.wrong_after": "… wrong answers afterwards",
    "serving.fairness.forwards": "forwards of a text of one step beside 4 requests of 10 images of 64 steps, 95th percentile (257 before)",
    "serving.fairness.ratio": "… its processor time as a multiple of that alone, 95th percentile",
    "killed.training": "kill -9 of a training run: none lost more than the steps since its save, and its end is that of a run not killed",
    "killed.stage3": "… of a run that trains all of mini",
    "killed.processes": "… of a run of two processes",
    "killed.batch": "… of a batch: the results of one not killed, each once",
    "killed.server": "… of a server under load: right answers after a restart, nothing left behind",
    "altered_folders.wrong": "altered model folders, of 1,800, that end in a traceback, hang, take 1 GB or answer nonsense",
    "serving.together.words": "speed-up from batching, eight text answers without images",
    "serving.together.texts": "… eight questions about images",
    "serving.together.words.bfloat16": "… eight text answers, in bfloat16",
    "serving.together.texts.bfloat16": "… eight questions about images, in bfloat16",
    "serving.together.drawings": "… eight generations",
    "serving.together.mixed": "… eight mixed requests",
    "serving.start.first_frame": "seconds from the command to the first streamed frame",
}


def figures() -> str:
    """The newest line of each in the history, as Markdown."""
    history = (ROOT / "bench" / "history.jsonl").read_text().splitlines()
    newest = {row["name"]: row for row in map(json.loads, history)}
    rows = ["| figure | value | seen at | threads |", "|---|---|---|---|"]
    for name, words in FIGURES.items():
        if row := newest.get(name):
            number = row["value"]
            value = (
                f"{number:.1%}"
                if row["unit"] == "share"
                else f"{number:g}"
                if number == int(number)
                else f"{number:.2f}"
            )
            seen = f"{row['date'][:10]}, {row['commit']}"
            rows.append(f"| {words} | {value} | {seen} | {row['machine']['threads']} |")
    return "\n".join(rows) + "\n"


def shown(page: str) -> str:
    return re.sub(
        r"(<!-- figures -->\n).*?(<!-- end of figures -->)", lambda m: m[1] + figures() + m[2], page, flags=re.S
    )


def rendered(page: str) -> str:
    return _TABLE.sub(lambda found: found[1] + table(found[2]) + found[3], page)


def test_the_tables_are_those_of_the_schema() -> None:
    page = API.read_text()
    assert rendered(page) == page, "wanted? python -m tests.serving.test_docs writes them anew"
    shown = set(re.findall("<!-- fields of (\\w+) -->", page))
    parts = {"BoxOf", "ChatMessage", "ContentPart", "ImageUrl", "StreamOptions"}
    assert {body.__name__ for body in ENDPOINTS.values()} | parts | {
        "Complete",
        "Change",
        "StartTalk",
        "ChangeTalk",
    } == shown


def test_the_pictures_are_there_and_small() -> None:
    """``python -m tests.serving.pictures`` takes those of the page again; the commands of thinking.md made the others."""
    pages = "".join(path.read_text() for path in DOCS.glob("*.md"))
    assert set(re.findall(r"\]\((pictures/[^)]+)\)", pages)) == {
        f"pictures/{p.name}" for p in (DOCS / "pictures").iterdir()
    }
    assert all(path.stat().st_size <= 150_000 for path in (DOCS / "pictures").iterdir())


def test_the_figures_are_those_of_the_history() -> None:
    page = OPERATE.read_text()
    assert "<!-- figures -->" in page
    assert shown(page) == page, "new figures? python -m tests.serving.test_docs writes them anew"


def test_the_scripts_that_the_page_names_take_what_it_gives_them() -> None:
    """As far as --help, which reads the options before it; in small they run in tests/evaluation/test_bench_serving.py."""
    found = re.findall(r"^python (bench/\S+)(.*)$", OPERATE.read_text(), re.M)
    assert len(found) == 11
    for script, options in found:
        command = [warm(), str(ROOT / script), *options.split(), "--help"]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert all(word in done.stdout for word in options.split() if word.startswith("--"))


def test_every_endpoint_figure_and_ignored_field_is_described() -> None:
    api, operate = API.read_text(), OPERATE.read_text()
    assert all(f"`{path}`" in api for path in PATHS - {"/"})
    assert all(f"`{name}`" in api for name in schema_chat.HARMLESS | set(schema_chat.UNSUPPORTED))
    assert all(f"unmask_engine_{name}" in operate for name in _MEANING)


# -- commands ---------------------------------------------------------------------------------------------------------


def shell(page: Path) -> list[str]:
    """The bash blocks of a page that ask the server; those that start one are not among them."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.S)
    return [block for block in blocks if ADDRESS in block]


def starting(page: Path) -> list[str]:
    return re.findall(r"^unmask (serve .*)$", page.read_text(), re.M)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The first command of the page on serving, at a free port, stopped as an operator would."""
    command = [warm(), "-m", "unmask.cli.main", *starting(SERVE)[0].split(), "--port", "0"]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), server.stderr and server.stderr.read()
        yield url
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
        assert server.stderr is not None and "Traceback" not in server.stderr.read()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("curl"), reason="the pages ask with curl")
def test_what_the_pages_ask_for_works(address: str, tmp_path: Path) -> None:
    assert len(shell(SERVE)) >= 3 and shell(API) and shell(OPERATE)
    for block in [*shell(SERVE), *shell(API), *shell(OPERATE)]:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.replace(ADDRESS, address).replace("curl ", "curl --fail-with-body ")],
            cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, block + done.stdout + done.stderr


@pytest.mark.slow
def test_python_of_the_pages_runs(address: str, tmp_path: Path) -> None:
    blocks = [*python(SERVE.read_text()), *python(API.read_text())]
    assert len(blocks) >= 2
    for block in blocks:
        done = subprocess.run(
            [warm(), "-c", block.replace(ADDRESS, address)],
            cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, block + done.stderr


def test_other_ways_to_start_are_understood() -> None:
    from unmask.cli.main import program
    from unmask.cli.serve import serve

    commands = [c for page in (SERVE, API, OPERATE) for c in starting(page)]
    assert len(commands) >= 3
    with program(["serve"]).make_context(
        "unmask", ["serve"]
    ) as group:  # a command keeps the names of its help option from its first use
        for command in commands:
            serve.make_context("serve", command.split()[1:], parent=group)


if __name__ == "__main__":
    API.write_text(rendered(API.read_text()))
    OPERATE.write_text(shown(OPERATE.read_text()))
