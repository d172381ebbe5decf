"""The page ``ablations.md`` of docs, from the rows of ``ablations.py``: tables and plots. Public idea: ``write_page(rows, docs)``.

A value is the mean over seeds with Student's 95 % interval; a difference is paired by seed with the baseline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.evaluation.metrics import over_seeds

Rows = Sequence[Mapping[str, Any]]
# Two-sided 95 % quantiles of Student's distribution, by degrees of freedom.
_FALLS = ("loss.", "frechet")  # figures of which less is better


@dataclass(frozen=True, kw_only=True)
class Question:
    """``title`` of a group of arms · ``paper``: what the paper says · ``better``: arms that it prefers to the baseline (``worse``: the
    baseline to them) · ``shown``: the figure of the plot.
    """

    title: str
    paper: str
    better: tuple[str, ...] = ()
    worse: tuple[str, ...] = ()
    shown: str = "loss.draw.code"


QUESTIONS: dict[str, Question] = {
    "joint_layers": Question(
        title="Joint layers",
        paper="Attention between the branches in the first layers only (16 of 32) is as good as in all, and costs less.",
        worse=("joint_1",),
    ),
    "gen_width": Question(
        title="Width of the generation branch",
        paper="A generation branch of half the width learns faster at the same compute than one of the full width.",
        worse=("gen_128",),
    ),
    "stages": Question(
        title="Modality-aware masking and staged training",
        paper="Stages (understanding, drawing, everything) and modality-aware masking are better than joint training from the start.",
        better=("staged", "modality_aware", "staged_modality_aware"),
    ),
    "weight": Question(
        title="Plain mean or 1/t",
        paper="The paper weights tokens by 1/t; the released code takes the plain mean.",
        better=("inverse_time",),
    ),
    "conditions": Question(
        title="Conditions as text",
        paper="Luminance and contrast as text let the user control both, without harm to the pictures.",
        better=("conditions",),
        shown="luminance",
    ),
    "dropout": Question(
        title="Dropout for guidance",
        paper="One sample in ten is trained without its prompt.",
        worse=("dropout_0", "dropout_30"),
        shown="drawing",
    ),
    "t_exp": Question(
        title="Time at which an announced picture collapses",
        paper="The paper takes t_exp = 0.5; the baseline here has separate kinds of samples, as the released code.",
        shown="loss.illustration.code",
    ),
    "orders": Question(
        title="Order of unmasking",
        paper="The stratified order gives the lowest Fréchet distance, at few steps most of all.",
        shown="frechet",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Value:
    """A mean over ``n`` seeds with the half width of its 95 % interval (None for one seed)."""

    mean: float
    half: float | None
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + ("" if self.half is None else f" ± {self.half:.3f}")


def value(numbers: Sequence[float]) -> Value:
    """Student's interval of a mean. ValueError for no numbers."""
    if not numbers:
        raise ValueError("a mean needs at least one number")
    found = over_seeds(numbers)
    half = None if found["high"] is None else found["high"] - found["value"]
    return Value(mean=found["value"], half=half, n=found["n"])


def by_seed(rows: Rows, arm: str, figure: str) -> dict[int, float]:
    return {row["seed"]: row["figures"][figure] for row in rows if row["arm"] == arm and figure in row["figures"]}


def gain(rows: Rows, arm: str, figure: str, base: str = "base") -> Value | None:
    """The advantage of an arm over the baseline, paired by seed; positive is better. None without a common seed."""
    own, other = by_seed(rows, arm, figure), by_seed(rows, base, figure)
    sign = -1 if figure.startswith(_FALLS) else 1
    common = sorted(own.keys() & other.keys())
    return value([sign * (own[seed] - other[seed]) for seed in common]) if common else None


def verdict(rows: Rows, arm: str, question: Question) -> str:
    """Whether the sign of the gain agrees with the paper's."""
    found = gain(rows, arm, question.shown)
    if found is None or arm not in (*question.better, *question.worse):
        return ""
    if found.half is None or abs(found.mean) <= found.half:
        return "no difference shown"
    return "as in the paper" if (found.mean > 0) == (arm in question.better) else "opposite to the paper"


def write_page(rows: Rows, docs: Path) -> None:
    """``ablations.md``, and a plot of each question in docs/pictures. ValueError for no rows."""
    if not rows:
        raise ValueError("there are no rows yet; run python bench/ablations.py first")
    (docs / "pictures").mkdir(parents=True, exist_ok=True)
    parts = [_head(rows)]
    for group, question in QUESTIONS.items():
        arms = _arms(rows, group)
        if arms:
            name = f"ablations-{group}.svg"
            (docs / "pictures" / name).write_text(plot(rows, arms, question), encoding="utf-8")
            parts.append(section(rows, arms, group, question, f"pictures/{name}"))
    (docs / "ablations.md").write_text("\n".join(parts), encoding="utf-8")


def _arms(rows: Rows, group: str) -> list[str]:
    """The arms of a group that have rows, the baseline first where there is one to compare with."""
    own = list(dict.fromkeys(row["arm"] for row in rows if row["group"] == group))
    return ["base", *own] if own and group != "orders" and by_any(rows, "base") else own


def by_any(rows: Rows, arm: str) -> bool:
    return any(row["arm"] == arm for row in rows)


def _head(rows: Rows) -> str:
    runs = [row for row in rows if row["group"] != "orders"]
    seeds = sorted({row["seed"] for row in rows})
    compute = sorted({row["teraflops"] for row in runs})
    spent = f"{', '.join(f'{c:g}' for c in compute)} TFLOP a run, " if compute else ""
    return f"""# Ablations

Generated by `python bench/ablations.py --page`. The paper's choices on a small network and the synthetic world, level `grid`
(`unmask/recipes/ablations.py`): {spent}seeds {", ".join(map(str, seeds))}. Values are means over seeds with 95 % intervals; "gain" is the
advantage over the baseline, paired by seed, in the figure of the plot. What holds here need not hold at 10 B parameters.
"""


def section(rows: Rows, arms: Sequence[str], group: str, question: Question, picture: str) -> str:
    """Heading, plot and table of one question."""
    names = list(dict.fromkeys(name for row in rows if row["arm"] in arms for name in row["figures"]))
    compared = group != "orders"
    head = ["arm", "steps", *names, *(["gain", "beside the paper"] if compared else [])]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for arm in arms:
        steps = ", ".join(str(n) for n in sorted({row["steps"] for row in rows if row["arm"] == arm}))
        cells = [str(value(list(found.values()))) if (found := by_seed(rows, arm, name)) else "" for name in names]
        won = gain(rows, arm, question.shown) if compared and arm != "base" else None
        more = ["" if won is None else f"{won.mean:+.3f}" + ("" if won.half is None else f" ± {won.half:.3f}")]
        more.append(verdict(rows, arm, question))
        lines.append(f"| {' | '.join([arm, steps, *cells, *(more if compared else [])])} |")
    table = "\n".join(lines)
    return f"## {question.title}\n\n{question.paper}\n\n![{question.title}]({picture})\n\n{table}\n"


def plot(rows: Rows, arms: Sequence[str], question: Question) -> str:
    """The figure ``question.shown`` of each arm as a bar with its interval, in an SVG picture."""
    found = {arm: value(list(numbers.values())) for arm in arms if (numbers := by_seed(rows, arm, question.shown))}
    most = max((v.mean + (v.half or 0.0) for v in found.values()), default=1.0) or 1.0
    parts = [f'<text x="8" y="20">{question.title}: {question.shown}</text>']
    for row, (arm, v) in enumerate(found.items()):
        y, width = 34 + 26 * row, 340 * max(v.mean, 0) / most
        colour = "#b8bcc4" if arm == "base" else "#2a6fdb"
        parts.append(f'<text x="8" y="{y + 14}">{arm}</text>')
        parts.append(f'<rect x="200" y="{y}" width="{width:.1f}" height="18" fill="{colour}"/>')
        if v.half is not None:
            low, high = (200 + 340 * max(v.mean + s * v.half, 0) / most for s in (-1, 1))
            parts.append(f'<path d="M{low:.1f} {y + 9}H{high:.1f}" stroke="#222" stroke-width="1.5"/>')
        parts.append(f'<text x="560" y="{y + 14}">{v}</text>')
    size = f'width="700" height="{46 + 26 * len(found)}" font-family="sans-serif" font-size="13"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(parts)}</svg>\n'
