"""A small checkpoint in LLaDA's layout for benchmarks of text samplers: its start, its data, and questions that it has not seen.

    python bench/own_llada.py runs/own_llada
    unmask train finetune --model runs/own_llada/start --data runs/own_llada/train.jsonl --out runs/own_llada/model --steps 800 \\
        -o optim.lr=3e-3 -o holdout=0 --threads 1
    unmask bench samplers --model runs/own_llada/model --prompts runs/own_llada/test.jsonl --metric match --length 32

Each of 24 objects has a colour, a place, a size and an owner, fixed by the seed. A question is about one of them, and its answer is a
sentence of about 20 tokens that says all four. Of the 36 wordings, the training has seen 34 for each object, and the test asks in the
other two.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from unmask.tokens.text import MASK, TEXT_CONTROL

NAMES = (
    *("apple", "ball", "boat", "book", "bus", "cat", "chair", "clock", "cup", "dog", "fish", "flower", "hat", "house"),
    *("key", "kite", "lamp", "leaf", "piano", "robot", "sheep", "train", "tree", "violin"),
)
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "purple")
PLACES = ("garden", "kitchen", "street", "cellar", "hall", "barn")
SIZES = ("small", "large", "tiny", "huge")
OWNERS = ("king", "baker", "doctor", "teacher", "farmer")
OPENINGS = ("", "please: ", "hello. ", "once more: ", "i wonder. ", "quickly, ")
WORDINGS = (
    "where is the {name}?",
    "tell me about the {name}.",
    "what do you know of the {name}?",
    "what is the {name} like?",
    "describe the {name} to me.",
    "whose is the {name}, and what is it like?",
)
WIDTH, LAYERS, MLP, HEADS, ROWS = 96, 4, 256, 6, 512
CONFIG = {
    "model_type": "llada",
    "architectures": ["LLaDAModelLM"],
    "d_model": WIDTH,
    "n_heads": HEADS,
    "n_kv_heads": HEADS,
    "n_layers": LAYERS,
    "mlp_hidden_size": MLP,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "vocab_size": ROWS,
    "embedding_size": ROWS,
    "weight_tying": False,
    "max_sequence_length": 256,
    "activation_type": "silu",
    "block_type": "llama",
    "layer_norm_type": "rms",
    "include_bias": False,
    "include_qkv_bias": False,
    "rope": True,
}


def questions(seed: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The questions of the training and of the test, each with its answer."""
    rng, learned, other = Random(seed), list[tuple[str, str]](), list[tuple[str, str]]()
    for name in NAMES:
        colour, place, size, owner = (rng.choice(words) for words in (COLOURS, PLACES, SIZES, OWNERS))
        answer = f"the {name} is {size} and {colour}, it is in the {place} and belongs to the {owner}"
        wordings = [opening + wording for opening in OPENINGS for wording in WORDINGS]
        asked = [(wording.format(name=name), answer) for wording in rng.sample(wordings, len(wordings))]
        learned += asked[2:]
        other += asked[:2]
    return learned, other


def tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE, with the control tokens of LLaDA."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=ROWS - 32, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(["user assistant", *texts], trainer)
    made.add_special_tokens(list(TEXT_CONTROL))
    return made


def tensors(seed: int) -> dict[str, Tensor]:
    """Random weights by their released names."""
    g = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"wte": (ROWS, WIDTH), "ln_f": (WIDTH,), "ff_out": (ROWS, WIDTH)}
    for block in (f"blocks.{i}" for i in range(LAYERS)):
        shapes |= {f"{block}.{n}": (WIDTH, WIDTH) for n in ("q_proj", "k_proj", "v_proj", "attn_out")}
        shapes |= {f"{block}.{n}": (WIDTH,) for n in ("attn_norm", "ff_norm")}
        shapes |= {f"{block}.ff_proj": (MLP, WIDTH), f"{block}.up_proj": (MLP, WIDTH), f"{block}.ff_out": (WIDTH, MLP)}
    return {
        f"model.transformer.{name}.weight": torch.ones(shape)
        if len(shape) == 1
        else torch.randn(shape, generator=g) * 0.02
        for name, shape in shapes.items()
    }


def make(folder: Path, seed: int) -> None:
    """The folder ``start``, and the files train.jsonl (chats) and test.jsonl (prompts with answers)."""
    learned, other = questions(seed)
    (folder / "start").mkdir(parents=True)
    made = tokenizer([f"{asked} {answer}" for asked, answer in learned])
    made.save(str(folder / "start" / "tokenizer.json"))
    config = CONFIG | {"mask_token_id": made.token_to_id(MASK)}
    (folder / "start" / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    save_file(tensors(seed), folder / "start" / "model.safetensors")
    rows = [
        {"id": str(n), "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}
        for n, (asked, answer) in enumerate(learned)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    lines = [json.dumps({"prompt": asked, "answer": answer}) + "\n" for asked, answer in other]
    (folder / "test.jsonl").write_text("".join(lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    make(given.folder, given.seed)
    print(given.folder)


if __name__ == "__main__":
    main()
