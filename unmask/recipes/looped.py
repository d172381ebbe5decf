"""A looped text model on your own chats, which answers by full depth, early exit or wave fronts.

    unmask train looped.text --data chats.jsonl --out runs/looped
    unmask ask "where is the dog?" --model runs/looped --sampler wavefront -o window=8

Rows are chats without pictures (docs/data.md). The tokenizer is made from them. The run's folder is a model folder afterwards, which
``unmask.load`` opens for questions and conversations.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Sequence as Items
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from unmask.checkpoints.schema import read_json
from unmask.checkpoints.store import read_tensors, save_tensors
from unmask.checkpoints.stream import CheckpointError
from unmask.data.opening import open_data
from unmask.data.samples import Chat
from unmask.methods.recurrent_depth import InWaves, Wavefront, one_by_one
from unmask.models.looped import LoopedConfig, LoopedNet
from unmask.models.waves import Converged
from unmask.pipeline.text_family import LLADA
from unmask.pipeline.text_model import TextModel, TextParts
from unmask.recipe import Optim, Recipe, Training
from unmask.rng import generator, seeded
from unmask.sampling.sampler import Sampler
from unmask.sequence import Sequence
from unmask.step import Loss
from unmask.tasks.conversing import Message
from unmask.tasks.results import Attempt
from unmask.tasks.running import Decoded, OnStep, StepEvent
from unmask.tokens.build import Builder
from unmask.tokens.layouts import Layout
from unmask.tokens.prompts import RELEASED
from unmask.tokens.text import EOS, EOT, TEXT_CONTROL, Text
from unmask.writing import write_text

NAME = "looped.text"
_LEAST = 3  # passes of a training step, or as many as there are


def text(
    data: str = "",
    vocabulary: int = 512,
    width: int = 128,
    depth: int = 8,
    context: int = 256,
    batch: int = 16,
    steps: int = 1000,
    lr: float = 2e-3,
    seed: int = 0,
    folder: str = "",
) -> Recipe:
    """A looped network of one block that answers like the chats.

    ``data``: your chats · ``vocabulary``: tokens of the tokenizer · ``depth``: passes at full depth · ``context``: longest row in tokens;
    longer chats are left out.
    """

    @functools.lru_cache(maxsize=1)
    def rows() -> Chats:
        return chats(data, vocabulary, context)

    def network() -> LoopedNet:
        config = LoopedConfig(vocab_size=rows().text.size, width=width, heads=width // 32, mlp=2 * width, depth=depth)
        return seeded(lambda: LoopedNet(config), seed)

    return Recipe(
        name=NAME,
        model=network,
        source=lambda step: rows().batch(batch, generator("looped", seed, step)),
        objective=_loss,
        optim=Optim(lr=lr, weight_decay=0.01, warmup=min(100, steps), ema=0.0),
        training=Training(steps=steps, seed=seed, device="cpu", bf16=False, save_every=200),
        export=lambda net, out: write_folder(net, rows().text, context, out),
        open=opened,
    )


@dataclass(frozen=True, kw_only=True)
class Chats:
    """Rows of the training and their tokenizer. ``rows``: (ids, how many of them are the prompt)."""

    text: Text
    rows: tuple[tuple[Tensor, int], ...]

    def batch(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Ids [B, L], padded with 0, and the tokens to predict [B, L] bool."""
        chosen = [self.rows[i] for i in torch.randint(len(self.rows), (count,), generator=rng).tolist()]
        ids = torch.nn.utils.rnn.pad_sequence([row for row, _ in chosen], batch_first=True)
        place = torch.arange(ids.shape[1])
        starts, stops = (torch.tensor(n)[:, None] for n in ([n for _, n in chosen], [len(row) for row, _ in chosen]))
        return ids, (place >= starts) & (place < stops)


def chats(data: str, vocabulary: int, context: int) -> Chats:
    """The chats of a container, each ending with its last answer. ValueError without any that fits."""
    if not data:
        raise ValueError("give your chats: --data chats.jsonl; docs/data.md describes the rows")
    found = open_data(data)
    samples = [sample for i in range(len(found)) if isinstance(sample := found[i], Chat) and not sample.images]
    kept = [s.turns for s in samples if len(s.turns) > 1 and s.turns[-1].role == "assistant"]
    if not kept:
        raise ValueError(
            f"{data} has no chats without pictures that end with an answer; docs/data.md describes the rows"
        )
    made = _tokenizer([said.text for turns in kept for said in turns], vocabulary)
    rows = [_row(made, [Message(role=said.role, text=said.text) for said in turns]) for turns in kept]
    short = tuple(row for row in rows if len(row[0]) <= context)
    if not short:
        raise ValueError(f"all chats of {data} have more than {context} tokens; give a larger context")
    return Chats(text=made, rows=short)


def _row(text: Text, messages: Items[Message]) -> tuple[Tensor, int]:
    answer = [*text.encode(messages[-1].text), text[EOT]]
    built = LLADA.template.conversation(Builder(text=text, wording=RELEASED, look_tokens=0), messages[:-1], answer)
    return built.ids, len(built.ids) - len(answer)


def _tokenizer(texts: Items[str], vocabulary: int) -> Text:
    """Byte-level BPE with the control tokens of LLaDA."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = max(len(alphabet), vocabulary - len(TEXT_CONTROL))
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(["user assistant system", *texts], trainer)
    made.add_special_tokens(list(TEXT_CONTROL))
    return Text(made, TEXT_CONTROL)


def _loss(net: Any, batch: tuple[Tensor, Tensor], rng: torch.Generator) -> Loss:
    """Cross-entropy of the answers after some passes, at most the full depth, from random states."""
    ids, scored = batch
    depth = net.config.depth
    passes = int(torch.randint(min(_LEAST, depth), depth + 1, (), generator=rng))
    z = torch.randn(*ids.shape, net.config.width, generator=rng).to(ids.device)
    states = net.states(ids, z, passes)[:, :-1][scored[:, 1:]]
    loss = F.cross_entropy(net.decode(states), ids[scored])
    return Loss(total=loss, terms={"text": loss}, counts={"text": int(scored.sum())})


def write_folder(net: LoopedNet, text: Text, context: int, folder: Path) -> None:
    """A folder that ``opened`` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(net.state_dict(), folder)
    text.save(folder / "tokenizer.json")
    value = {"recipe": NAME, "looped": asdict(net.config), "context": context}
    write_text(folder / "config.json", json.dumps(value, indent=1) + "\n")


def opened(folder: Path, device: str) -> TextModel:
    """``Recipe.open``. CheckpointError for a damaged folder."""
    raw = read_json(folder / "config.json")
    try:
        net = LoopedNet(LoopedConfig(**raw["looped"])).eval()
        net.load_state_dict(read_tensors(folder, "model"))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder} is not a looped model: {str(error)[:200]}; copy it again") from error
    read = Text.load(folder / "tokenizer.json", TEXT_CONTROL)
    parts = TextParts(text=read, net=net, context=int(raw.get("context", 256)), family=LLADA)  # type: ignore[arg-type]
    return TextModel(parts, executor=InRow(net=net.to(device), text=read))


@dataclass(frozen=True, kw_only=True)
class InRow:
    """Answers of a looped network, one row after the other, greedily: in wave fronts where the sampler says so, else at full depth."""

    net: LoopedNet
    text: Text

    def run(
        self, sequences: Items[Sequence], seeds: Items[int], sampler: Sampler, on_step: OnStep | None = None
    ) -> Decoded:
        """ValueError for a sequence whose masked tokens are not its end."""
        began = time.perf_counter()
        rows = [self._answered(*pair, sampler) for pair in zip(sequences, seeds, strict=True)]
        for row, sequence in enumerate(rows if on_step else []):
            assert on_step is not None
            on_step(StepEvent(row=row, number=1, of=1, sequence=sequence))
        return Decoded(rows=rows, seconds=time.perf_counter() - began)

    def emit(self, row: int, event: Layout | Attempt) -> None:
        pass

    def _answered(self, sequence: Sequence, seed: int, sampler: Sampler) -> Sequence:
        wanted = int(sequence.masked.sum())
        start = len(sequence.ids) - wanted
        if not wanted or bool(sequence.masked[:start].any()):
            raise ValueError(
                "a looped model writes from left to right; masked tokens must stand at the end of the text"
            )
        rng, net = generator("looped", seed), self.net

        def fresh(count: int) -> Tensor:
            return torch.randn(count, net.config.width, generator=rng).to(net.table.weight.device)

        prompt, ends = sequence.ids[:start].tolist(), frozenset({self.text[EOT], self.text[EOS]})
        if isinstance(sampler.selection, InWaves):
            own = sampler.selection
            wavefront = Wavefront(
                depth=net.config.depth,
                passes=own.passes,
                window=own.window,
                momentum=own.momentum,
                most=net.config.depth,
                freezing=Converged(eps=own.eps, prefix=True),
            )
            wave = wavefront.run(net, prompt, wanted, fresh, stop=ends)
            tokens = wave.tokens[: wave.frozen]
        else:
            tokens, _ = one_by_one(net, prompt, wanted, fresh, depth=net.config.depth, stop=ends)
        said = tokens[start : start + wanted]
        ids = torch.tensor([*prompt, *said, *[self.text[EOT]] * (wanted - len(said))])
        return replace(sequence, ids=ids, masked=torch.zeros_like(sequence.masked))
