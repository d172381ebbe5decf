"""Every command of docs/batch.md, with the requests that it shows."""

from __future__ import annotations

import json
import re
from pathlib import Path

from .pages import ROOT, commands, follow

PAGE = (ROOT / "docs" / "batch.md").read_text()


def test_commands_run_in_order(tmp_path: Path) -> None:
    (requests,) = re.findall(r"```json\n(.*?)```", PAGE, re.S)
    (tmp_path / "requests.jsonl").write_text(requests)
    for command in commands(PAGE):
        follow(command, tmp_path)
    told = {r["id"]: r for r in map(json.loads, (tmp_path / "answers" / "results-0.jsonl").read_text().splitlines())}
    assert set(told) == {json.loads(line)["id"] for line in requests.splitlines()} and all(
        r["ok"] for r in told.values()
    )
    assert told["ask"]["result"]["value"] == "red"
    assert all((tmp_path / "answers" / told[name]["result"]["file"]).exists() for name in ("draw", "edit"))
