"""Training of the embedded model from scratch: text tokenizer, vision tower, then the paper's three stages at small scale.

    unmask train mini_vq.vq   --out runs/vq       the image tokenizer
    unmask train mini.tower   --out runs/tower    the semantic encoder
    unmask train mini.stage2a --out runs/stage2a  image generation at 64 px, one code per position
    unmask train mini.stage2  --out runs/stage2   image generation at 128 px with 2x2 folding
    unmask train mini.align   --out runs/align    the projector: image features to word embeddings
    unmask train mini.stage3  --out runs/stage3   all tasks jointly
    python -c "from unmask.recipes.mini import ship; ship()"

All of it, with stage 1, a text tokenizer and own drawings for the critic, in one run that can be stopped and continued (``mini_series``):

    unmask train mini.all --hours 24 --processes 2 --out runs/mini
    unmask train mini.all --resume --processes 2 --out runs/mini

``mini.stage1`` (understanding and grounding before image generation, as in the paper) is optional; the shipped weights were trained
without it. To use it: ``mini.stage2a -o start=runs/stage1``. ``tokenizer_file`` makes the text tokenizer. ``images``: number of images
that the codebook is fitted to; it must be the same for all stages.

Source: Lavida-O (arXiv 2509.19244) section 4 and table 1, scaled to a 7 M parameter model and two CPU cores. The measured cost and
results of the shipped weights are in the model card (unmask/assets/mini/README.md).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from unmask.checkpoints.store import load_module
from unmask.data.ahead import spare_cores
from unmask.data.sources import CachedEncoder
from unmask.models.codes import init_codes
from unmask.models.elastic import Elastic, init
from unmask.pipeline.loading import resolve
from unmask.recipe import Optim, Recipe
from unmask.recipes.mini_free import Free
from unmask.recipes.mini_series import Lattice, MiniSeries, PictureCodes
from unmask.recipes.mini_tasks import (
    SIZE,
    Rows,
    Stage,
    drawing,
    drawing_small,
    everything,
    lines,
    only_understanding,
    understanding,
    write_model,
)
from unmask.recipes.mini_vision import AlignRun, TowerRun
from unmask.recipes.mini_vq import CONFIG, IMAGES, Teacher, dictionary
from unmask.rng import generator
from unmask.tokens.text import MASK, Text
from unmask.tokens.vq import VQ
from unmask.training.series import Series


@lru_cache(maxsize=1)
def text() -> Text:
    """The shipped text tokenizer."""
    return Text.load(Path(str(files("unmask") / "assets" / "mini" / "tokenizer.json")))


def tokenizer_file(folder: Path) -> Text:
    """Train the byte-level BPE and save it. Takes seconds."""
    made = Text.train(lines(), SIZE.vocab_size)
    folder.mkdir(parents=True, exist_ok=True)
    made.save(folder / "tokenizer.json")
    return made


def tower(seed: int = 0) -> Recipe:
    """The vision tower, trained with dense labels per cell (see ``objectives.cells``). About five minutes on two cores.

    Expected: class, colour and part wrong in less than 1 % of the cells of grid scenes.
    """
    return TowerRun(config=SIZE, seed=seed)()


def _encoder(images: int) -> CachedEncoder:
    """Image codes from the tokenizer's codebook, which is fitted on first use."""
    return CachedEncoder(Teacher(images=images))


def _start(seed: int, start: str, vision: str, images: int = IMAGES) -> Callable[[], Elastic]:
    """The weights of the run or shipped model ``start``; without it keyed random weights, with code embeddings from the codebook and the
    tower of ``vision``.
    """

    def model() -> Elastic:
        made = Elastic(SIZE, mask_id=text()[MASK])
        if start:
            return load_module(made, Path(start) if "/" in start or Path(start).is_dir() else resolve(start))
        init(made, generator("mini", seed))
        init_codes(made.code_embedding, made.code_head, dictionary(0, images)[0].codebook, generator("codes", seed))
        if vision and made.vision is not None:
            load_module(made.vision, Path(vision))
        return made

    return model


def align(start: str = "runs/stage2", seed: int = 5) -> Recipe:
    """The projector, from image features to word embeddings (see ``objectives.align``). Takes a minute."""
    return AlignRun(text=text(), model=_start(seed, start, ""), seed=seed)()


def _rows(seed: int, images: int) -> Rows:
    return Rows(text=text(), encode=_encoder(images), seed=seed)


def stage1(vision: str = "runs/tower", start: str = "", seed: int = 1, images: int = IMAGES) -> Recipe:
    """Understanding and grounding: questions, phrases and captions (paper stage 1)."""
    return Stage(
        name="mini.stage1",
        seed=seed,
        steps=1500,
        model=_start(seed, start, vision, images),
        parts=(understanding(_rows(seed, images)),),
        trainable=only_understanding,
    )()


def stage2a(vision: str = "runs/tower", start: str = "", seed: int = 2, images: int = IMAGES) -> Recipe:
    """Image generation at 64 px: 16 codes, one per position, uniform mask ratio (paper: 256 px uncompressed)."""
    return Stage(
        name="mini.stage2a",
        seed=seed,
        steps=1500,
        model=_start(seed, start, vision, images),
        parts=(drawing_small(_rows(seed, images)),),
    )()


def stage2(vision: str = "runs/tower", start: str = "runs/stage2a", seed: int = 3, images: int = IMAGES) -> Recipe:
    """Image generation at 128 px: 64 codes on 16 positions by 2x2 folding, cosine mask ratio (paper: 1024 px compressed)."""
    return Stage(
        name="mini.stage2",
        seed=seed,
        steps=6000,
        model=_start(seed, start, vision, images),
        parts=(drawing(_rows(seed, images)),),
    )()


def stage3(
    vision: str = "runs/tower",
    start: str = "runs/align",
    drawn: str = "",
    seed: int = 4,
    images: int = IMAGES,
    t_exp: float = 0.0,
) -> Recipe:
    """All tasks jointly (paper stage 3), with learning rate decay: image generation, questions and grounding, editing, captions; layouts
    before images and edits, critiques, further attempts, text that announces an image.

    ``drawn``: a folder of ``mini_drawn``, to train critiques on generated images too · ``t_exp=0.5``: mask the announcing text together
    with the image, in the paper's single process that collapses at this time; 0: three kinds of samples, as in the released code
    (spec 3.3).
    """
    return Stage(
        name="mini.stage3",
        seed=seed,
        steps=19500,
        model=_start(seed, start, vision, images),
        parts=everything(_rows(seed, images), drawn, t_exp),
        optim=Optim(lr=9e-4, warmup=100, decay_from=0.5, floor=0.02, ema=0.999),
    )()


def ship(net: str = "runs/stage3", vq: str = "runs/vq", out: str = "unmask/assets/mini") -> None:
    """Write the trained parts as a model folder."""
    model = load_module(Elastic(SIZE, mask_id=text()[MASK]), Path(net))
    write_model(Path(out), model, load_module(VQ(CONFIG), Path(vq)), text(), "grid")


def all(
    seed: int = 0,
    hours: float = 24.0,
    times: float = 1.0,
    narrow: int = 1,
    images: int = IMAGES,
    texts: int = 12000,
    drawn: int = 6000,
    items: int = 600,
    tokenizer: str = "lattice",
    accumulate: int = 2,
    workers: int = 0,
    rate: float = 1.0,
    curve: int = 4000,
) -> Series:
    """Everything from nothing: tokenizers, vision tower, stages 1 to 3, own drawings, evaluation and model card; resumable.

    ``tokenizer``: lattice (``mini_vq``) or free (``mini_free``), which also chooses the level that is drawn. ValueError for another word ·
    ``times``: multiplies the rows of every batch · ``accumulate``: batches per update, for two processes · ``workers``: processes that make
    batches, -1 for all cores but one · ``rate``: multiplies the learning rates of the stages · ``curve``: batches between evaluations.
    A GPU is quick with ``-o times=8 -o accumulate=1 -o workers=-1 -o curve=0``.
    """
    pictures = max(1, round(8 * times))
    known: dict[str, PictureCodes] = {
        "lattice": Lattice(seed=seed, images=images, batch=pictures),
        "free": Free(seed=seed, pictures=pictures, items=min(64, items)),
    }
    if tokenizer not in known:
        raise ValueError(f"there is no tokenizer {tokenizer!r}; choose from {', '.join(known)}")
    codes = known[tokenizer]
    made = MiniSeries(
        codes=codes,
        seed=seed,
        times=times,
        narrow=narrow,
        texts=texts,
        drawn=drawn,
        items=items,
        accumulate=accumulate,
        workers=spare_cores() if workers < 0 else workers,
        rate=rate,
        curve=curve,
    )
    return made.series(hours)
