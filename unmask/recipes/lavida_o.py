"""The training stages of LaViDa-O (arXiv 2509.19244), on your own data and from any model with both branches that ``unmask.load`` opens.

    unmask train lavida_o.stage1 --data questions.jsonl --data boxes.jsonl --out runs/lavida_o.stage1
    unmask train lavida_o.stage2_256 --data captions/ --out runs/lavida_o.stage2_256
    unmask train lavida_o.stage2_512 --data captions/ --out runs/lavida_o.stage2_512
    unmask train lavida_o.stage2 --data captions/ --out runs/lavida_o.stage2
    unmask train lavida_o.stage3 --data everything.jsonl --out runs/lavida_o.stage3

Each starts from the folder that the one before it writes by default; ``--model`` names another. docs/stages.md describes how to run them.

| | stage 1 | stage 2 | stage 3 |
|---|---|---|---|
| loaded | understanding branch, text head, vision | joint layers of it, generation branch, code path | everything |
| trained | all that is loaded | generation branch and code path | everything |
| learning rate, paper (scripts) | 5e-6 (2e-5) | 1e-4 (1e-4 at 256 px, 5e-6 at 1024) | 2e-5 (5e-6) |
| of the vision tower | 2e-6 | | 2e-6 |
| updates, paper (scripts) | 80k (100k) | 400k (300k + 100k) | 100k (100k) |
| mask ratios | cosine | uniform at 256 px, then cosine | cosine |

Where paper and scripts differ, the paper's value is the default, because its table describes the published runs. All stages: AdamW with
betas .99 and .999 (the paper's; the scripts leave .9 and .999), no weight decay, 3 % warm-up, cosine decay to a tenth, recomputed
activations, two rows at a time. Not published, and chosen here: 1,024 rows an update in every stage (stated for an ablation of stage 2
only), gradient norm at most 1, no average of the weights, the steps at 512 px.

Left out: end-of-text padding of whole batches as a target (an answer is padded to a full block instead), filters by size and score of
a picture, scores in the prompt (your samples have none), and the marks before and after a picture, which the published inference does not
write either: rows have the format of requests.
"""

from __future__ import annotations

from unmask.corruption.schedules import Uniform
from unmask.recipe import Recipe
from unmask.recipes.staging import Given, Mix, Stage, staged

RELEASE = "jacklishufan/LaViDa-O-v1.0"
_UND = frozenset({"und", "text_head", "vision"})
_DRAW = frozenset({"und.joint", "gen"})
_ALL = _UND | _DRAW


def generating(name: str) -> bool:
    """Whether a parameter belongs to the generation branch or the code path."""
    return ".gen." in name or name.startswith(("code_embedding.", "code_head."))


STAGE1 = Stage(
    name="lavida_o.stage1",
    start=RELEASE,
    needs=_UND,
    trained=lambda name: True,
    mixes=(
        Mix(names=("ground",), weight=3.0, last=1.0),
        Mix(names=("chat", "talk", "describe"), weight=1.0, last=3.0),
    ),
    rate=5e-6,
    tower=2e-6,
    updates=80_000,
)
STAGE2_256 = Stage(
    name="lavida_o.stage2_256",
    start="runs/lavida_o.stage1",
    needs=_DRAW,
    trained=generating,
    mixes=(Mix(names=("draw",), weight=1.0),),
    rate=1e-4,
    updates=300_000,
    part=4,
    fold=1,
    policy=Uniform(),
)
STAGE2_512 = Stage(
    name="lavida_o.stage2_512",
    start="runs/lavida_o.stage2_256",
    needs=_DRAW,
    trained=generating,
    mixes=(Mix(names=("draw",), weight=1.0),),
    rate=1e-4,
    updates=50_000,
    part=2,
)
STAGE2 = Stage(
    name="lavida_o.stage2",
    start="runs/lavida_o.stage2_512",
    needs=_DRAW,
    trained=generating,
    mixes=(Mix(names=("draw",), weight=1.0),),
    rate=1e-4,
    updates=50_000,
)
# The weights of the released configuration, by kind of row. A layout or text before a picture is given in 80 % of the rows and
# masked together with the picture in 20 % (spec 3.3).
STAGE3 = Stage(
    name="lavida_o.stage3",
    start="runs/lavida_o.stage2",
    needs=_ALL,
    trained=lambda name: True,
    mixes=(
        Mix(names=("draw",), weight=580.0),
        Mix(names=("edit",), weight=450.0),
        Mix(names=("chat", "talk", "describe"), weight=400.0, half=True),
        Mix(names=("ground",), weight=100.0, half=True),
        Mix(names=("draw_planned",), weight=160.0),
        Mix(names=("draw_open",), weight=40.0),
        Mix(names=("plan",), weight=20.0),
        Mix(names=("edit_planned",), weight=136.0, half=True),
        Mix(names=("edit_open",), weight=34.0, half=True),
        Mix(names=("edit_plan",), weight=30.0),
        Mix(names=("critique",), weight=150.0),
        Mix(names=("retry",), weight=30.0, half=True),
        Mix(names=("retry_planned",), weight=120.0, half=True),
        Mix(names=("retry_open",), weight=30.0, half=True),
        Mix(names=("retry_plan",), weight=20.0, half=True),
    ),
    rate=2e-5,
    tower=2e-6,
    updates=100_000,
)
STAGES = (STAGE1, STAGE2_256, STAGE2_512, STAGE2, STAGE3)


def stage1(
    model: str = "",
    data: str = "",
    batch: int = 2,
    steps: int = 0,
    alike: int = 64,
    holdout: float = 0.01,
    seed: int = 0,
    folder: str = "",
) -> Recipe:
    """Stage 1: grounding and understanding, with the understanding branch, the text head and the vision part.

    Rows: boxes (``ground``), conversations (``chat``, without pictures ``talk``), captions (``describe``). Batches of boxes to others are
    3 to 1 at first and 1 to 3 at the end; that the ratio changes linearly is chosen here. ``model``: the model to start from, "" for the
    released one; ``data``: PATH or PATH=WEIGHT, separated by commas · ``batch``: rows of a source batch · ``steps``: source batches of
    the run; 0: the paper's updates · ``alike``: source batches in a row of one kind of row, a multiple of the processes that share
    weights · ``holdout``: share of the rows for validation · ``folder``: of the run.
    """
    given = _given(model, data, batch, steps, alike, holdout, seed, folder)
    return staged(STAGE1, given)


def stage2_256(
    model: str = "",
    data: str = "",
    batch: int = 2,
    steps: int = 0,
    holdout: float = 0.01,
    codes: str = "",
    gen: str = "und",
    seed: int = 0,
    folder: str = "",
) -> Recipe:
    """Stage 2 at 256 pixels: image generation with one code per position; the generation branch begins from the understanding branch.

    Of captioned pictures, at a quarter of the model's side. ``gen``: und (the paper: truncated copies of the understanding branch;
    ``checkpoints.growing``) or kept (as ``model`` has it) · ``codes``: folder of ``unmask data encode --crop --side 256``; without
    it, random squares are encoded as they come up. The other arguments are those of ``stage1``.
    """
    given = _given(model, data, batch, steps, 1, holdout, seed, folder, codes=codes, gen=gen)
    return staged(STAGE2_256, given)


def stage2_512(
    model: str = "",
    data: str = "",
    batch: int = 2,
    steps: int = 0,
    holdout: float = 0.01,
    codes: str = "",
    seed: int = 0,
    folder: str = "",
) -> Recipe:
    """Stage 2 at 512 pixels: image generation with 2 x 2 codes per position.

    The 50,000 updates are chosen here: with as many at 1024 pixels they complete the paper's 400,000. The scripts have no stage at 512.
    Arguments as of ``stage2_256``.
    """
    given = _given(model, data, batch, steps, 1, holdout, seed, folder, codes=codes)
    return staged(STAGE2_512, given)


def stage2(
    model: str = "",
    data: str = "",
    batch: int = 2,
    steps: int = 0,
    holdout: float = 0.01,
    codes: str = "",
    seed: int = 0,
    folder: str = "",
) -> Recipe:
    """Stage 2 at 1024 pixels: image generation at the model's full size.

    The scripts train it for 100,000 updates at 5e-6 (``-o optim.lr=5e-6``). Arguments as of ``stage2_256``.
    """
    given = _given(model, data, batch, steps, 1, holdout, seed, folder, codes=codes)
    return staged(STAGE2, given)


def stage3(
    model: str = "",
    data: str = "",
    batch: int = 2,
    steps: int = 0,
    alike: int = 64,
    holdout: float = 0.01,
    codes: str = "",
    t_exp: float = 0.0,
    seed: int = 0,
    folder: str = "",
) -> Recipe:
    """Stage 3: all tasks together, with layouts before pictures and edits, critiques, and further attempts after critiques.

    Rows: those of the earlier stages, edits, and with boxes of the same picture layouts (``plan``, ``draw_planned``; of an edit's result
    ``edit_plan``, ``edit_planned``), with critiques of the same text further attempts (``retry`` and its layouts). A source batch has one
    kind of row, by the released weights; kinds without data are left out. ``t_exp``: 0 for the released three kinds of rows, or the
    time at which a picture collapses into its announcement in the paper's single process of text and picture; the paper does not give
    its value. That process does not run with weights in shards. The other arguments are those of ``stage1`` and ``stage2_256``.
    """
    given = _given(model, data, batch, steps, alike, holdout, seed, folder, codes=codes, t_exp=t_exp)
    return staged(STAGE3, given)


def _given(
    model: str,
    data: str,
    batch: int,
    steps: int,
    alike: int,
    holdout: float,
    seed: int,
    folder: str,
    *,
    codes: str = "",
    gen: str = "kept",
    t_exp: float = 0.0,
) -> Given:
    return Given(
        model=model,
        data=data,
        batch=batch,
        steps=steps,
        alike=alike,
        holdout=holdout,
        codes=codes,
        seed=seed,
        folder=folder,
        gen=gen,
        t_exp=t_exp,
    )
