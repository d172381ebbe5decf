"""Property: whatever stands in a configuration, opening the folder gives the same model, or an error that names the file.

A few examples here; ``make fuzz`` tries many, and opens whole folders (``bench/altered_folders.py``).
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import resource
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from unmask.checkpoints.schema import read_json
from unmask.checkpoints.stream import CheckpointError
from unmask.pipeline.loading import read_spec
from unmask.tokens.text import TokenizerError

from ..tasks.released_folder import make_folder
from ..tiny_llada import make as make_llada
from ..tiny_model import make as make_own

hypothesis = pytest.importorskip("hypothesis", reason="pip install unmask[test]")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

torch.set_num_threads(1)
EXAMPLES = int(os.environ.get("UNMASK_FUZZ_EXAMPLES", "150"))
LAYOUTS = {"own": "config.json", "released": "config.json", "vqvae": "vqvae/config.json", "llada": "config.json"}

numbers = st.one_of(
    st.integers(-3, 70),
    st.integers(),
    st.sampled_from([10**9, 2**31, 2**63, 10**400, -(10**9)]),
    st.floats(allow_nan=True, allow_infinity=True),
)
leaves = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=12), st.sampled_from(["8", "\ud800", "a\0b"]))
objects = st.dictionaries(st.text(max_size=5), leaves, max_size=3)
values = st.one_of(leaves, objects, st.lists(st.one_of(leaves, objects), max_size=3))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small model in each layout."""
    place = tmp_path_factory.mktemp("layouts")
    (place / "own").mkdir()
    released = make_folder(place / "released")
    return {
        "own": make_own(place / "own"),
        "released": released,
        "vqvae": released,
        "llada": make_llada(place / "llada"),
    }


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield (*at, key)
        yield from places(inner, (*at, key))


def put(raw: Any, at: tuple[Any, ...], value: Any) -> Any:
    """A copy with a value in one place; None removes a field."""
    made = copy.deepcopy(raw)
    inside = made
    for key in at[:-1]:
        inside = inside[key]
    if value is None and isinstance(inside, dict):
        del inside[at[-1]]
    else:
        inside[at[-1]] = value
    return made


def what_is_built(folder: Path) -> object:
    """All that a folder's configuration decides, or the error's text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            spec = read_spec(folder)
        except (CheckpointError, TokenizerError) as error:
            text = str(error)
            assert "\n" not in text and len(text) < 900
            assert any(name in text for name in ("config.json", folder.name))
            return text
    checkpoint = spec.checkpoint
    return checkpoint.config, checkpoint.vq_config, checkpoint.mask_id, spec.wording, spec.side, spec.fold


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=EXAMPLES <= 150)
@given(data=st.data())
def test_one_field_altered(layout: str, folders: dict[str, Path], data: st.DataObject) -> None:
    folder = folders[layout]
    path = folder / LAYOUTS[layout]
    before = path.read_bytes()
    raw = json.loads(before)
    at = data.draw(st.sampled_from(list(places(raw))), label="place")
    value = data.draw(values, label="value")
    path.write_text(json.dumps(put(raw, at, value)))
    try:
        found = what_is_built(folder)
    finally:
        path.write_bytes(before)
    if not isinstance(found, str):
        config, vq, mask_id, *_, side, fold = found
        assert 1 <= config.joint_layers <= config.layers <= 8 and config.width % config.heads == 0
        assert 10 <= config.rope_theta < 1e9 and 0 < config.norm_eps <= 0.01
        assert type(mask_id) is int and 0 <= mask_id and fold in (1, 2)
        assert type(side) is int and (side == 0 or side % (vq.factor * fold) == 0)


@settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=EXAMPLES <= 150)
@given(content=st.one_of(st.binary(max_size=200), values.map(lambda v: json.dumps(v).encode())))
def test_any_bytes_are_read_or_refused(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(content)
    try:
        assert isinstance(read_json(path), dict)
    except CheckpointError as error:
        assert "any.json" in str(error) and "\n" not in str(error)


# -- whole folders ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def altered_folders() -> Iterator[ModuleType]:
    """bench/altered_folders.py, which alters folders in every way that is listed."""
    bench = Path(__file__).parents[2] / "bench"
    sys.path.insert(0, str(bench))
    spec = importlib.util.spec_from_file_location("bench_altered_folders", bench / "altered_folders.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_altered_folders"] = module
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(bench))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["own", "llada"])
def test_altered_folders_are_refused(layout: str, altered_folders: ModuleType, tmp_path: Path) -> None:
    """Some of the list: special files, cut files, headers, indexes, tokenizers, fields. No tracebacks, hangs, gigabytes, nonsense."""
    base = altered_folders.base_of(layout, tmp_path)
    opener = altered_folders.Opener()
    wrong = []
    try:
        for change in list(altered_folders.alterations(base, own=layout == "own"))[::80]:
            found = opener(altered_folders.altered(base, change, tmp_path / "altered"))
            wrong.append(altered_folders.finding(change, found))
    finally:
        opener.close()
    assert len(wrong) > 20 and not [w for w in wrong if w]


def test_a_network_of_a_billion_layers_costs_nothing(folders: dict[str, Path]) -> None:
    """The process may not grow: a limit of its memory stands in for the machine's."""
    own = [("own", tuple(at.split("."))) for at in ("model.layers", "model.vision.layers", "vq.layers_per_block")]
    released = [("released", ("n_layers",)), ("released", ("unmask", "vision", "layers"))]
    cases = [*own, *released, ("vqvae", ("layers_per_block",)), ("llada", ("n_layers",))]
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    for layout, at in cases:
        for layers in (10**9, 60, 1024):
            path = folders[layout] / LAYOUTS[layout]
            before = path.read_bytes()
            path.write_text(json.dumps(put(json.loads(before), at, layers)))
            resource.setrlimit(resource.RLIMIT_AS, (mapped + 2**29, hard))
            try:
                found = what_is_built(folders[layout])
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
                path.write_bytes(before)
            assert isinstance(found, str) and at[-1] in found, (layout, at, layers, found)
