"""Weights from the Hugging Face hub: out of the local cache, downloaded only on request, safetensors and JSON alone.

Public idea: ``fetch("owner/name", download=False) -> folder``. Code of a repository is never fetched, so it cannot be run.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from unmask.checkpoints.stream import CheckpointError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
WANTED = ("*.json", "*.safetensors", "README.md", "LICENSE*")  # no pickles, no Python
LICENCES = {"jacklishufan/LaViDa-O-v1.0": "Adobe Research License: non-commercial research only"}


def is_hub_name(name: str) -> bool:
    """Whether this looks like ``owner/name``."""
    return _NAME.fullmatch(name) is not None


def fetch(name: str, *, download: bool, tell: Callable[[str], None] | None = None) -> Path:
    """The folder of ``owner/name`` in the hub's local cache; ``download`` fetches what is missing there, with progress.

    A download that was cut off goes on where it stopped. ``tell`` (default: a line on stderr) says once whose licence the weights have.
    CheckpointError where the client is not installed, the model is not in the cache, or the hub refuses or cannot be reached.
    """
    try:
        import huggingface_hub
        from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError as error:
        raise CheckpointError(
            f"models of the hub such as {name} need the package huggingface_hub; pip install 'unmask[hub]', or give a folder"
        ) from error
    try:
        folder = huggingface_hub.snapshot_download(name, allow_patterns=list(WANTED), local_files_only=not download)
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"the hub has no {name}, or does not open it to you; check the name, accept its terms there and log in with `hf auth login`"
        ) from error
    except LocalEntryNotFoundError as error:
        if download:
            raise CheckpointError(
                f"{name} could not be downloaded, since the hub cannot be reached; run it again when online: what was fetched is kept"
            ) from error
        raise CheckpointError(
            f"{name} is not in the local cache of the hub; add --download to fetch it, or give a folder"
        ) from error
    except Exception as error:  # the client, its transport and the disk each raise errors of their own
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{name} could not be fetched ({reason}); run it again: what was fetched is kept"
        ) from error
    _say_licence(name, Path(folder), Path(huggingface_hub.constants.HF_HOME) / "unmask-licences", tell)
    return Path(folder)


def licence_of(name: str, folder: Path) -> str:
    """What is known of a model's licence: from our list, else from the head of its model card."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.exists() else ""
    said = re.search(r"^license(?:_name)?:\s*(\S.*)$", text, re.MULTILINE)
    return LICENCES.get(name) or (said[1].strip() if said else f"not stated; see https://huggingface.co/{name}")


def _say_licence(name: str, folder: Path, shown: Path, tell: Callable[[str], None] | None) -> None:
    try:
        before = shown.read_text(encoding="utf-8").splitlines() if shown.exists() else []
        if name in before:
            return
        shown.write_text("\n".join([*before, name]) + "\n", encoding="utf-8")
    except OSError:
        pass  # a cache that cannot be written: said again next time
    (tell or _on_stderr)(f"licence of the weights of {name}: {licence_of(name, folder)}")


def _on_stderr(text: str) -> None:
    print(text, file=sys.stderr)
