"""Codes that are made before training: resumed, keyed by the picture and by the tokenizer, refused where they do not fit."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from unmask.data.codes import CodesMismatch, MadeBy, Shards, encode, weights_hash
from unmask.data.samples import DataError, FileBytes, ImageRef
from unmask.data.squares import Crop, Pad
from unmask.pipeline.model import Model
from unmask.tasks.encoding import Coding, Looking
from unmask.tokens.views import to_pixels

from .own import save

MADE_BY = MadeBy(weights="abc", side=16, square="pad")


def refs(folder: Path, count: int) -> list[ImageRef]:
    names = [save(folder / f"{i}.png", (i * 9, 0, 0)) for i in range(count)]
    return [ImageRef(name=p.name, source=FileBytes(path=p)) for p in names]


class Network:
    """Codes of a picture: its redness. ``seen``: shapes of the batches."""

    def __init__(self, fail_after: int = 10**9) -> None:
        self.seen: list[tuple[int, ...]] = []
        self.fail_after = fail_after

    def __call__(self, inputs: Tensor) -> Tensor:
        if len(self.seen) == self.fail_after:
            raise KeyboardInterrupt
        self.seen.append(tuple(inputs.shape))
        return (inputs[:, 0, :2, :2] * 255).round().long()


def prepare(ref: ImageRef) -> Tensor:
    return to_pixels(ref.open())


def test_every_picture_is_encoded_once_whatever_it_is_called(tmp_path: Path) -> None:
    pictures = refs(tmp_path / "a", 5)
    twins = [*pictures, *refs(tmp_path / "b", 6)]  # the same bytes under other names, and one more
    network, shards = Network(), Shards(tmp_path / "out", MADE_BY)
    seen: list[tuple[int, int]] = []
    made = encode(twins, shards, prepare, network, batch=4, on_progress=lambda done, of: seen.append((done, of)))
    assert (made.new, made.known, made.broken) == (6, 5, ()) and seen == [(4, 11), (8, 11), (11, 11)]
    assert sum(shape[0] for shape in network.seen) == 6
    again = Shards(tmp_path / "out", MADE_BY)
    assert len(again) == 6 and again.get(pictures[3].fingerprint()).tolist() == [[27, 27], [27, 27]]
    assert again.get(pictures[3].fingerprint()).dtype == torch.int64 and again.get("nothing") is None


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unmask.data.codes.SHARD_BYTES", 1)  # a shard per picture
    pictures = refs(tmp_path / "a", 9)
    with pytest.raises(KeyboardInterrupt):
        encode(pictures, Shards(tmp_path / "out", MADE_BY), prepare, Network(fail_after=2), batch=2)
    kept = Shards(tmp_path / "out", MADE_BY)
    assert len(kept) == 4 and len(list((tmp_path / "out").glob("*.safetensors"))) == 4
    network = Network()
    made = encode(pictures, kept, prepare, network, batch=2)
    assert (made.new, made.known) == (5, 4) and sum(s[0] for s in network.seen) == 5
    assert not list((tmp_path / "out").glob("*.part")) and len(Shards(tmp_path / "out", MADE_BY)) == 9


def test_processes_share_a_folder(tmp_path: Path) -> None:
    pictures = refs(tmp_path / "a", 6)
    both = [Shards(tmp_path / "out", MADE_BY) for _ in range(2)]  # opened before either has written
    for rank, shards in enumerate(both):
        encode(pictures[rank::2], shards, prepare, Network())
    assert len(list((tmp_path / "out").glob("codes-*.safetensors"))) == 2
    whole = Shards(tmp_path / "out", MADE_BY)
    assert [whole.get(p.fingerprint())[0, 0].item() for p in pictures] == [0, 9, 18, 27, 36, 45]
    copied = pickle.loads(pickle.dumps(whole))  # for a worker, with files open here
    assert torch.equal(copied.get(pictures[1].fingerprint()), whole.get(pictures[1].fingerprint()))


def test_a_changed_picture_is_encoded_again_and_a_broken_one_is_named(tmp_path: Path) -> None:
    pictures = refs(tmp_path / "a", 3)
    encode(pictures, Shards(tmp_path / "out", MADE_BY), prepare, Network())
    save(tmp_path / "a" / "0.png", (200, 0, 0))
    (tmp_path / "a" / "1.png").write_bytes((tmp_path / "a" / "1.png").read_bytes()[:60])
    (tmp_path / "a" / "2.png").unlink()
    made = encode(pictures, Shards(tmp_path / "out", MADE_BY), prepare, Network())
    assert made.new == 1 and made.known == 0
    assert (
        len(made.broken) == 2
        and "1.png cannot be decoded" in made.broken[0]
        and "2.png: no such file" in made.broken[1]
    )


def test_pictures_of_several_sizes_and_large_codes(tmp_path: Path) -> None:
    big = ImageRef(name="big.png", source=FileBytes(path=save(tmp_path / "big.png", "red", (9, 9))))
    pictures = [*refs(tmp_path / "a", 2), big]
    network, shards = Network(), Shards(tmp_path / "out", MADE_BY)
    encode(pictures, shards, prepare, lambda x: network(x) + 40_000)
    assert sorted(network.seen) == [(1, 3, 9, 9), (2, 3, 40, 60)]
    assert int(shards.get(big.fingerprint())[0, 0]) == 40_255


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"weights": "xyz"}, "hash of the weights abc, wanted xyz"),
        ({"side": 32}, "side in pixels 16, wanted 32"),
        ({"square": "crop middle"}, "way to make pictures square pad, wanted crop middle"),
    ],
)
def test_codes_that_something_else_made_are_refused(tmp_path: Path, other: dict[str, str], said: str) -> None:
    encode(refs(tmp_path / "a", 1), Shards(tmp_path / "out", MADE_BY), prepare, Network())
    with pytest.raises(CodesMismatch, match=f"out was encoded differently .{said}.; encode the data again"):
        Shards(tmp_path / "out", dataclasses.replace(MADE_BY, **other))


def test_damaged_shards_are_named(tmp_path: Path) -> None:
    encode(refs(tmp_path / "a", 1), Shards(tmp_path / "out", MADE_BY), prepare, Network())
    (shard,) = (tmp_path / "out").glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:20])
    with pytest.raises(DataError, match="codes-.*.safetensors is damaged .*; delete it and encode again"):
        Shards(tmp_path / "out", MADE_BY)
    (tmp_path / "out" / "codes.json").write_text("{}")
    with pytest.raises(DataError, match="codes.json is damaged"):
        Shards(tmp_path / "out", MADE_BY)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = refs(tmp_path / "a", 4)
    encode(pictures[:2], Shards(tmp_path / "out", MADE_BY), prepare, Network())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", full)
        with pytest.raises(OSError, match="no space left"):
            encode(pictures, Shards(tmp_path / "out", MADE_BY), prepare, Network())
    assert len(Shards(tmp_path / "out", MADE_BY)) == 2 and not list((tmp_path / "out").glob("*.part"))


# -- of a model -------------------------------------------------------------------------------------------------------


def test_codes_and_features_are_those_that_the_model_makes(model: Model, tmp_path: Path) -> None:
    parts, pictures = model.parts, refs(tmp_path / "a", 3)
    coding, looking = Coding(parts=parts, square=Pad(paper=parts.paper), side=parts.side), Looking(parts=parts)
    for kind in (coding, looking):
        encode(pictures, Shards(tmp_path / "out", kind.made_by(), name=kind.name), kind.prepare, kind, batch=2)
    codes = Shards(tmp_path / "out", coding.made_by())
    features = Shards(tmp_path / "out", looking.made_by(), name="features")
    for ref in pictures:
        own = parts.preprocess(ref.open())[0]
        assert torch.equal(codes.get(ref.fingerprint()), parts.encode(own))
        with torch.no_grad():
            assert torch.equal(features.get(ref.fingerprint()), parts.net.features(own[None]))
    assert {t.dtype for t in load_file(next((tmp_path / "out").glob("codes-*.safetensors"))).values()} == {torch.int16}


def test_the_hash_is_of_what_codes_depend_on(model: Model) -> None:
    vq = model.parts.vq
    first = weights_hash(vq, config=vq.config)
    assert weights_hash(vq, config=vq.config) == first and len(first) == 32
    assert weights_hash(vq, config=dataclasses.replace(vq.config, encode_apart=not vq.config.encode_apart)) != first
    for name, changes in (
        ("decoder.conv_in.bias", False),
        ("encoder.conv_in.bias", True),
        ("quantize.embedding.weight", True),
    ):
        value = dict(vq.named_parameters())[name]
        kept = value.detach().clone()
        with torch.no_grad():
            value.view(-1)[0] += 1
            assert (weights_hash(vq, config=vq.config) != first) is changes
            value.copy_(kept)
    assert weights_hash(vq, config=vq.config) == first


def test_a_side_that_does_not_fit_the_tokenizer(model: Model) -> None:
    for side in (0, 8, 100):
        with pytest.raises(ValueError, match=f"the side is {side} pixels; give a multiple of 16"):
            Coding(parts=model.parts, square=Crop(middle=True), side=side)
