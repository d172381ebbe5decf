"""Image codes (or vision features) made beforehand, in shards of a folder.

Public idea: ``encode(refs, shards, …)`` fills a ``Shards``; ``Shards.get(ref.fingerprint())`` reads one. Tensors are named by the hash
of the picture's bytes: renamed or repeated pictures are encoded once, and a changed picture is encoded again. ``codes.json`` says what
made them (``MadeBy``); opening them for something else is a ``CodesMismatch``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from unmask.data.samples import DataError, ImageRef
from unmask.tokens.pictures import write_whole
from unmask.tokens.sources import ImageError
from unmask.writing import write_tensors

SHARD_BYTES = 15 * 2**20
_CODING = ("encoder.", "quant_conv.", "quantize.")  # what codes depend on; the decoder does not count


class CodesMismatch(DataError):
    """Codes were made by another tokenizer, at another size, or by another way to make pictures square."""


def weights_hash(module: nn.Module, prefixes: tuple[str, ...] = _CODING, config: object = None) -> str:
    """SHA-256 of the values of the parameters and buffers under ``prefixes``, as float32, and of ``config``; 32 hexadecimal digits."""
    whole = hashlib.sha256(repr(config).encode())
    for name, value in sorted(module.state_dict().items()):
        if name.startswith(prefixes):
            whole.update(f"{name} {tuple(value.shape)}".encode())
            whole.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()[:32]


@dataclass(frozen=True, kw_only=True)
class MadeBy:
    """What tensors depend on besides their picture. ``weights``: ``weights_hash`` of the network that makes them · ``side``: pixels ·
    ``square``: ``Square.name``.
    """

    weights: str
    side: int
    square: str

    def refuse(self, found: MadeBy, folder: Path) -> None:
        """CodesMismatch unless ``found`` is the same, with what differs."""
        names = {"weights": "hash of the weights", "side": "side in pixels", "square": "way to make pictures square"}
        pairs = {name: (asdict(found)[name], value) for name, value in asdict(self).items()}
        wrong = [f"{names[n]} {was}, wanted {now}" for n, (was, now) in pairs.items() if was != now]
        if wrong:
            raise CodesMismatch(
                f"{folder} was encoded differently ({', '.join(wrong)}); encode the data again into another folder"
            )


class Shards:
    """Tensors in ``folder/name-HASH.safetensors``, by the fingerprint of their picture.

    Files are named by the hash of the fingerprints in them, so that several processes can write into one folder, and are written whole or
    not at all: a process that is killed loses the tensors since its last shard. ``CodesMismatch`` if the folder holds tensors that
    something other than ``made_by`` made.
    """

    def __init__(self, folder: Path, made_by: MadeBy, *, name: str = "codes") -> None:
        self.folder, self.name = folder, name
        self.places: dict[str, Path] = {}
        self._opened: dict[Path, safe_open] = {}
        self._new: dict[str, Tensor] = {}
        about = folder / f"{name}.json"
        if about.exists():
            made_by.refuse(_read_made_by(about), folder)
        self._about = json.dumps(asdict(made_by), indent=1) + "\n"
        for path in sorted(folder.glob(f"{name}-*.safetensors")):
            self.places.update(dict.fromkeys(_names(path), path))

    def __len__(self) -> int:
        return len(self.places)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_opened": {}}  # open files do not go to other processes

    def __contains__(self, fingerprint: str) -> bool:
        return fingerprint in self.places or fingerprint in self._new

    def get(self, fingerprint: str) -> Tensor | None:
        """Codes, long [h, w], or features; None if the picture was not encoded."""
        path = self.places.get(fingerprint)
        if path is None:
            return None
        if path not in self._opened:
            self._opened[path] = safe_open(str(path), framework="pt")
        found = self._opened[path].get_tensor(fingerprint)
        return found if found.is_floating_point() else found.long()

    def add(self, fingerprint: str, value: Tensor) -> None:
        """Keep a tensor for the next shard; it is written when the shard is full."""
        if not value.is_floating_point():
            value = value.to(torch.int16 if int(value.max()) < 2**15 else torch.int32)
        self._new[fingerprint] = value.cpu().contiguous()
        if sum(t.nbytes for t in self._new.values()) >= SHARD_BYTES:
            self.write()

    def write(self) -> None:
        """Write what is kept. OSError for a full disk; earlier shards stay."""
        if not self._new:
            return
        write_whole(self.folder / f"{self.name}.json", lambda part: part.write_text(self._about, encoding="utf-8"))
        whole = hashlib.sha256("".join(sorted(self._new)).encode()).hexdigest()[:16]
        path = self.folder / f"{self.name}-{whole}.safetensors"
        write_whole(path, lambda part: write_tensors(part, self._new))
        self.places.update(dict.fromkeys(self._new, path))
        self._new = {}


def _names(path: Path) -> Iterable[str]:
    try:
        with safe_open(str(path), framework="pt") as file:
            return file.keys()
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is damaged ({error}); delete it and encode again") from error


def _read_made_by(about: Path) -> MadeBy:
    try:
        return MadeBy(**json.loads(about.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"{about} is damaged ({error}); choose another folder") from error


# -- encoding ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """``new``: tensors that were made · ``known``: pictures that had one already · ``broken``: reasons of pictures that cannot be read."""

    new: int
    known: int
    broken: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    fingerprint: str
    value: Tensor | None = None  # None: known already
    reason: str = ""


def encode(
    refs: Sequence[ImageRef],
    shards: Shards,
    prepare: Callable[[ImageRef], Tensor],
    network: Callable[[Tensor], Tensor],
    *,
    batch: int = 16,
    workers: int = 2,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> Encoded:
    """Encode the pictures that are not in ``shards`` yet.

    ``prepare``: picture -> the network's input, run in ``workers`` threads; ImageError for a broken picture ·
    ``network``: inputs of one shape [B, …] -> outputs [B, …].
    """
    new = known = 0
    broken: list[str] = []

    def load(ref: ImageRef) -> _Loaded:
        try:
            fingerprint = ref.fingerprint()
            return _Loaded(fingerprint=fingerprint, value=None if fingerprint in shards else prepare(ref))
        except ImageError as error:
            return _Loaded(fingerprint="", reason=str(error).partition("; ")[0])

    with ThreadPoolExecutor(workers) as pool:
        waiting = iter(refs)
        for done, group in _groups(pool, load, waiting, batch):
            broken += [one.reason for one in group if one.reason]
            fresh = {
                one.fingerprint: one.value for one in group if one.value is not None and one.fingerprint not in shards
            }
            for fingerprint, value in _run(fresh, network):
                shards.add(fingerprint, value)
            new += len(fresh)
            known += sum(not one.reason for one in group) - len(fresh)
            on_progress(done, len(refs))
    shards.write()
    return Encoded(new=new, known=known, broken=tuple(broken))


def _groups(
    pool: ThreadPoolExecutor, load: Callable[[ImageRef], _Loaded], waiting: Iterator[ImageRef], batch: int
) -> Iterator[tuple[int, list[_Loaded]]]:
    """(pictures so far, next pictures): while one group is used, the next is loaded."""
    done, ahead = 0, [pool.submit(load, ref) for ref in islice(waiting, batch)]
    while ahead:
        now, ahead = ahead, [pool.submit(load, ref) for ref in islice(waiting, batch)]
        done += len(now)
        yield done, [future.result() for future in now]


def _run(fresh: dict[str, Tensor], network: Callable[[Tensor], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The network on inputs of the same shape together."""
    shapes: dict[tuple[int, ...], list[str]] = {}
    for fingerprint, value in fresh.items():
        shapes.setdefault(tuple(value.shape), []).append(fingerprint)
    for names in shapes.values():
        with torch.no_grad():
            found = network(torch.stack([fresh[name] for name in names]))
        yield from zip(names, found, strict=True)
