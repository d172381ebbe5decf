"""Training of ``small``, a model of 20 M parameters for pictures of 256 px, made for a GPU that is lent for minutes.

    unmask train small.all --out runs/small --device cuda --minutes 13
    unmask train small.all --out runs/small --device cuda --minutes 13 --resume

Both levels of the world: ``free`` (61 classes, 10 colours, 9 backgrounds, any position and size) and ``grid``. In order: the text tokenizer
(seconds), the image tokenizer, the vision tower, drawing, the projector, all tasks, a short evaluation. OUT is a model folder as soon as
drawing begins, at most 60 MiB in files of at most 16 MiB.

Options of ``-o``: ``times`` multiplies the rows of every batch: 8 fills a large GPU, 0.25 suits a CPU · ``narrow`` divides all widths,
for tests · ``workers``: processes that render, -1 for all cores but one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from unmask.checkpoints.checksums import write_sums
from unmask.checkpoints.store import load_module, read_tensors, save_module
from unmask.data.ahead import Ahead, scratch, spare_cores, stop_workers
from unmask.data.deferred import Deferred, References, Rendered
from unmask.data.mixture import Joint
from unmask.data.sources import LABELS, Labelled
from unmask.data.world.sprites import SpriteFile
from unmask.data.world.vocabulary import CLASS_NAMES, COLOUR_NAMES
from unmask.data.world.words import vocabulary
from unmask.models.attention import fused, plain
from unmask.models.codes import init_codes
from unmask.models.elastic import Elastic, init
from unmask.models.sizes import SIZES, ElasticConfig
from unmask.models.vision import Vision
from unmask.objectives.align import Aligned
from unmask.objectives.cells import Cells, LabelledVision
from unmask.objectives.encoded import Encoded, FromBytes, Tokenizer
from unmask.objectives.masked import Together
from unmask.pipeline.loading import write_config
from unmask.protocols import Source
from unmask.recipe import Optim, Recipe, Training
from unmask.recipes import small_vq
from unmask.recipes.mini_tasks import lines, not_tower
from unmask.recipes.mini_vision import standardise
from unmask.recipes.small_report import report
from unmask.recipes.small_tasks import DRAFT_LEVELS, Part, Rows, drawing, everything
from unmask.rng import generator
from unmask.tokens.text import MASK, Text
from unmask.tokens.vocabulary import FILE as VOCABULARY
from unmask.tokens.vq import VQ
from unmask.training.chain import Chain, Stage
from unmask.writing import write_text

NET, TOWER, VISION = "model", "tower", "vision"  # files
SIDE, FOLD, CELLS = 256, 2, 8
LONG = 10**7  # steps: more than any time allows
_LABELS = {**LABELS, "cell": CELLS**2}


def size(narrow: int) -> ElasticConfig:
    """The shape of the network. ``narrow``: divides its widths and layers, for tests."""
    whole = SIZES["small"]
    if narrow == 1:
        return whole
    assert whole.vision is not None
    seen = replace(whole.vision, width=whole.vision.width // narrow, mlp=whole.vision.mlp // narrow, layers=1)
    widths = {name: getattr(whole, name) // narrow for name in ("width", "mlp", "gen_width", "gen_mlp")}
    codes = small_vq.config(narrow).num_vq_embeddings
    widths |= {"codes": codes, "code_rows": codes + 2}
    return replace(whole, **widths, heads=max(1, whole.heads // narrow), layers=2, joint_layers=1, vision=seen)


def by_device(q: Tensor, k: Tensor, v: Tensor, attend: Tensor | None) -> Tensor:
    """``fused`` attention on a GPU, ``plain`` elsewhere (see ``models.attention``)."""
    return (fused if q.is_cuda else plain)(q, k, v, attend)


@lru_cache(maxsize=1)
def _sprites() -> tuple[tempfile.TemporaryDirectory[str], SpriteFile | None]:
    """The sprites of this process and its workers, in a folder that is deleted at the end."""
    folder = tempfile.TemporaryDirectory(prefix="unmask-sprites-", dir=scratch())
    return folder, SpriteFile.create(Path(folder.name))


@dataclass(frozen=True, kw_only=True)
class _Small:
    """The stages, as ``chain.Stage.recipe``."""

    seed: int
    times: float
    narrow: int
    workers: int
    texts: int
    images: int

    @property
    def config(self) -> ElasticConfig:
        return size(self.narrow)

    def rendered(self) -> Rendered:
        return Rendered(sprites=_sprites()[1])

    def text(self, folder: Path) -> Text:
        """The text tokenizer of the folder, which is trained if there is none. Takes seconds."""
        path = folder / "tokenizer.json"
        if not path.exists():
            Text.train(lines(self.texts), self.config.vocab_size).save(path)
        return Text.load(path)

    def network(self, folder: Path) -> Elastic:
        return Elastic(self.config, mask_id=self.text(folder)[MASK], attention=by_device)

    def tokenizer(self, folder: Path, resumed: bool) -> Recipe:
        pictures = max(1, round(8 * self.times))
        crops = small_vq.Crops(seed=self.seed, pictures=pictures, levels=DRAFT_LEVELS, rendered=self.rendered())
        squares = max(16, round(160 * self.times))
        run = small_vq.TokenizerRun(
            source=crops, images=self.images, narrow=self.narrow, workers=self.workers, squares=squares
        )
        return run(folder, resumed)

    def labelled(self, seed: int) -> Labelled:
        rows = max(1, round(32 * self.times))
        return Labelled(seed=seed, batch=rows, side=SIDE, cells=CELLS, levels=DRAFT_LEVELS, rendered=self.rendered())

    def tower(self, folder: Path, resumed: bool) -> Recipe:
        """The vision tower, by dense labels (``objectives.cells``). Its result, features of mean 0 and deviation 1, is the file VISION."""
        source = self.labelled(self.seed)
        assert self.config.vision is not None
        vision = self.config.vision

        def model() -> LabelledVision:
            made = LabelledVision(Vision(vision, self.config.width), _LABELS)
            if resumed:
                return load_module(made, folder, name=TOWER)
            init(made, generator("small tower", self.seed))
            return made

        def export(module: LabelledVision, _: Path) -> None:
            standardise(module.vision, source(LONG)[0].float() / 255)
            save_module(module.vision, folder, name=VISION, dtype=torch.bfloat16)

        return Recipe(
            name="small.tower",
            model=model,
            source=Ahead(source=source, workers=self.workers),
            objective=FromBytes(objective=Cells()),
            optim=Optim(lr=1.5e-3, warmup=100, decay_from=0.4, floor=0.02, ema=0.998),
            training=Training(steps=LONG, seed=self.seed),
            export=export,
        )

    def draw(self, folder: Path, resumed: bool) -> Recipe:
        """Drawing alone, from fresh weights and the tower."""

        def model() -> Elastic:
            made = self.network(folder)
            if resumed:
                return load_module(made, folder, name=NET)
            init(made, generator("small", self.seed))
            codebook = read_tensors(folder, small_vq.DICTIONARY)["codebook"]
            init_codes(made.code_embedding, made.code_head, codebook, generator("small codes", self.seed))
            assert made.vision is not None
            made.vision.load_state_dict({k: v.float() for k, v in read_tensors(folder, VISION).items()})
            return made

        optim = Optim(lr=1.5e-3, warmup=100, decay_from=1.0)
        return self._joint("small.draw", folder, model, drawing(self._rows(folder)), optim)

    def align(self, folder: Path, resumed: bool) -> Recipe:
        """The projector from image features to word embeddings (``objectives.align``)."""
        text = self.text(folder)
        classes = ((), *(tuple(text.encode(name)) for name in CLASS_NAMES))
        colours = ((), (), *(tuple(text.encode(name)) for name in COLOUR_NAMES))
        others = (("part", _LABELS["part"]), ("size", _LABELS["size"]), ("cell", _LABELS["cell"]))
        return Recipe(
            name="small.align",
            model=lambda: load_module(self.network(folder), folder, name=NET),
            source=Ahead(source=self.labelled(self.seed + 5), workers=self.workers),
            objective=FromBytes(objective=Aligned(words=(("class", classes), ("colour", colours)), codes=others)),
            optim=Optim(lr=3e-3, warmup=20, decay_from=0.2, floor=0.02, ema=0.98),
            training=Training(steps=LONG, seed=self.seed + 5),
            trainable=lambda name: name.startswith("vision.project"),
            export=_export_net(folder),
        )

    def all(self, folder: Path, resumed: bool) -> Recipe:
        """All tasks jointly."""
        optim = Optim(lr=1e-3, warmup=100, decay_from=0.5, floor=0.02, ema=0.999)
        return self._joint(
            "small.all",
            folder,
            lambda: load_module(self.network(folder), folder, name=NET),
            everything(self._rows(folder)),
            optim,
        )

    def _rows(self, folder: Path) -> Rows:
        assert self.config.vision is not None
        return Rows(
            text=self.text(folder),
            seed=self.seed,
            times=self.times,
            look_tokens=self.config.vision.tokens,
            rendered=self.rendered(),
        )

    def _joint(
        self, name: str, folder: Path, model: Callable[[], Elastic], parts: tuple[Part, ...], optim: Optim
    ) -> Recipe:
        """A stage over several tasks, whose codes are computed on the device by the finished image tokenizer."""
        self.describe(folder)
        sources = tuple((part.name, _deferred(part.source), part.every) for part in parts)
        together = Together(objectives=tuple((part.name, part.objective, part.weight) for part in parts))
        vq = load_module(VQ(small_vq.config(self.narrow)), folder, name=small_vq.FILE)
        return Recipe(
            name=name,
            model=model,
            source=Ahead(source=Joint(parts=sources), workers=self.workers),
            objective=Encoded(objective=together, tokenizer=Tokenizer(vq)),
            optim=optim,
            training=Training(steps=LONG, seed=self.seed),
            trainable=not_tower,
            export=_export_net(folder),
        )

    def describe(self, folder: Path) -> None:
        """Everything of the model folder except weights."""
        self.text(folder)
        write_text(folder / VOCABULARY, vocabulary("free", "small").text())
        write_config(folder, self.config, small_vq.config(self.narrow), wording="compact", side=SIDE, fold=FOLD)


def _deferred(source: Callable[[References], Source]) -> Deferred:
    references = References(small_vq.PATCH)
    return Deferred(source=source(references), references=references)


def _export_net(folder: Path) -> Callable[[nn.Module, Path], None]:
    def export(module: nn.Module, _: Path) -> None:
        save_module(module, folder, name=NET, dtype=torch.bfloat16)

    return export


@dataclass(frozen=True, kw_only=True)
class _Finish:
    """The end of the chain: the workers' cores are needed no longer, and the model is measured on ``items`` per part."""

    items: int

    def __call__(self, folder: Path, device: str, seconds: float) -> None:
        stop_workers()
        write_sums(folder)
        report(folder, device, seconds, self.items)


def all(
    seed: int = 0,
    times: float = 8.0,
    narrow: int = 1,
    workers: int = -1,
    texts: int = 3000,
    images: int = 2000,
    items: int = 48,
) -> Chain:
    """A model of 20 M parameters for 256 px: every stage of its training within --minutes, on a GPU; resumable.

    ``texts``: scenes whose texts the text tokenizer is trained on · ``images``: pictures whose patches the codebook is fitted to ·
    ``items``: of each part of the evaluation at the end, enough to see whether a run went well, not to compare two.
    """
    stages = _Small(
        seed=seed,
        times=times,
        narrow=narrow,
        workers=spare_cores() if workers < 0 else workers,
        texts=texts,
        images=images,
    )
    return Chain(
        name="small.all",
        seed=seed,
        stages=(
            Stage(name="vq", share=0.18, file=small_vq.FILE, recipe=stages.tokenizer),
            Stage(name="tower", share=0.06, file=TOWER, recipe=stages.tower),
            Stage(name="draw", share=0.26, file=NET, recipe=stages.draw),
            Stage(name="align", share=0.02, file=NET, recipe=stages.align),
            Stage(name="all", share=0.48, file=NET, recipe=stages.all),
        ),
        finish=_Finish(items=items),
    )
