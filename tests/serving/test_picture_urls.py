"""Pictures as URLs: the same files without a key, the address that the client used, and bounds in time, number and bytes."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import httpx2
import numpy as np
import pytest
import torch

from unmask.serving.access import Access, plain_keys
from unmask.serving.api import application
from unmask.serving.picture_urls import PictureUrls
from unmask.serving.server import Server

from .served import client, opened, plain, serving, tiny
from .test_images import FEW, GENERATE, usual

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(tiny()) as served:
        yield served


def test_a_url_gives_the_same_file_without_a_key() -> None:
    with serving(tiny(), access=Access(keys=plain_keys(["secret"]))) as server:
        for file in ("png", "jpeg", "webp"):
            options = {"model": "tiny", "prompt": "a dog", "output_format": file, "extra_body": FEW}
            given = client(server, "secret").images.generate(**options, n=2, response_format="url").data
            inline = client(server, "secret").images.generate(**options, n=2).data
            assert len({entry.url for entry in given}) == 2
            for entry, other in zip(given, inline, strict=True):
                assert entry.url.startswith(f"{server.url}/files/") and entry.b64_json is None and other.url is None
                fetched = httpx2.get(entry.url)
                assert fetched.headers["content-type"] == f"image/{file}"
                assert fetched.content == base64.b64decode(other.b64_json)
                assert httpx2.head(entry.url).headers["content-length"] == str(len(fetched.content))
        assert plain(server).get("/files/nothing.png").status_code == 404
        assert "request it again" in plain(server).get("/files/nothing.png").json()["error"]["message"]


def test_the_url_has_the_address_that_the_client_used(server: Server) -> None:
    def url(**headers: str) -> str:
        sent = {"prompt": "a dog", **FEW, "response_format": "url"}
        return plain(server).post(GENERATE, json=sent, headers=headers).json()["data"][0]["url"]

    assert url().startswith(server.url + "/files/")
    assert url(host="localhost:9").startswith("http://localhost:9/files/")
    behind = {"x-forwarded-proto": "https", "x-forwarded-host": "pictures.example", "x-forwarded-prefix": "/draw/"}
    assert url(**behind).startswith("https://pictures.example/draw/files/")
    for odd in ({"x-forwarded-host": "a/b"}, {"x-forwarded-prefix": "/<script>"}, {"x-forwarded-proto": "javascript"}):
        assert url(**odd).startswith("data:image/png;base64,")


def test_without_a_place_for_files_a_url_is_a_data_url() -> None:
    """Several copies behind one address do not share their memory."""
    from fastapi.testclient import TestClient

    from unmask.serving.service import Service

    service = Service(tiny(), name="tiny")
    try:
        with TestClient(application(service), base_url="http://127.0.0.1") as copy:
            sent = {"prompt": "a dog", **FEW, "response_format": "url"}
            url = copy.post(GENERATE, json=sent).json()["data"][0]["url"]
            assert url.startswith("data:image/png;base64,")
            assert np.array_equal(np.asarray(opened(url.partition(",")[2])), np.asarray(usual()))
    finally:
        service.close()


def test_a_streamed_picture_has_its_base64_and_a_url(server: Server) -> None:
    (done,) = client(server).images.generate(
        model="tiny", prompt="a dog", response_format="url", stream=True, extra_body=FEW
    )
    assert httpx2.get(done.url).content == base64.b64decode(done.b64_json)


def test_kept_files_expire_and_are_bounded_by_number_and_bytes() -> None:
    now = [0.0]
    urls = PictureUrls(seconds=60, most_files=3, most_bytes=100, clock=lambda: now[0])
    first = urls.keep(b"a" * 10, "png")
    now[0] = 59.0
    second = urls.keep(b"b" * 10, "webp")
    assert urls.find(first) == (b"a" * 10, "png") and urls.find(second) == (b"b" * 10, "webp")
    now[0] = 61.0
    assert urls.find(first) is None and urls.find(second)
    names = [urls.keep(b"c", "png") for _ in range(3)]
    assert urls.find(second) is None and all(urls.find(name) for name in names)
    large = urls.keep(b"d" * 99, "png")
    assert [bool(urls.find(name)) for name in (*names, large)] == [False, False, True, True]
    assert urls.find("") is None and urls.find("../x") is None
