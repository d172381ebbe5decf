"""Step-causal fine-tuning: a LaViDa-O model learns to decode without its masked tokens (Sparse-LaViDa, arXiv 2512.14008).

    unmask train sparse.mini --out runs/sparse       the embedded model, all its tasks
    python -c "from unmask.recipes.sparse import ship; ship('runs/sparse', 'runs/sparse_mini')"
    unmask generate "a red apple" --model runs/sparse_mini

All weights are trained: given and unmasked tokens have to learn to do without reading masks, and two register vectors, which start as the
embeddings of a masked token, say how many tokens are missing (sections 3 to 5 of the paper; lr 2e-5 for 100,000 steps at 10.4 B). The
settings here are scaled to the embedded model: 16 positions, 4 registers, 4 blocks and 4 groups.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from unmask.checkpoints.checksums import write_sums
from unmask.checkpoints.store import load_module, save_module
from unmask.corruption.step_causal import StepCausalMasking
from unmask.models.elastic import Elastic
from unmask.models.sizes import ElasticConfig
from unmask.objectives.masked import Masked, Scores, Together
from unmask.pipeline.loading import read_config, resolve, write_config
from unmask.recipe import Optim, Recipe
from unmask.recipes import mini as dense
from unmask.writing import copy_file

REGISTERS = 4


def mini(start: str = "mini", seed: int = 6, steps: int = 2000, blocks: int = 4, images: int = dense.IMAGES) -> Recipe:
    """The embedded model made step-causal: the tasks of mini.stage3. ``start``: a shipped model or a folder of ours."""
    base = dense.stage3(vision="", start=start, seed=seed, images=images)
    assert isinstance(base.objective, Together)

    def step_causal(objective: Scores) -> Masked:
        assert isinstance(objective, Masked)
        corruption = StepCausalMasking(
            corruption=objective.corruption, clean_blocks=blocks, text_groups=blocks, code_groups=blocks
        )
        return replace(objective, corruption=corruption)

    tasks = tuple((name, step_causal(objective), weight) for name, objective, weight in base.objective.objectives)
    return replace(
        base,
        name="sparse.mini",
        model=lambda: with_registers(start),
        objective=Together(objectives=tasks),
        optim=Optim(lr=4e-4, warmup=50, decay_from=0.3, floor=0.02, ema=0.995),
        training=replace(base.training, steps=steps, save_every=50),
    )


def with_registers(start: str, registers: int = REGISTERS) -> Elastic:
    """The network of a model folder, with register vectors that start as the embeddings of a masked token."""
    folder = resolve(start)
    config: ElasticConfig = read_config(folder)["model"]
    made = Elastic(
        replace(config, text_registers=registers, code_registers=registers), mask_id=dense.text()[dense.MASK]
    )
    load_module(made, folder, extra=("registers.",))
    with torch.no_grad():
        made.registers.text.copy_(made.embed.weight[made.mask_id])
        square = torch.full((1, 4), config.mask_code)
        place = torch.arange(4)[None, None]
        made.registers.code.copy_(made.code_embedding(square, place)[0])
    return made


def ship(run: str = "runs/sparse", out: str = "runs/sparse_mini", start: str = "mini") -> None:
    """A model folder of a finished run: its network, and all else from ``start``."""
    source, folder = resolve(start), Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    config = read_config(source)
    model = replace(config["model"], text_registers=REGISTERS, code_registers=REGISTERS)
    net = load_module(Elastic(model, mask_id=dense.text()[dense.MASK]), Path(run))
    save_module(net, folder, name="model", dtype=torch.bfloat16)
    for path in [*source.glob("vq*.safetensors"), source / "tokenizer.json", *source.glob("vocabulary.json")]:
        copy_file(path, folder / path.name)
    write_config(folder, model, config["vq"], wording="compact", side=config["side"], fold=config["fold"])
    write_sums(folder)
