"""No code writes a file by itself: all go through ``unmask/writing.py``, whose behaviour on a failing disk is in ``test_writing.py``."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from unmask import writing

# Calls that write by themselves, and why: all others go through unmask/writing.py, whose functions call theirs with a ``part``.
BY_THEMSELVES = {
    ("cli/batch.py", "copy.write_bytes"),  # a temporary folder
    ("data/ahead.py", "open"),  # shared memory between processes
    ("data/world/sprites.py", "np.memmap"),  # a cache in a temporary folder, valid in any state
    ("data/world/puppet.py", "wave.open"),  # of the part that write_whole renames
    ("pipeline/image_tokens.py", "kit.text.save"),  # Text.save, which writes whole
    ("recipes/looped.py", "text.save"),  # Text.save
    ("recipes/mini.py", "made.save"),  # Text.save, which writes whole, as in the next two
    ("recipes/mini_series.py", "Text.train(lines(self.texts), self.config.vocab_size).save"),
    ("recipes/mini_tasks.py", "text.save"),
    ("recipes/small.py", "Text.train(lines(self.texts), self.config.vocab_size).save"),
    ("serving/batch.py", "path.open"),  # cuts half a line off
    ("serving/logs.py", "open"),  # stderr, by its descriptor
    ("training/clock.py", "self.save"),  # states.save
    ("training/train.py", "saver.save"),
}
_WRITES = re.compile(
    r"(.*\.)?(write_bytes|save_file|savez|save|copy2?|copyfile|copytree|memmap)|.+\.write_text|(.*\.)?open"
)
_NO_DISK = {"buffer", "sys.stdout.buffer", "stream", "file"}  # first arguments of ``save``


def _writes(call: ast.Call) -> bool:
    """Whether a call may change a file that is not called ``part``."""
    name, given = ast.unparse(call.func), [ast.unparse(one) for one in call.args]
    if (
        not _WRITES.fullmatch(name)
        or name.startswith(("part.", "copy.", "dataclasses."))
        and name != "copy.write_bytes"
    ):
        return False
    if name.rpartition(".")[2] == "open":
        modes = [one.value for one in call.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        return any(re.fullmatch("[wax]b?|r\\+b?", mode) for mode in modes)
    if not given or any(re.search(r"\bpart\b", one) for one in given) or given[0] in _NO_DISK:
        return False
    return not any(k.arg == "copy_function" and ast.unparse(k.value) == "copy_file" for k in call.keywords)


def test_every_writer_goes_through_the_writing_functions() -> None:
    package = Path(writing.__file__).parent
    found = set()
    for path in sorted(package.rglob("*.py")):
        if path.name != "writing.py":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and _writes(node))
            found |= {(path.relative_to(package).as_posix(), ast.unparse(call.func)) for call in calls}
    assert found - BY_THEMSELVES == set(), "write these files by unmask.writing, or say above why not"
    assert BY_THEMSELVES - found == set(), "these are gone"
