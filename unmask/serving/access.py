"""Who may use the server: API keys with scopes, host names, origins of web pages, and a rate of requests.

Public idea: ``Access(keys=(Key(secret=..),), rate="60/minute")`` is given to the server. Without keys everybody may do everything.

A key file has one key per line, followed by its scopes; ``#`` begins a comment:

    sk-everything
    sk-questions ask
    sk-studio    ask,draw
"""

from __future__ import annotations

import hmac
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

MIB = 2**20
ASK, DRAW, ADMIN = "ask", "draw", "admin"
SCOPES = frozenset({ASK, DRAW, ADMIN})
"""``ask``: texts and boxes · ``draw``: images · ``admin``: metrics and priorities above 0."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """``secret``: what clients send as a bearer token · ``scopes``: what it allows."""

    secret: str
    scopes: frozenset[str] = SCOPES


@dataclass(frozen=True, kw_only=True)
class Access:
    """``origins``: of pages that may send requests, "*" for all · ``names``: host names besides localhost and addresses ·
    ``most_bytes``: of a body · ``rate``: requests below /v1 of each key, or of each address where there are no keys, such as
    "60/minute"; None: no limit · ``private_metrics``: /metrics needs a key with the scope ``admin``.
    """

    keys: tuple[Key, ...] = ()
    origins: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    most_bytes: int = 32 * MIB
    rate: str | None = None
    private_metrics: bool = False

    def scopes_of(self, sent: str) -> frozenset[str] | None:
        """The scopes of a bearer token; all where there are no keys, None for an unknown token. Every key is compared, in constant time."""
        if not self.keys:
            return SCOPES
        given = sent.encode("utf-8", "replace")
        found = [key for key in self.keys if hmac.compare_digest(given, key.secret.encode())]
        return found[0].scopes if found else None


def read_keys(path: Path) -> list[Key]:
    """The keys of a file. ValueError for a file that others may read, unknown scopes, and no keys."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise ValueError(f"{path} is not a regular file; give a text file with one key per line")
        if os.name == "posix" and mode & (stat.S_IROTH | stat.S_IWOTH):
            raise ValueError(f"{path} can be read by all users of this machine; run chmod 600 {path}")
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise ValueError(
            f"cannot read the key file {path} ({reason}); give a text file with one key per line"
        ) from error
    found = list(_parsed(text.splitlines(), path))
    if not found:
        raise ValueError(f"{path} has no keys; write one per line")
    return found


def _parsed(lines: Iterable[str], path: Path) -> Iterable[Key]:
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].replace(",", " ").split()
        if not words:
            continue
        secret, scopes = words[0], frozenset(words[1:])
        if unknown := sorted(scopes - SCOPES):
            raise ValueError(
                f"{path}, line {number}: unknown scope {unknown[0]!r}; the scopes are {', '.join(sorted(SCOPES))}"
            )
        yield Key(secret=secret, scopes=scopes or SCOPES)


def plain_keys(secrets: Sequence[str]) -> tuple[Key, ...]:
    """Keys with all scopes. ValueError for an empty one, such as that of a variable that is not set."""
    if not all(secret.strip() for secret in secrets):
        raise ValueError("an API key is empty; give a key, or leave the option out to serve everybody")
    return tuple(Key(secret=secret) for secret in secrets)
