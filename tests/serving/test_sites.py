"""Which web pages and host names the server answers. A browser sends forms and simple requests anywhere without asking first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from unmask.serving.access import Access
from unmask.serving.server import Server

from .served import client, plain, serving, tiny

torch.set_num_threads(1)
INFILL = "/v1/infill"
FILL = {"text": "a [mask]"}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(tiny(), access=Access(names=("lab", "Box.Example"), origins=("https://mine.example",))) as served:
        yield served


def status(server: Server, method: str = "POST", path: str = INFILL, **headers: str) -> tuple[int, str]:
    """Status and error code. ``PORT`` in a header is the server's port."""
    port = server.url.rpartition(":")[2]
    sent = {name.replace("_", "-"): value.replace("PORT", port) for name, value in headers.items()}
    answer = plain(server).request(method, path, headers=sent, **({"json": FILL} if method == "POST" else {}))
    code = "" if answer.status_code < 400 else answer.json()["error"]["code"]
    return answer.status_code, code


SITES: dict[str, tuple[dict[str, str], bool]] = {
    "no browser": ({}, True),
    "the page itself": ({"origin": "http://127.0.0.1:PORT"}, True),
    "the page itself, as browsers say": ({"origin": "http://127.0.0.1:PORT", "sec_fetch_site": "same-origin"}, True),
    "the page under a name": ({"host": "lab:PORT", "origin": "http://lab:PORT"}, True),
    "behind a proxy with TLS": ({"host": "box.example", "origin": "https://box.example"}, True),
    "upper case": ({"host": "LAB:PORT", "origin": "http://lab:PORT"}, True),
    "an allowed page": ({"origin": "https://mine.example"}, True),
    "an allowed page, as browsers say": ({"origin": "https://mine.example", "sec_fetch_site": "cross-site"}, True),
    "another site": ({"origin": "http://attacker.example"}, False),
    "another site, as browsers say": ({"origin": "http://attacker.example", "sec_fetch_site": "cross-site"}, False),
    "another port": ({"origin": "http://127.0.0.1:1"}, False),
    "another port, as browsers say": ({"origin": "http://127.0.0.1:1", "sec_fetch_site": "same-site"}, False),
    "another scheme": ({"host": "box.example", "origin": "ftp://box.example"}, False),
    "the same host by another name": ({"origin": "http://localhost:PORT"}, False),
    "a file": ({"origin": "null"}, False),
    "nonsense": ({"origin": "http://[::1"}, False),
    "an allowed host of another scheme": ({"origin": "http://mine.example"}, False),
    "no origin, but cross-site": ({"sec_fetch_site": "cross-site"}, False),
    "no origin, but same-site": ({"sec_fetch_site": "same-site"}, False),
    "typed by hand": ({"sec_fetch_site": "none"}, True),
}


@pytest.mark.parametrize("headers, allowed", SITES.values(), ids=SITES)
def test_only_pages_of_this_server_and_of_named_origins_may_post(
    server: Server, headers: dict[str, str], allowed: bool
) -> None:
    assert status(server, **headers) == ((200, "") if allowed else (403, "other_site"))


HOSTS = {
    **dict.fromkeys(("127.0.0.1", "10.1.2.3:80", "[::1]:8000", "localhost", "localhost:9", "a.localhost"), True),
    **dict.fromkeys(("lab", "lab:80", "LAB.", "box.example"), True),
    **dict.fromkeys(
        ("attacker.example", "lab.example", "localhost.example", "127.0.0.1.example", "xlab", "[::1", ""), False
    ),
}


@pytest.mark.parametrize("host, allowed", HOSTS.items(), ids=[h or "empty" for h in HOSTS])
def test_host_names_are_known(server: Server, host: str, allowed: bool) -> None:
    """A page whose own name leads to this server has the server's origin, so its requests carry no sign of another site."""
    wanted = (200, "") if allowed else (403, "other_host")
    assert status(server, "POST", host=host) == wanted
    assert status(server, "GET", "/v1/models", host=host) == wanted
    assert status(server, "GET", "/healthz", host=host) == wanted


def test_reading_and_links(server: Server) -> None:
    assert status(server, "GET", "/", sec_fetch_site="cross-site")[0] == 200  # a link to the page
    assert status(server, "GET", "/v1/models", origin="http://attacker.example") == (403, "other_site")
    assert client(server).models.list().data  # no browser


def test_any_origin_may_be_allowed() -> None:
    with serving(tiny(), access=Access(origins=("*",))) as served:
        assert status(served, origin="http://attacker.example", sec_fetch_site="cross-site") == (200, "")
        assert status(served, origin="http://a.example", host="a.example") == (403, "other_host")


def test_a_form_of_another_site_is_not_worked_on(server: Server) -> None:
    body: dict[str, Any] = {"data": {"prompt": "a"}, "files": {"image": ("a.png", b"no picture", "image/png")}}
    told = plain(server).post("/v1/images/edits", headers={"origin": "http://attacker.example"}, **body)
    assert told.status_code == 403
    error = told.json()["error"]
    assert error["type"] == "permission_error" and "--cors" in error["message"] and told.headers["x-request-id"]
