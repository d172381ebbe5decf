"""Which parameters a task needs (spec 1.10), where they are stored, and how they are held in memory.

Public idea: ``tensors_needed(checkpoint, needs)`` lists them from the safetensors headers. Nothing here reads weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from unmask.checkpoints.quantise import Quantiser
from unmask.checkpoints.stream import FLOATS, CheckpointError, Stored
from unmask.models.elastic import Elastic
from unmask.models.sizes import ElasticConfig
from unmask.models.unfilled import unfilled
from unmask.tokens.magvit import ImageTokenizer, ImageTokenizerConfig

EVERYTHING = frozenset({"und", "gen", "text_head", "vision", "vq.encoder", "vq.decoder"})
BRANCHES = ("und", "gen")
_BLOCK = re.compile(r"blocks\.(?P<layer>\d+)\.(?P<piece>und|gen|out)\.(?P<rest>.+)")
_KEYS_AND_VALUES = ("attn_norm.weight", "q.weight", "k.weight", "v.weight")


@dataclass(frozen=True, kw_only=True)
class WeightStorage:
    """How weights are held in memory. The matrices of a branch can be quantised, or offloaded to the CPU and copied to the device per call.

    ``dtype``: of the network; None: as in the checkpoint · ``quantise``: branch -> quantiser · ``stats``: calibration statistics by
    name of the layer, for quantisers that read them (``calibration.calibrate``) · ``offload``: branches kept on the CPU.
    The image tokenizer is always float32: in bfloat16 its codes change. The flow decoder of LLaDA2.0-Uni is large, and as stored.
    """

    dtype: torch.dtype | None = None
    quantise: Mapping[str, Quantiser] = field(default_factory=dict)
    stats: Mapping[str, Tensor] = field(default_factory=dict, compare=False, repr=False)
    offload: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.dtype not in (None, *FLOATS.values()):
            raise ValueError(f"dtype {self.dtype} is not supported; use one of float32, bfloat16, float16")
        for branch in (*self.quantise, *self.offload):
            if branch not in BRANCHES:
                raise ValueError(f"unknown branch {branch!r}; the branches are {' and '.join(BRANCHES)}")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Contents of a model folder, from its configuration and safetensors headers; no weights are read.

    ``net``, ``vq``: our parameter name -> where it is stored; ``vq`` is empty for a text model, which has no image tokenizer · ``dtype``:
    default of the network; None: as stored · ``sums``: SHA-256 of the files by name, empty where none are known · ``missing``: what tasks
    that need a part are told where it is not there, by the part · ``as_stored``: files of ``vq`` whose weights keep their type.
    """

    place: Path
    config: ElasticConfig
    vq_config: ImageTokenizerConfig
    mask_id: int
    net: Mapping[str, Stored]
    vq: Mapping[str, Stored]
    dtype: torch.dtype | None = None
    sums: Mapping[str, str] = field(default_factory=dict, repr=False)
    missing: Mapping[str, str] = field(default_factory=dict)
    as_stored: frozenset[Path] = frozenset()

    def modules(self) -> tuple[Elastic, ImageTokenizer]:
        """Network and image tokenizer on the meta device, without memory."""
        with unfilled():
            return Elastic(self.config, mask_id=self.mask_id).eval(), self.vq_config.build().eval()


def part_of(name: str, config: ElasticConfig) -> str:
    """The part of the model that a parameter belongs to, by the name that the table of parts uses."""
    if match := _BLOCK.match(name):
        if match["piece"] != "und":
            return match["piece"]
        return "und.joint" if int(match["layer"]) < config.joint_layers else "und.upper"
    first = name.split(".")[0]
    vq = {
        "encoder": "vq.encoder",
        "quant_conv": "vq.encoder",
        "quantize": "vq.codes",
        "decoder": "vq.decoder",
        "post_quant_conv": "vq.decoder",
    }
    return "codes" if first in ("code_embedding", "code_head") else vq.get(first, first)


def branch_of(name: str) -> str | None:
    """The branch of a matrix that can be quantised or offloaded; None for all other parameters."""
    match = _BLOCK.match(name)
    if match is None or match["piece"] == "out" or match["rest"].endswith("bias"):
        return None
    if "norm" in match["rest"] or ".router." in match["rest"]:  # a router decides in float32
        return None
    return match["piece"]


def rows_needed(name: str, rows: int, config: ElasticConfig, needs: frozenset[str]) -> int:
    """How many of its ``rows`` of a parameter tasks with these ``needs`` use (names as in ``Task.needs``).

    Image generation uses the understanding branch up to the last joint layer, and of that layer only keys and values. In later layers
    the output projection serves code positions only, which use its first ``gen_width`` rows.
    """
    if config.first_code:
        needs = _with_shared_vocabulary(needs)
    if match := _BLOCK.match(name):
        layer, piece, rest = int(match["layer"]), match["piece"], match["rest"]
        last = config.joint_layers - 1
        if piece == "gen":
            return rows if "gen" in needs else 0
        joint = "und.joint" in needs
        if "und" in needs or (joint and layer < last):
            return rows
        if piece == "out":
            return config.gen_width if "gen" in needs else 0
        return rows if joint and layer == last and rest in _KEYS_AND_VALUES else 0
    part = part_of(name, config)
    users = {
        "embed": {"und", "und.joint"},
        "norm": {"und", "und.joint", "gen"},
        "codes": {"gen"},
        "registers": {"und", "und.joint", "gen"},
        "vq.codes": {"vq.encoder", "vq.decoder"},
    }.get(part, {part})
    return rows if users & needs else 0


def _with_shared_vocabulary(needs: frozenset[str]) -> frozenset[str]:
    """The needs of a model whose one branch serves text and codes, and which reads pictures as codes."""
    more = {"und", "text_head"} if needs & {"und.joint", "gen"} else set()
    return needs | more | ({"vq.encoder"} if "vision" in needs else set())


def tensors_needed(checkpoint: Checkpoint, needs: frozenset[str]) -> Iterator[tuple[str, str, Stored, int]]:
    """("net" or "vq", parameter, where it is stored, rows needed) for every parameter that is needed.

    ValueError for unknown needs; CheckpointError for a part that is needed and missing.
    """
    if lost := [why for part, why in checkpoint.missing.items() if part in needs]:
        raise CheckpointError(lost[0])
    if unknown := needs - EVERYTHING - {"und.joint"}:
        raise ValueError(f"unknown part {sorted(unknown)[0]!r}; the parts are {', '.join(sorted(EVERYTHING))}")
    for module, found in (("net", checkpoint.net), ("vq", checkpoint.vq)):
        for name, stored in found.items():
            if rows := rows_needed(name, stored.shape[0], checkpoint.config, needs):
                yield module, name, stored, rows


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Source of a model's weights, and how and where they are held.

    ``on_bytes``: called while they are read, with the bytes read and the bytes to read · ``verify``: compare their files with the
    checksums of the checkpoint first.
    """

    checkpoint: Checkpoint
    device: str = "cpu"
    storage: WeightStorage = field(default_factory=WeightStorage)
    on_bytes: Callable[[int, int], None] = field(default=lambda done, of: None, compare=False, repr=False)
    verify: bool = True

    def __post_init__(self) -> None:
        asked = {*self.storage.quantise, *self.storage.offload}
        if "gen" in asked and not self.checkpoint.config.gen_width:
            raise ValueError(
                f"{self.checkpoint.place} has no branch gen, all its layers are in the branch und; for example --quantise und=int8 or "
                "--offload und"
            )

    def place_of(self, name: str) -> str:
        """The device that holds a parameter."""
        return "cpu" if branch_of(name) in self.storage.offload else self.device

    def dtype_of(self, module: str, stored: Stored) -> torch.dtype:
        """The dtype of a parameter, before quantisation."""
        if module == "vq":
            return FLOATS[stored.dtype] if stored.path in self.checkpoint.as_stored else torch.float32
        return self.storage.dtype or self.checkpoint.dtype or FLOATS[stored.dtype]

    def quantiser_of(self, name: str) -> Quantiser | None:
        """The quantiser of a parameter; None where it stays a float."""
        return self.storage.quantise.get(branch_of(name) or "")
