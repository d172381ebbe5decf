"""A small causal model that guides the sampler of a text model (``methods.flashdlm``).

Public idea: ``open_guide(folder, text, device) -> net`` and ``guided_by(net, settings) -> (change, the other settings)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from unmask.checkpoints.dream import survey_dream
from unmask.checkpoints.elastic import Weights
from unmask.checkpoints.hub import fetch, is_hub_name
from unmask.checkpoints.loading import load as load_weights
from unmask.checkpoints.schema import read_json
from unmask.checkpoints.stream import CheckpointError
from unmask.models.elastic import Elastic
from unmask.pipeline.catalogue import find_sampler
from unmask.sampling.sampler import Sampler
from unmask.tokens.text import Text
from unmask.tokens.tokenizer_file import read_tokenizer

_LAYOUTS = ("Dream", "qwen2")  # model_type of networks that predict a token from the one before it
_NEEDS = frozenset({"und", "text_head"})
_LARGEST = 2**26  # bytes of a vocabulary; that of Qwen2.5 has 3 million
SAMPLER = "guided"  # its name among the samplers


def open_guide(name: str, text: Text, device: str, *, download: bool = False) -> Elastic:
    """The network of a folder, or of ``owner/name`` on the hub, in the layout of Qwen2.5 or Dream. ``text``: the tokenizer of the model
    that it guides.

    CheckpointError for another layout, ValueError for another tokenizer.
    """
    folder = fetch(name, download=download) if not Path(name).exists() and is_hub_name(name) else Path(name)
    kind = read_json(folder / "config.json").get("model_type")
    if kind not in _LAYOUTS:
        raise CheckpointError(
            f"{folder}: model_type {kind!r} cannot guide; wanted a causal model in the layout of Qwen2.5 or Dream, which predicts a token "
            "from the one before it"
        )
    if _words(folder) != text.tokenizer.get_vocab(with_added_tokens=False):
        raise ValueError(
            f"{folder} has another tokenizer than the model that it guides; use a guide with the same tokens"
        )
    weights = Weights(checkpoint=survey_dream(folder), device=device)
    net, rest = weights.checkpoint.modules()
    load_weights(weights, net, rest, _NEEDS)
    return net


def guided_by(net: Elastic, settings: Sequence[str] = ()) -> tuple[Callable[[Sampler], Sampler], list[str]]:
    """The change of samplers that lets ``net`` accept drafts, and the settings that are not its arguments. ValueError for wrong ones."""
    change, rest = find_sampler(SAMPLER, settings)
    return partial(_guided, change.function, net, dict(change.arguments)), rest


def _guided(
    function: Callable[..., Sampler], net: Elastic, arguments: dict[str, float | str], base: Sampler
) -> Sampler:
    return function(base, net, **arguments)


def _words(folder: Path) -> dict[str, int]:
    """The tokens of a folder without those that were added, and their ids."""
    if (folder / "tokenizer.json").exists():
        return read_tokenizer(folder / "tokenizer.json").get_vocab(with_added_tokens=False)
    if not (folder / "vocab.json").exists():
        raise CheckpointError(
            f"{folder} has neither tokenizer.json nor vocab.json; copy those released with the weights"
        )
    return dict(read_json(folder / "vocab.json", most=_LARGEST))
