"""The model that a fine-tuning run starts from, and the folder that it ends in.

Public idea: ``start_of("mini") -> Start``; ``start.network()`` is a fresh copy of its network in float32, ``start.export(module, folder)``
writes what it has become.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from unmask.checkpoints.adapters import save_adapter
from unmask.checkpoints.elastic import BRANCHES, EVERYTHING, Weights, WeightStorage
from unmask.checkpoints.loading import load
from unmask.checkpoints.quantise import RoundToNearest
from unmask.models.elastic import Elastic
from unmask.models.lora import adapters, is_quantised, merge, unmerge
from unmask.pipeline.adapting import merge as merge_files
from unmask.pipeline.exporting import export_like
from unmask.pipeline.loading import ModelSpec, open_parts, read_spec, resolve
from unmask.pipeline.opening import read_text_parts
from unmask.pipeline.text_model import TextParts
from unmask.tasks.parts import Parts, Presets
from unmask.tokens.vocabulary import FILE
from unmask.writing import copy_file, write_text

ADAPTER = "adapter"  # folder of a run's adapter, inside the model folder
_MOST_WORDS = 200  # new words that a vocabulary takes


@dataclass(frozen=True, kw_only=True)
class Start:
    """A model by ``name`` and its ``spec``. Weights are read when they are needed."""

    name: str
    spec: ModelSpec

    @property
    def writes_only(self) -> bool:
        """Whether it is a text model."""
        return self.spec.format.is_text

    @property
    def presets(self) -> Presets:
        return self.spec.presets

    @cached_property
    def parts(self) -> Parts:
        """Tokenizers, wording and pictures of a model that draws, with the image tokenizer's weights. The network has none."""
        parts = open_parts(self.spec, Weights(checkpoint=self.spec.checkpoint))
        parts.require(frozenset({"vq.encoder", "vq.decoder"}))
        return parts

    @cached_property
    def text_parts(self) -> TextParts:
        """As ``parts``, of a text model."""
        return read_text_parts(self.spec, self.spec.checkpoint.modules()[0])

    def network(self, bits: int = 0) -> Elastic:
        """A new network with the model's weights, in float32 on the CPU. ``bits``: 8 or 4, of the matrices of both branches; 0: float32."""
        net, vq = self.spec.checkpoint.modules()
        quantise = dict.fromkeys(BRANCHES, RoundToNearest(bits=bits)) if bits else {}
        storage = WeightStorage(dtype=torch.float32, quantise=quantise)
        load(Weights(checkpoint=self.spec.checkpoint, storage=storage), net, vq, EVERYTHING)
        net.mask_id = self.spec.checkpoint.mask_id if self.writes_only else self.parts.mask_id
        return net

    def export(self, module: nn.Module, folder: Path, texts: Iterable[str]) -> None:
        """Write the model, with adapters merged, and the adapters alone into its folder ``adapter``. ``texts``: of its training.

        Adapters of quantised weights are merged into the weights that these were made of.
        """
        layers = [layer for _, layer, _ in adapters(module)]
        if layers:
            save_adapter(module, folder / ADAPTER, base=self.name)
        if any(is_quantised(layer.weight) for layer in layers):
            self._export_merged(folder)
        else:
            merge(module)
            try:
                export_like(self.spec, module.state_dict(), folder)
            finally:
                unmerge(module)
        self.write_vocabulary(folder, texts)

    def _export_merged(self, folder: Path) -> None:
        """The model with the adapters of the folder, one file of weights in memory at a time."""
        made = folder / f".merged.{os.getpid()}"
        try:
            merge_files(self.spec.checkpoint.place, folder / ADAPTER, made)
            shutil.copytree(made, folder, dirs_exist_ok=True, copy_function=copy_file)
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def write_vocabulary(self, folder: Path, texts: Iterable[str]) -> None:
        """The vocabulary with the new words; none where they are too many to list, so that no prompt warns."""
        if self.writes_only or self.parts.vocabulary is None:
            return
        known, read = self.parts.vocabulary, self.parts.wording.read
        found = dict.fromkeys(word for text in texts for word in known.unknown(read(text)))
        if len(found) > _MOST_WORDS:
            (folder / FILE).unlink(missing_ok=True)
            return
        write_text(folder / FILE, known.extended(folder.name or self.name, tuple(found)).text())


def start_of(name: str) -> Start:
    """A model by name, folder or hub id, from its configuration and safetensors headers. CheckpointError as of ``unmask.load``."""
    return Start(name=name, spec=read_spec(resolve(name)))
