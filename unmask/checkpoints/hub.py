"""Weights from the Hugging Face hub: from the local cache, downloaded only on request; safetensors and JSON only.

Public idea: ``fetch("owner/name", download=False) -> folder``. Code in a repository is never downloaded, so it cannot run.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from unmask.checkpoints.stream import CheckpointError
from unmask.writing import write_text

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
WANTED = ("*.json", "*.safetensors", "merges.txt", "README.md", "LICENSE*")  # no pickles, no Python
LICENCES = {"jacklishufan/LaViDa-O-v1.0": "Adobe Research License: non-commercial research only"}


def is_hub_name(name: str) -> bool:
    """Whether this looks like ``owner/name``."""
    return _NAME.fullmatch(name) is not None


def fetch(name: str, *, download: bool, tell: Callable[[str], None] | None = None) -> Path:
    """The folder of ``owner/name`` in the hub's local cache; ``download`` fetches what is missing there, with progress.

    An interrupted download resumes. ``tell`` (default: a line on stderr) reports the licence of the weights once.
    CheckpointError if the client is not installed, the model is not in the cache, or the hub refuses or cannot be reached.
    """
    try:
        import huggingface_hub
        from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError as error:
        raise CheckpointError(
            f"hub models such as {name} need the package huggingface_hub; pip install 'unmask[hub]', or give a folder"
        ) from error
    try:
        folder = huggingface_hub.snapshot_download(name, allow_patterns=list(WANTED), local_files_only=not download)
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{name} does not exist on the hub or you have no access; check the name, accept its terms and log in with `hf auth login`"
        ) from error
    except LocalEntryNotFoundError as error:
        if download:
            raise CheckpointError(
                f"{name} could not be downloaded because the hub cannot be reached; retry when online, the download resumes"
            ) from error
        raise CheckpointError(
            f"{name} is neither a folder here nor in the local cache of the hub; check the path, or add --download to fetch it"
        ) from error
    except Exception as error:  # client, transport and disk raise different errors
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{name} could not be downloaded ({reason}); retry, the download resumes") from error
    _say_licence(name, Path(folder), Path(huggingface_hub.constants.HF_HOME) / "unmask-licences", tell)
    return Path(folder)


def licence_of(name: str, folder: Path) -> str:
    """The licence of a model: from our list, else from the front matter of its model card."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.exists() else ""
    said = re.search(r"^license(?:_name)?:\s*(\S.*)$", text, re.MULTILINE)
    return LICENCES.get(name) or (said[1].strip() if said else f"not stated; see https://huggingface.co/{name}")


def _say_licence(name: str, folder: Path, shown: Path, tell: Callable[[str], None] | None) -> None:
    try:
        before = shown.read_text(encoding="utf-8").splitlines() if shown.exists() else []
        if name in before:
            return
        write_text(shown, "\n".join([*before, name]) + "\n")
    except OSError:
        pass  # the cache is not writable: reported again next time
    (tell or _on_stderr)(f"licence of the weights of {name}: {licence_of(name, folder)}")


def _on_stderr(text: str) -> None:
    print(text, file=sys.stderr)
