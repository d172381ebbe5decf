"""The Dockerfile and compose.yaml agree with the program and with pyproject.toml. Building them needs a container runtime."""

from __future__ import annotations

import re
import tomllib

import click
import yaml

from unmask.cli.serve import serve

from .pages import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_the_image_installs_what_the_package_takes() -> None:
    (torch,) = (one for one in PROJECT["dependencies"] if one.startswith("torch"))
    assert f'pip install --no-cache-dir "{torch}"' in DOCKERFILE
    (extras,) = re.findall(r"\.whl\)\[([\w,]+)\]", DOCKERFILE)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {name for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.M) for name in line.split()}
    assert copied == kept and all((ROOT / name).exists() for name in copied)


def test_the_commands_are_the_programs() -> None:
    (given,) = re.findall(r'^CMD \["serve", (.*)\]$', DOCKERFILE, re.M)
    for words in (re.findall(r'"([^"]*)"', given), COMPOSE["services"]["cpu"]["command"][1:]):
        read = serve.make_context("serve", [word.replace("${MODEL:-mini}", "mini") for word in words])
        assert isinstance(read, click.Context) and read.params["host"] == "0.0.0.0" and read.params["port"] == 8000
    assert "EXPOSE 8000" in DOCKERFILE and "127.0.0.1:8000/readyz" in DOCKERFILE


def test_nothing_runs_as_root() -> None:
    assert re.findall(r"^USER (\d+)$", DOCKERFILE, re.M) == ["1000"] and "--uid 1000 " in DOCKERFILE
    for service in COMPOSE["services"].values():
        assert service["cap_drop"] == ["ALL"] and service["read_only"] is True


def test_the_grace_period_is_longer_than_the_servers() -> None:
    (drain,) = (option.default for option in serve.params if option.name == "drain_seconds")
    assert int(COMPOSE["services"]["cpu"]["stop_grace_period"].rstrip("s")) > drain
