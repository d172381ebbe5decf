"""MeDiM: pictures and their reports in one masked diffusion, from a causal image-token model (``methods.medim``).

    unmask train image_tokens.causal -o reports=28 --out runs/causal
    unmask train medim.joint --model runs/causal --out runs/medim
    unmask generate "a blue cat at the top left on a white background" --model runs/medim
    unmask describe picture.png --model runs/medim
    python -c "from unmask.recipes.medim import pairs; pairs('runs/medim', 8, 'runs/pairs')"

``--data FOLDER`` trains on your own pictures, each with its report in a .txt beside it (docs/data.md); give the same data to both commands.
Without ``--model`` the network starts from random weights.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from unmask.checkpoints.schema import read_json
from unmask.checkpoints.store import load_module
from unmask.checkpoints.stream import CheckpointError
from unmask.evaluation.demonstration import Demonstration, Findings, Media, Table, Work
from unmask.evaluation.metrics import Figure, average, over_seeds
from unmask.evaluation.pairs import agrees, places
from unmask.methods.medim import ByShares, Cooling, JointLoss, RisingGuidance
from unmask.models.elastic import Elastic, init
from unmask.models.timed import Timed
from unmask.pipeline import image_tokens
from unmask.pipeline.image_tokens import Kit, trunk
from unmask.pipeline.model import Model
from unmask.recipe import Optim, Recipe
from unmask.recipes.image_tokens import PAIRS, CodedRows, mini_kit, own, training, world, world_judge, world_kit
from unmask.recipes.image_tokens import causal as causal_model
from unmask.rng import generator
from unmask.sampling.sampler import Sampler
from unmask.sampling.selection import Confident
from unmask.sampling.token_sampler import Categorical
from unmask.sequence import Batch, Sequence, collate
from unmask.tasks.image_tokens import ReportRows
from unmask.tasks.parts import Parts
from unmask.tasks.results import answered
from unmask.tasks.some_tasks import drawing_and_answering
from unmask.tokens.image_tokens import reported
from unmask.tokens.pictures import save_image
from unmask.tokens.prompts import COMPACT
from unmask.tokens.text import MASK
from unmask.writing import write_text

MEDIM = "medim.joint"
REPORTED = replace(PAIRS, places=True)
_SEED = 77  # of the pairs that nothing is trained on
STEPS = 16


def sampler(tokens: Parts, *, steps: int = STEPS) -> Sampler:
    """Few tokens first, in an order that is random at first and by confidence at the end; guidance that rises."""
    return Sampler(
        schedule=ByShares(steps=steps),
        token_sampler=Categorical(),
        selection=Confident(noise=Cooling(steps=steps)),
        guidance=RisingGuidance(scale=1.0, drop=frozenset({"report", "image"}), null_id=tokens.mask_id),
    )


def joint(
    model: str = "",
    data: str = "",
    timed: int = 1,
    causal: int = 0,
    length: int = 28,
    width: int = 64,
    layers: int = 3,
    pictures: int = 4000,
    batch: int = 16,
    steps: int = 1000,
    lr: float = 4e-3,
    seed: int = 0,
) -> Recipe:
    """One masked diffusion over pictures and their reports.

    ``model``: a causal image-token model to start from; "": random weights of ``width`` and ``layers`` · ``data``: your own pictures with
    reports; "": ``pictures`` pictures of the small world · ``timed``: 0 for a network that does not read the time · ``causal``: 1
    to keep the causal mask, for comparison · ``length``: tokens of a report.
    """

    def kit() -> Kit:
        return start(model)[1] if model else mini_kit() if data else world_kit()

    def network() -> Timed:
        net = image_tokens.opened(Path(model))[0] if model else _fresh(kit(), width, layers, seed)
        torch.manual_seed(seed)  # of the time embedding
        return Timed(net, timed=bool(timed), causal=bool(causal))

    def row(report: str, codes: Tensor) -> Sequence:
        return reported(kit().text, codes, report, length)

    def export(module: Timed, folder: Path) -> None:
        more = {"timed": bool(timed), "causal": bool(causal), "length": length}
        image_tokens.write_folder(folder, module, module.config, kit(), MEDIM, more)

    return Recipe(
        name=MEDIM,
        model=network,
        source=CodedRows(
            data=lru_cache(maxsize=1)(
                lambda: own(data, kit(), length - 1) if data else world(pictures, seed, REPORTED)
            ),
            row=row,
            seed=seed,
            batch=batch,
        ),
        objective=JointLoss(),
        optim=Optim(lr=lr, warmup=30, decay_from=0.3, floor=0.05, ema=0.99),
        training=training(steps, seed),
        export=export,
        open=opened,
    )


@lru_cache(maxsize=2)
def start(model: str) -> tuple[Elastic, Kit]:
    """The causal model of a folder."""
    return image_tokens.opened(Path(model))


def _fresh(kit: Kit, width: int, layers: int, seed: int) -> Elastic:
    net = Elastic(trunk(kit, width=width, layers=layers), mask_id=kit.text[MASK])
    init(net, generator("medim", seed))
    return net


def opened(folder: Path, device: str = "cpu") -> Model:
    """The model of a folder of ``joint``. CheckpointError for a file that is missing or does not fit."""
    raw = read_json(folder / "config.json")
    config, kit = image_tokens.described(folder, device)
    fields = {"timed": bool, "causal": bool, "length": int}
    for name, kind in fields.items():
        if not isinstance(raw.get(name), kind):
            raise CheckpointError(f"{folder / 'config.json'}: {name} is {raw.get(name)!r}, wanted {kind.__name__}")
    net = Timed(Elastic(config, mask_id=kit.text[MASK]), timed=raw["timed"], causal=raw["causal"])
    return model_of(load_module(net, folder).to(device).eval(), kit, raw["length"])


def model_of(net: Timed, kit: Kit, length: int) -> Model:
    """It draws pictures of reports and writes reports of pictures."""
    fixed = {"wording": COMPACT, "side": kit.side, "fold": 1, "rows": ReportRows(length=length)}
    parts = Parts(text=kit.text, net=net, vq=kit.vq, **fixed)  # type: ignore[arg-type]
    has = "it has generate and describe"
    return Model(
        parts,
        presets=drawing_and_answering(
            "a model of pictures and reports", has, generate=sampler, ask=sampler, length=length
        ),
    )


def sampled(model: Model, count: int, seed: int, batch: int = 64) -> tuple[Tensor, list[str]]:
    """Codes [N, h, w] and reports of ``count`` pairs that the model makes up; pair i has the seed ``seed`` + i."""
    parts, codes, reports = model.parts, [], []
    assert isinstance(parts.rows, ReportRows)
    row = parts.rows.both(parts)
    image, report = row.span("image"), row.span("report")
    for first in range(0, count, batch):
        seeds = range(seed + first, seed + min(first + batch, count))
        done = model.presets.ask(parts).sample(parts.net, collate([row] * len(seeds), seeds))
        for ids in done.ids.cpu():
            codes.append(ids[image.start : image.stop].view(parts.grid))
            only = replace(row, ids=ids, masked=torch.zeros_like(row.masked), spans=(replace(report, name="answer"),))
            reports.append(answered(only, parts.text))
    return torch.stack(codes), reports


def pairs(model: str, count: int, out: str, seed: int = 0) -> None:
    """Write ``count`` made-up pairs into a folder: 0000.png with 0000.txt and so on, which ``--data`` reads."""
    loaded = opened(Path(model))
    codes, reports = sampled(loaded, count, seed)
    Path(out).mkdir(parents=True, exist_ok=True)
    for i, (image, report) in enumerate(zip(loaded.parts.decode(codes), reports, strict=True)):
        save_image(image, Path(out) / f"{i:04d}.png")
        write_text(Path(out) / f"{i:04d}.txt", report + "\n")


# -- the demonstration -------------------------------------------------------------------------------------------------

Arm = tuple[str, str, str]  # attention, time, start
_ARMS: tuple[Arm, ...] = tuple(
    (mask, time, begin)
    for mask in ("all-visible", "causal")
    for time in ("time", "no time")
    for begin in ("from causal", "scratch")
)
_FIRST, _MORE, _ROWS, _PICTURES, _TESTED, _MADE, _LENGTH = 400, 1000, 16, 900, 96, 32, 28
_BEST: Arm = ("all-visible", "time", "from causal")
_DIRECTIONS = (("report", "of the report, given the picture"), ("image", "of the picture, given the report"))


def demo(work: Work) -> Findings:
    """{all-visible, causal} x {time, no time} x {from causal, from scratch} at equal steps: losses and agreement of made-up pairs."""
    found = {arm: {seed: _scores(work, arm, seed) for seed in _seeds(work, arm)} for arm in _ARMS}

    def over(arm: Arm, value: str) -> Figure:
        return over_seeds([one[value] for one in found[arm].values()])

    def change(place: int, value: str) -> Figure:
        """From the second choice of a factor to the first, with the others as in the full method."""
        a, b, c = (_OTHER[w] if i == place else w for i, w in enumerate(_BEST))
        return over_seeds([found[_BEST][s][value] - found[a, b, c][s][value] for s in work.seeds])

    gains = {
        f"{name}.{value}": change(place, value)
        for place, name in enumerate(("all_visible", "time", "from_causal"))
        for value in ("report", "image", "agree")
    }
    rows = tuple((*arm, *(over(arm, value) for value in ("report", "image", "agree"))) for arm in _ARMS)
    seen = gains["all_visible.image"]
    return Findings(
        about=_about(work),
        verdict=f"All-visible attention changes the loss of pictures given reports by {seen['value']:+.3f}, the causal start by "
        f"{gains['from_causal.image']['value']:+.3f}, the time by {gains['time.image']['value']:+.3f}; of the pairs that the full method "
        f"makes up, {over(_BEST, 'agree')['value']:.3f} agree.",
        seen=seen["high"] is not None and seen["high"] < 0,
        figures={"agree": over(_BEST, "agree"), **gains},
        shown=(
            Table(
                title="Masked loss of a token, and agreement of made-up pairs",
                head=("attention", "time", "start", "report | picture", "picture | report", "pairs that agree"),
                rows=rows,
                note="Loss: mean cross-entropy in nats of tokens masked with probability 0.8, the other modality given.",
            ),
            Media(title="Pairs that the full method makes up, first seed", items=_made(work)),
        ),
    )


_OTHER = {"all-visible": "causal", "time": "no time", "from causal": "scratch"}


def _seeds(work: Work, arm: Arm) -> tuple[int, ...]:
    """All seeds for arms that differ from the full method in one choice at most; one for the others, which no gain reads."""
    return work.seeds if sum(a != b for a, b in zip(arm, _BEST, strict=True)) < 2 else work.seeds[:1]


def _about(work: Work) -> str:
    first, more = work.steps(_FIRST, least=2), work.steps(_MORE, least=2)
    return (
        f"A causal model of pictures and then their reports becomes a masked diffusion over both. All arms take {more} steps of the same "
        f"batches; those from the causal model had {first} causal steps before, the others start from random weights. Losses are of "
        "pairs that training has not seen. A pair agrees if the independent detector finds in the picture exactly what the report says, "
        "with its place. Means over seeds with Student's interval; a gain is the full method minus the arm that differs in one choice. "
        "Arms that differ in two or three ran with the first seed alone. The effect is seen if attention to all tokens lowers the loss of "
        "pictures."
    )


def _net(work: Work, arm: Arm, seed: int) -> Timed:
    attention, time, begin = arm
    first, more, count = work.steps(_FIRST, least=2), work.steps(_MORE, least=2), work.steps(_PICTURES, least=8)
    name = f"causal-{seed}"
    if begin == "from causal":
        work.train(name, causal_model(steps=first, pictures=count, batch=_ROWS, reports=_LENGTH, seed=seed))
    base = str(work.out / "trained" / name) if begin == "from causal" else ""
    fields = {"timed": int(time == "time"), "causal": int(attention == "causal"), "length": _LENGTH}
    recipe = joint(model=base, steps=more, pictures=count, batch=_ROWS, seed=seed, **fields)  # type: ignore[arg-type]
    net = work.train(f"{'-'.join(arm).replace(' ', '_')}-{seed}", recipe)
    assert isinstance(net, Timed)
    return net


def _scores(work: Work, arm: Arm, seed: int) -> dict[str, float]:
    return work.once(f"{'-'.join(arm).replace(' ', '_')}-{seed}", lambda: _measured(work, arm, seed))


def _measured(work: Work, arm: Arm, seed: int) -> dict[str, float]:
    """The loss of each modality given the other, on unseen pairs, and how many made-up pairs agree."""
    net, kit = _net(work, arm, seed), world_kit()
    test = world(work.steps(_TESTED, least=4), _SEED, REPORTED, "test")
    rows = [reported(kit.text, codes, text, _LENGTH) for text, codes in zip(test.texts, test.codes, strict=True)]
    batch = collate(rows, range(len(rows)))
    found = {name: _loss(net, batch, name) for name, _ in _DIRECTIONS}
    model = model_of(net, kit, _LENGTH)
    codes, reports = sampled(model, work.steps(_MADE, least=2), seed)
    seen = world_judge(REPORTED)(codes)
    return found | {
        "agree": float(average(agrees(seen, reports, placed=REPORTED.places))["value"]),
        "places": places(seen),
    }


@torch.no_grad()
def _loss(net: Timed, batch: Batch, name: str) -> float:
    """Mean cross-entropy of the tokens of a span, masked with probability 0.8, the rest given."""
    span = batch.span_table[0][[s.name for s in batch.span_table[0]].index(name)]
    u = torch.rand(batch.ids.shape, generator=generator("medim loss"))
    masked = (u < 0.8) & batch.writable
    masked[:, : span.start] = False
    masked[:, span.stop :] = False
    share = float(masked.sum() / batch.writable.sum())
    noisy = batch.replace(masked=masked, time=torch.full(batch.ids.shape, share))
    return share * float(JointLoss().each(net, noisy)[masked].mean())


def _made(work: Work) -> tuple[tuple[str, Image.Image], ...]:
    model = model_of(_net(work, _BEST, work.seeds[0]), world_kit(), _LENGTH)
    codes, reports = sampled(model, 8, 0)
    return tuple(zip(reports, model.parts.decode(codes), strict=True))


DEMO = Demonstration(minutes=15, run=demo)
