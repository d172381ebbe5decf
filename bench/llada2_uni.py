"""A model in the layout of LLaDA2.0-Uni with random weights, to count and time what its exact prefix cache saves in drawings.

    python -m bench.llada2_uni runs/uni_16 --side 512
    unmask bench samplers --model runs/uni_16 --prompt "a red fox in the deep snow" --steps 8 --orders own --schedules own --caches own,none

The costs of a drawing follow from sizes, blocks and steps. No step finds a token that is sure, as random weights are never sure, so every
block takes all of its steps; the share of equal codes says whether the cache is exact. Nothing here says anything about quality.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.tiny_llada2 import write_uni_model

# Experts, heads and groups in the released proportions where they divide; a mid size that two CPU cores can draw with.
SIZES: dict[str, object] = {
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "num_shared_experts": 1,
    "moe_intermediate_size": 96,
    "n_group": 8,
    "topk_group": 4,
    "routed_scaling_factor": 2.5,
    "rope_theta": 600000.0,
}
CODES = 1024

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--side", type=int, default=512, help="pixels of a square drawing; a code is 32 of them")
    given = parser.parse_args()
    print(write_uni_model(given.folder, codes=CODES, **SIZES, unmask={"side": given.side, "decoder_steps": 3}))
