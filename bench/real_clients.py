"""Clients of OpenAI's API that people use, against a server of mini, as the table of docs/serve.md.

    python -m venv clients && clients/bin/pip install openai langchain-openai litellm
    npm install --prefix node openai @langchain/openai ai @ai-sdk/openai-compatible @openrouter/ai-sdk-provider
    python bench/real_clients.py --python clients/bin/python --modules node

``--url``: a server that is running already. Exit code 1 if a client failed at a task.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PICTURE, QUESTION = Path(str(files("unmask"))) / "serving" / "web" / "example-street.png", "what colour is the car?"
_LIMIT = 1200  # seconds for one script


@contextmanager
def served() -> Iterator[str]:
    """The address of a server of mini in this process."""
    import unmask
    from unmask.serving.server import Server, listen
    from unmask.serving.service import Service

    with Server(Service(unmask.load("mini"), name="mini"), listen("127.0.0.1", 0)) as server:
        yield server.url


def rows_of(command: list[str]) -> list[dict[str, Any]]:
    """The lines of JSON that a script prints; its other output goes to stderr."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=_LIMIT, check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return [json.loads(line) for line in lines]


def table(rows: list[dict[str, Any]]) -> str:
    """Clients by tasks, as Markdown: yes, no, or nothing where a client has no such task."""
    clients = list(dict.fromkeys((row["client"], row["version"], row["language"]) for row in rows))
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    found = {(row["client"], row["language"], row["task"]): "yes" if row["passed"] else "no" for row in rows}
    lines = [f"| client | version | {' | '.join(tasks)} |", f"|{'---|' * (len(tasks) + 2)}"]
    for client, version, language in clients:
        cells = [found.get((client, language, task), "") for task in tasks]
        lines.append(f"| {client} ({language}) | {version} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="a Python that has the Python clients")
    parser.add_argument("--modules", help="a folder with node_modules; without it, no JavaScript client is tried")
    parser.add_argument(
        "--only", nargs="*", default=[], help="Python clients to try; without it, all that are installed"
    )
    parser.add_argument("--url", help="a server; without it, one of mini is started")
    options = parser.parse_args()
    with served() if not options.url else _given(options.url) as url:
        given = [url, str(PICTURE), QUESTION]
        python = [options.python, str(HERE / "client_python.py"), *given, *options.only]
        rows = [{**row, "language": "Python"} for row in rows_of(python)]
        if options.modules:
            node = ["node", str(HERE / "client_node.mjs"), *given, str(Path(options.modules).resolve())]
            rows += [{**row, "language": "JavaScript"} for row in rows_of(node)]
    failed = [row for row in rows if not row["passed"]]
    for row in failed:
        print(
            f"{row['client']} {row['version']}, {row['task']}: {row['trouble'] or 'the answer is empty'}",
            file=sys.stderr,
        )
    print(table(rows))
    return 1 if failed else 0


@contextmanager
def _given(url: str) -> Iterator[str]:
    yield url


if __name__ == "__main__":
    sys.exit(main())
