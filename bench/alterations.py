"""Altered model folders for altered_folders.py: every field of every configuration, every file replaced, cut, or of another kind.

Public idea: ``alterations(base) -> Iterator[Alteration]``. ``Alteration.apply(folder)`` changes a copy of the folder ``base`` in place. An
alteration is ``harmless`` where a model may open afterwards: the field is not read, or the value says the same.
"""

from __future__ import annotations

import copy
import json
import os
import random
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from field_values import DELETED, NOT_READ, VALID, VALUES

Place = tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True)
class Alteration:
    """``name``: file, place and kind · ``apply(folder)``: make it · ``harmless``: a model may open, and answer as before."""

    name: str
    apply: Callable[[Path], None]
    harmless: bool = False


def alterations(base: Path, *, own: bool) -> Iterator[Alteration]:
    """All alterations of a folder, in a fixed order. ``own``: it is in our layout, where weights have checksums."""
    for path in sorted(p for p in base.rglob("*") if p.is_file()):
        name = str(path.relative_to(base))
        if path.name in ("README.md",):
            continue
        yield from _special(name)
        yield from _cut(name, path, own)
        if path.name.endswith(".safetensors"):
            yield from _heads(name, path)
        elif path.name.endswith("config.json"):
            yield from _fields(name, json.loads(path.read_text(encoding="utf-8")))
        elif path.name == "tokenizer.json":
            yield from _tokenizer(name, json.loads(path.read_text(encoding="utf-8")))
        elif path.name == "vocabulary.json":
            yield from _fields(name, json.loads(path.read_text(encoding="utf-8")))
        if path.suffix == ".json":
            yield from _json_texts(name)
    yield from _indexes(base)
    yield from _names(base)


# -- any file -----------------------------------------------------------------------------------------------------------


def _special(name: str) -> Iterator[Alteration]:
    def replaced(make: Callable[[Path], object]) -> Callable[[Path], None]:
        def apply(folder: Path) -> None:
            (folder / name).unlink()
            make(folder / name)

        return apply

    def endpoint(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(f"/proc/self/fd/{os.open(path.parent, os.O_RDONLY)}/{path.name}")

    optional = name == "vocabulary.json"
    kinds: dict[str, Callable[[Path], object]] = {
        "absent": lambda p: None,
        "a folder": lambda p: p.mkdir(),
        "a FIFO": lambda p: os.mkfifo(p),
        "a link to /dev/zero": lambda p: p.symlink_to("/dev/zero"),
        "a link to /dev/null": lambda p: p.symlink_to("/dev/null"),
        "a link to /dev/tty": lambda p: p.symlink_to("/dev/tty"),
        "a link to /proc/self/mem": lambda p: p.symlink_to("/proc/self/mem"),
        "a link to itself": lambda p: p.symlink_to(p.name),
        "a link to nothing": lambda p: p.symlink_to("nowhere"),
        "a link to its folder": lambda p: p.symlink_to("."),
        "a link to /etc/passwd": lambda p: p.symlink_to("/etc/passwd"),
        "a socket": endpoint,
    }
    for kind, make in kinds.items():
        gone = kind in ("absent", "a link to nothing", "a link to itself")
        yield Alteration(name=f"{name}: {kind}", apply=replaced(make), harmless=optional and gone)


def _put(name: str, content: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """The file with other bytes; a new file, because the folder shares the old one."""

    def apply(folder: Path) -> None:
        path = folder / name
        old = path.read_bytes() if path.exists() else b""
        path.unlink(missing_ok=True)
        path.write_bytes(content(old))

    return apply


def _cut(name: str, path: Path, own: bool) -> Iterator[Alteration]:
    size = path.stat().st_size
    for kept in sorted({0, 1, 7, 8, 9, 100, size // 3, size // 2, size - 100, size - 1} - {size}):
        if 0 <= kept < size:
            yield Alteration(
                name=f"{name}: cut to {kept} bytes",
                apply=_put(name, lambda b, kept=kept: b[:kept]),
                harmless=path.suffix == ".json" and kept == size - 1,  # without the last line end
            )
    yield Alteration(name=f"{name}: random bytes", apply=_put(name, lambda b: random.Random(0).randbytes(2000)))
    yield Alteration(name=f"{name}: zero bytes", apply=_put(name, lambda b: bytes(2000)))
    yield Alteration(name=f"{name}: appended", apply=_put(name, lambda b: b + b"more"))
    rng = random.Random(name)
    for flip in range(12):
        at, bit = rng.randrange(size), rng.randrange(8)
        yield Alteration(
            name=f"{name}: bit {bit} of byte {at} flipped ({flip})",
            apply=_put(name, lambda b, at=at, bit=bit: b[:at] + bytes([b[at] ^ 1 << bit]) + b[at + 1 :]),
            harmless=path.suffix == ".json" or not own,  # a digit may become another, and so may a weight
        )


def _heads(name: str, path: Path) -> Iterator[Alteration]:
    """Headers of safetensors files: sizes, offsets, types and shapes that contradict the data."""
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        head = json.loads(file.read(length))
    first = next(k for k in head if k != "__metadata__")

    def headed(new: bytes) -> Callable[[bytes], bytes]:
        return lambda b: struct.pack("<Q", len(new)) + new + b[8 + length :]

    def changed(**fields: object) -> bytes:
        return json.dumps(head | {first: head[first] | fields}).encode()

    begin, end = head[first]["data_offsets"]
    heads: dict[str, bytes] = {
        "no tensors": b"{}",
        "deep": b"[" * 50_000 + b"]" * 50_000,
        "a list": b"[]",
        "other shape": changed(shape=[1, *head[first]["shape"]]),
        "negative shape": changed(shape=[-1]),
        "large shape": changed(shape=[2**40, 2**40]),
        "other type": changed(dtype="F64"),
        "unknown type": changed(dtype="X8"),
        "begins elsewhere": changed(data_offsets=[begin + 2, end]),
        "ends elsewhere": changed(data_offsets=[begin, end + 2**40]),
        "renamed": json.dumps({("x" if k == first else k): v for k, v in head.items()}).encode(),
        "twice": json.dumps(head | {"x": head[first]}).encode(),
    }
    for kind, new in heads.items():
        yield Alteration(name=f"{name}: header: {kind}", apply=_put(name, headed(new)))
    yield Alteration(name=f"{name}: header: 400,000 tensors", apply=_put(name, lambda b: headed(_many())(b)))
    for size in (0, 1, 2**31, 2**62, 2**64 - 1):
        yield Alteration(
            name=f"{name}: header of {size} bytes",
            apply=_put(name, lambda b, size=size: struct.pack("<Q", size) + b[8:]),
        )


def _many() -> bytes:
    """The header of 400,000 empty tensors."""
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return json.dumps({f"t{i}": empty for i in range(400_000)}).encode()


# -- JSON ---------------------------------------------------------------------------------------------------------------


def _json_texts(name: str) -> Iterator[Alteration]:
    texts: dict[str, bytes] = {
        "deep list": b"[" * 50_000 + b"]" * 50_000,
        "deep object": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        "many digits": b'{"a": ' + b"9" * 10**6 + b"}",
        "UTF-16": '{"a": 1}'.encode("utf-16"),
        "Latin-1": '{"a": "é"}'.encode("latin-1"),
        "two values": b"{}{}",
    }
    texts |= {f"only {value}": value.encode() for value in ("null", "[]", "5", '"x"', "true", "{}", "NaN", '["x"]')}
    for kind, content in texts.items():
        yield Alteration(name=f"{name}: {kind}", apply=_put(name, lambda b, content=content: content))
    large: dict[str, Callable[[bytes], bytes]] = {  # 80 and 60 MiB, made when they are written
        "large": lambda b: b'{"a": "' + b"x" * (80 * 2**20) + b'"}',
        "many lists": lambda b: b"[" + b"[]," * (20 * 2**20) + b"[]]",
    }
    for kind, make in large.items():
        yield Alteration(name=f"{name}: {kind}", apply=_put(name, make))


def places(value: object, at: Place = ()) -> Iterator[Place]:
    """Every place inside a JSON value; of a list, the first and the last element."""
    if isinstance(value, dict):
        for key in value:
            yield (*at, key)
            yield from places(value[key], (*at, key))
    elif isinstance(value, list):
        for i in sorted({0, len(value) - 1} - {-1}):
            yield (*at, i)
            yield from places(value[i], (*at, i))


def with_value(raw: Any, at: Place, value: object) -> Any:
    """A copy of a JSON value with another value in one place, or without it."""
    out = copy.deepcopy(raw)
    inside = out
    for part in at[:-1]:
        inside = inside[part]
    if value is DELETED:
        del inside[at[-1]]
    else:
        inside[at[-1]] = value
    return out


def at_place(raw: Any, at: Place) -> Any:
    for part in at:
        raw = raw[part]
    return raw


def _written(name: str, made: Callable[[], object]) -> Callable[[Path], None]:
    """The file with another JSON value, made when it is written: most copies of a tokenizer are never asked for."""
    return _put(name, lambda b: json.dumps(made()).encode())


def _fields(name: str, raw: Any) -> Iterator[Alteration]:
    for at in places(raw):
        for kind, value in VALUES:
            if value is not DELETED and type(value) is type(at_place(raw, at)) and value == at_place(raw, at):
                continue
            yield Alteration(
                name=f"{name}: {'.'.join(map(str, at))}: {kind}",
                apply=_written(name, partial(with_value, raw, at, value)),
                harmless=_harmless(name, at, kind),
            )
    yield Alteration(name=f"{name}: a strange field", apply=_written(name, lambda: raw | {"strange": 1}), harmless=True)


def _harmless(name: str, at: Place, kind: str) -> bool:
    named = [part for part in at if isinstance(part, str)]
    if name == "vocabulary.json":  # words that warnings know
        return True
    return any(part in NOT_READ for part in named) or (bool(named) and (named[-1], kind) in VALID)


# -- tokenizers, indexes, names -----------------------------------------------------------------------------------------


def _tokenizer(name: str, raw: Any) -> Iterator[Alteration]:
    small = {k: v for k, v in raw.items() if k not in ("model", "added_tokens")}
    model = {k: v for k, v in raw["model"].items() if k not in ("vocab", "merges")}
    for at in [
        *((k,) for k in raw),
        *places(small),
        *(("model", k) for k in raw["model"]),
        *(("model", *p) for p in places(model)),
    ]:
        for kind, value in VALUES:
            yield Alteration(
                name=f"{name}: {'.'.join(map(str, at))}: {kind}",
                apply=_written(name, partial(with_value, raw, at, value)),
                harmless=_harmless(name, at, kind) or at[0] in ("normalizer", "pre_tokenizer", "decoder"),
            )
    replace = {"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 64}
    anything = {"type": "Replace", "pattern": {"Regex": "|."}, "content": "e" * 64}
    slow = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    vocabulary = raw["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.get)
    spoilt: dict[str, Any] = {
        "growing normalizer": raw | {"normalizer": {"type": "Sequence", "normalizers": [replace] * 6}},
        "growing pattern": raw | {"normalizer": {"type": "Sequence", "normalizers": [anything] * 6}},
        "growing decoder": raw | {"decoder": {"type": "Sequence", "decoders": [replace] * 6}},
        "slow pattern": raw | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [slow, raw["pre_tokenizer"]]}},
        "id 5000": with_value(raw, ("model", "vocab", last), 5000),
        "id -1": with_value(raw, ("model", "vocab", last), -1),
        "id 2^31": with_value(raw, ("model", "vocab", last), 2**31),
        "one id twice": with_value(raw, ("model", "vocab", last), 0),
        "no vocabulary": with_value(raw, ("model", "vocab"), {}),
        "no added tokens": raw | {"added_tokens": []},
        "half the added tokens": raw | {"added_tokens": raw["added_tokens"][::2]},
        "an added token more": raw | {"added_tokens": [*raw["added_tokens"], raw["added_tokens"][-1] | {"id": 10**6, "content": "<|q|>"}]},
        "added ids moved": raw | {"added_tokens": [t | {"id": t["id"] + 7} for t in raw["added_tokens"]]},
        "merges of other tokens": with_value(raw, ("model", "merges"), [["zz", "qqq"]]),
        "merges of three": with_value(raw, ("model", "merges"), [["a", "b", "c"]]),
    }  # fmt: skip
    for kind, value in spoilt.items():
        yield Alteration(name=f"{name}: {kind}", apply=_written(name, lambda value=value: value))
    dropout, cut = (
        with_value(raw, ("model", "dropout"), 0.9),
        {"max_length": 1, "strategy": "LongestFirst", "stride": 0},
    )
    harmless: dict[str, Any] = {
        "dropout 0.9": dropout,
        "truncation to 1": raw | {"truncation": cut | {"direction": "Right"}},
        "padding to 1000": raw | {"padding": {
            "strategy": {"Fixed": 1000}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "!"
        }},
    }  # fmt: skip
    for kind, value in harmless.items():
        yield Alteration(name=f"{name}: {kind}", apply=_written(name, lambda value=value: value), harmless=True)


def _indexes(base: Path) -> Iterator[Alteration]:
    """An index beside the weights that names other files."""
    for stem in sorted({p.name.split("-0")[0].split(".")[0] for p in base.glob("*.safetensors")}):
        name = f"{stem}.safetensors.index.json"
        file = sorted(base.glob(f"{stem}*.safetensors"))[0].name
        maps: dict[str, object] = {
            kind: {"weight_map": {"a": where}}
            for kind, where in {
                "a number": 5, "null": None, "a list": ["x"], "above": "../../etc/passwd", "absolute": "/etc/passwd", "a dot": ".",
                "two dots": "..", "empty": "", "zero byte": "a\0b.safetensors", "absent": "absent.safetensors", "other tensor": file,
                "long": "x" * 5000 + ".safetensors", "surrogate": "\ud800.safetensors", "the configuration": "config.json",
            }.items()
        }  # fmt: skip
        maps |= {
            "no map": {},
            "a list as map": {"weight_map": [1]},
            "a text as map": {"weight_map": "x"},
            "an empty map": {"weight_map": {}},
        }
        for kind, value in maps.items():
            yield Alteration(name=f"{name}: {kind}", apply=_written(name, lambda value=value: value))
        deep = b'{"weight_map":' * 50_000 + b"1" + b"}" * 50_000
        yield Alteration(name=f"{name}: deep", apply=_put(name, lambda b, deep=deep: deep))
        yield Alteration(name=f"{name}: a FIFO", apply=lambda folder, name=name: _fifo(folder / name))


def _fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _names(base: Path) -> Iterator[Alteration]:
    """Weights under other names, twice, or those of another part."""
    for path in sorted(base.rglob("*.safetensors")):
        name = str(path.relative_to(base))
        stem = path.name.split("-0")[0].split(".")[0]
        others = [
            f"{stem}-00009-of-00009.safetensors",
            f"{stem}-x-of-y.safetensors",
            f"{stem}-1-of-.safetensors",
            "other.safetensors",
        ]
        for other in others:
            yield Alteration(
                name=f"{name} renamed {other}", apply=lambda f, p=name, o=other: os.rename(f / p, (f / p).with_name(o))
            )
            copied = other != "other.safetensors"
            yield Alteration(
                name=f"{name} copied to {other}",
                apply=lambda f, p=name, o=other: os.link(f / p, (f / p).with_name(o)),
                harmless=not copied,
            )
        for second in sorted(base.rglob("*.safetensors")):
            if second != path:
                theirs = str(second.relative_to(base))
                yield Alteration(
                    name=f"{name} holds {theirs}", apply=_put(name, lambda b, other=second: other.read_bytes())
                )
