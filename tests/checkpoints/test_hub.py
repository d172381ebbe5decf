"""Models of the hub, with a client that has no network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from unmask.checkpoints.hub import fetch, is_hub_name
from unmask.checkpoints.stream import CheckpointError
from unmask.pipeline.loading import resolve

NAME = "jacklishufan/LaViDa-O-v1.0"


class Client:
    """Stands for ``snapshot_download``: remembers what it was asked, answers with a folder or an error."""

    def __init__(self, answer: Path | Exception) -> None:
        self.answer, self.asked = answer, []

    def __call__(self, name: str, **given: Any) -> str:
        self.asked.append((name, given))
        if isinstance(self.answer, Exception):
            raise self.answer
        return str(self.answer)


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    made = Client(folder)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path))
    return made


def test_only_the_cache_is_asked_unless_told(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert resolve(NAME) == client.answer and resolve(NAME, download=True) == client.answer
    assert [given["local_files_only"] for _, given in client.asked] == [True, False]
    assert {name for name, _ in client.asked} == {NAME}


def test_no_code_and_no_pickles_are_wanted(client: Client) -> None:
    from fnmatch import fnmatch

    fetch(NAME, download=True)
    wanted = client.asked[0][1]["allow_patterns"]

    def taken(file: str) -> bool:
        return any(fnmatch(file, pattern) for pattern in wanted)

    assert all(taken(f) for f in ("config.json", "model-00001-of-00005.safetensors", "vqvae/config.json", "README.md"))
    assert all(taken(f) for f in ("tokenizer.json", "model.safetensors.index.json", "LICENSE", "vqvae/a.safetensors"))
    assert not any(taken(f) for f in ("modeling_llada.py", "pytorch_model.bin", "a/b.py", "x.pt", "x.ckpt", "x.pkl"))


def test_the_licence_is_said_once(client: Client) -> None:
    said: list[str] = []
    for _ in range(2):
        fetch(NAME, download=False, tell=said.append)
    assert said == [f"licence of the weights of {NAME}: Adobe Research License: non-commercial research only"]
    assert isinstance(client.answer, Path)
    (client.answer / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# A model\n")
    fetch("some/other", download=False, tell=said.append)
    assert said[1:] == ["licence of the weights of some/other: mit"]


@pytest.mark.parametrize(
    ("download", "error", "said"),
    [
        (False, LocalEntryNotFoundError("x"), "in the local cache of the hub; check the path, or add --download"),
        (True, LocalEntryNotFoundError("x"), "the hub cannot be reached; retry when online, the download resumes"),
        (True, RepositoryNotFoundError.__new__(RepositoryNotFoundError), "does not exist on the hub"),
        (True, OSError(28, "No space left on device"), r"No space left on device\); retry"),
        (True, TimeoutError("timed out"), r"\(timed out\); retry, the download resumes"),
    ],
    ids=["not cached", "offline", "no such model", "disk full", "cut off"],
)  # fmt: skip
def test_what_can_go_wrong(client: Client, download: bool, error: Exception, said: str) -> None:
    client.answer = error
    with pytest.raises(CheckpointError, match=said):
        resolve(NAME, download=download)


def test_without_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"need the package huggingface_hub; pip install 'unmask\[hub\]'"):
        resolve(NAME)


def test_half_a_snapshot_is_told(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    from unmask.cli.main import main

    assert isinstance(client.answer, Path)
    (client.answer / "config.json").write_text('{"d_model": 64}')
    (client.answer / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    assert main(["generate", "x", "--model", NAME]) == 2
    assert (
        "names 1 of 1 files that are missing (model-1.safetensors)\nhint: copy or download" in capsys.readouterr().err
    )


@pytest.mark.parametrize(("name", "fits"), [(NAME, True), ("a/b", True), ("mini", False), ("a/b/c", False), ("../b", False),
                                            ("/tmp/b", False), ("a/", False)])  # fmt: skip
def test_names_of_the_hub(name: str, fits: bool) -> None:
    assert is_hub_name(name) is fits


def test_a_folder_comes_before_the_hub(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "owner" / "name" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert resolve("owner/name") == Path("owner/name") and not client.asked
