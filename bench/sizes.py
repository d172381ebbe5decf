"""Networks with random weights in the released layout, for timing. Public idea: ``RANDOM["mid"]``, an ``ElasticConfig``.

``mid``: a fifth of the released widths, 8 layers · ``wide``: the released widths with 2 layers, about 3 GB in bfloat16 · ``released``: the
released size, 10.4 B parameters, for a GPU. All read 1024 px pictures as 27 x 27 patches (871 tokens with three views) and have the
released vocabulary; the vision part of the first two is small.
"""

from __future__ import annotations

from dataclasses import replace

from unmask.models.sizes import SIZES, ElasticConfig, VisionConfig

_TOWER = VisionConfig(width=288, layers=6, heads=4, mlp=1152)
RANDOM: dict[str, ElasticConfig] = {
    "mid": ElasticConfig(
        width=768, heads=6, layers=8, mlp=2304, gen_width=384, gen_mlp=1536, joint_layers=4, vision=_TOWER
    ),
    "wide": replace(SIZES["lavida_o"], layers=2, joint_layers=1, vision=_TOWER),
    "released": SIZES["lavida_o"],
}
