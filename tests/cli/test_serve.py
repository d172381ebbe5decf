"""The command serve: its options and its start-up errors. The running server is tested with docs/serve.md."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from typing import Any

import pytest

from unmask.cli import serve, served
from unmask.cli.main import main
from unmask.serving.access import Access, plain_keys
from unmask.serving.connections import ConnectionLimits
from unmask.serving.talks import Talks

from ..serving.talking import Scripted


def told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["serve", *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out and "Traceback" not in err
    return err


def test_a_port_that_is_taken_is_told_before_the_model_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        err = told(["no-such-model", "--port", port], capsys)
    assert f"cannot listen on 127.0.0.1:{port}" in err and "--port" in err
    assert "no model is called" in told(["no-such-model", "--port", "0"], capsys)
    assert "cannot listen on nowhere.invalid" in told(["--host", "nowhere.invalid"], capsys)


@pytest.mark.parametrize(
    ("host", "keys", "warns"), [("0.0.0.0", [], True), ("0.0.0.0", ["k"], False), ("127.0.0.1", [], False)]
)
def test_a_server_that_is_open_to_everybody_warns(
    host: str, keys: list[str], warns: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "_run", lambda server, *more: server.close())
    monkeypatch.setattr(serve, "open_service", lambda *given: Talks(Scripted(), name="face"))
    assert main(["serve", "--port", "0", "--host", host, *(w for key in keys for w in ("--api-key", key))]) == 0
    said = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert any("no API key" in line["event"] for line in said) is warns


@pytest.mark.parametrize("key", ["", "  "])
def test_an_empty_key_is_refused(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "an API key is empty" in told(["--port", "0", "--api-key", key], capsys)


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    assert "pip install 'unmask[serve]'" in told([], capsys)
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "ray" else "there")
    assert "pip install 'unmask[serve,ray]'" in told(["--replicas", "2"], capsys)


def test_the_options_reach_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    import unmask.serving.server as serving

    made: dict[str, Any] = {}

    def service(
        model: str,
        device: str,
        storage: Any,
        adapters: Any,
        speed: str,
        quirks: str,
        download: bool,
        live: int,
        waiting: int,
        pixels: int,
        image_output: str,
    ) -> str:
        made.update(image_output=image_output)
        made.update(model=model, live=live, waiting=waiting, download=download, dtype=storage.dtype)
        return "service"

    def server(given: str, listener: socket.socket, **more: Any) -> str:
        made.update(given=given, host=listener.getsockname()[0], **more)
        listener.close()
        return "server"

    monkeypatch.setattr(serve, "open_service", service)
    monkeypatch.setattr(serving, "Server", server)
    monkeypatch.setattr(serve, "_run", lambda *given: made.update(run=given))
    monkeypatch.setenv(serve.KEY, "from-outside")
    options = "mine --host 127.0.0.2 --port 0 --api-key a --api-key b --cors https://x --host-name box --max-waiting 3 --max-live 2"
    options += " --rate 9/minute --max-connections 77 --image-output markdown"
    assert main(["serve", *options.split(), "--max-body", "5", "--drain-seconds", "7", "--dtype", "bfloat16"]) == 0
    assert made == {
        **{"model": "mine", "live": 2, "waiting": 3, "download": False, "dtype": "bfloat16", "given": "service"},
        "image_output": "markdown",
        **{
            "host": "127.0.0.2",
            "access": Access(
                keys=plain_keys(["a", "b", "from-outside"]),
                origins=("https://x",),
                names=("127.0.0.2", "box"),
                most_bytes=5 * 2**20,
                rate="9/minute",
            ),
        },
        **{"connections": ConnectionLimits(most=77), "tls": None, "run": ("server", 7.0, False)},
    }


def test_the_options_reach_every_replica(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import unmask.serving.replicas as replicas

    made: dict[str, Any] = {}

    def many(open_: Any, listener: socket.socket, copies: replicas.Copies, **more: Any) -> str:
        made.update(open=open_, host=listener.getsockname()[0], copies=copies, **more)
        listener.close()
        return "replicas"

    monkeypatch.setattr(serve, "find_spec", lambda name: "there")
    monkeypatch.setattr(served, "use_threads", lambda threads: made.update(threads=threads))
    monkeypatch.setattr(serve, "open_service", lambda *given: given)
    monkeypatch.setattr(replicas, "Replicas", many)
    monkeypatch.setattr(serve, "_run", lambda *given: made.update(run=given))
    options = "mine --port 0 --replicas 3 --threads 5 --api-key a --max-waiting 3 --max-live 2 --drain-seconds 7"
    assert main(["serve", *options.split(), "--max-body", "5"]) == 0
    assert made["copies"] == replicas.Copies(count=3, places=5, drain_seconds=7.0)
    assert made["access"].keys == plain_keys(["a"]) and made["access"].most_bytes == 5 * 2**20
    assert made["run"] == ("replicas", 7.0, False)
    opened = made["open"]()
    assert opened[:2] == ("mine", "cpu") and opened[-4:] == (2, 3, 64_000_000, "images") and made["threads"] == 5
    monkeypatch.setattr(serve, "found_device", lambda device: device)
    assert "its own GPU" in told(["--port", "0", "--replicas", "2", "--device", "cuda:0"], capsys)
    for option in (["--tls", __file__, __file__], ["--max-connections", "1000"]):
        said = told(["--port", "0", "--replicas", "2", *option], capsys)
        assert f"{option[0]} does not apply to --replicas\nhint: put a proxy that has it in front" in said


def test_a_signal_that_another_thread_is_given_stops_it_too() -> None:
    """The kernel chooses the thread; only the main one runs handlers, and it must wake up for that."""
    told, rescued = [], threading.Event()

    class Served:
        url = "http://nowhere"

        def start(self) -> None:
            threading.Thread(target=self._interrupt, daemon=True).start()

        def _interrupt(self) -> None:
            time.sleep(0.5)  # by then the main thread waits
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
            if not rescued.wait(20):
                told.append("nobody heard")
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

        def drain(self, seconds: float) -> None:
            told.append("drained")

        def close(self) -> None:
            told.append("closed")
            rescued.set()

    before = signal.getsignal(signal.SIGTERM)
    serve._run(Served(), 1.0, False)
    assert told == ["drained", "closed"] and signal.getsignal(signal.SIGTERM) is before
