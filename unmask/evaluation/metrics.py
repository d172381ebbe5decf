"""Figures with their uncertainty, and distances. Public idea: ``share(verdicts) -> {"value", "n", "low", "high"}``.

Every figure is a plain dict, ready for JSON: ``value`` (None for an empty sample), ``n`` (sample size), and a 95 % interval from
``low`` to ``high``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from unmask.evaluation.scoring import Z, interval
from unmask.json_types import Json

Figure = Json
_LEAST_ERROR = 1e-10  # squared error of 100 dB, so that a perfect picture has a finite PSNR


def share(rights: Iterable[bool], **more: object) -> Figure:
    """The share of true verdicts, with Wilson's interval; ``more`` is added to the figure."""
    given = [bool(r) for r in rights]
    low, high = interval(sum(given), len(given))
    return {"value": sum(given) / len(given) if given else None, "n": len(given), "low": low, "high": high, **more}


def by_kind(rows: Sequence[Json], kinds: Iterable[str], verdict: str = "right") -> dict[str, Figure]:
    """The share of rows with a positive verdict, ``overall`` and per kind."""
    of_kinds = {kind: share(r[verdict] for r in rows if r["kind"] == kind) for kind in kinds}
    return {"overall": share(r[verdict] for r in rows), **of_kinds}


def by_combination(rows: Sequence[Json]) -> dict[str, Figure]:
    """The share of right rows with and without a held-out combination."""
    return {
        "seen_combinations": share(r["right"] for r in rows if not r["unseen"]),
        "held_out_combinations": share(r["right"] for r in rows if r["unseen"]),
    }


def share_of_groups(groups: Iterable[Sequence[bool]], **more: object) -> Figure:
    """The mean over groups (the pictures of one prompt) of the share of true verdicts. ``n`` counts groups, ``pictures`` verdicts.

    Wilson's interval with each group as one trial: conservative, and exact if all images of a prompt have the same verdict.
    """
    given = [[bool(r) for r in group] for group in groups]
    means = [sum(group) / len(group) for group in given]
    low, high = interval(min(sum(means), len(means)), len(means))
    value = sum(means) / len(means) if means else None
    pictures = sum(len(group) for group in given)
    return {"value": value, "n": len(means), "low": low, "high": high, "pictures": pictures, **more}


def mean_of(figures: Sequence[Figure]) -> Figure:
    """The unweighted mean of independent figures; empty ones are left out.

    The interval combines their intervals in quadrature, separately for each side (Zou & Donner 2008).
    """
    given = [f for f in figures if f["value"] is not None]
    if not given:
        return average([])
    value = sum(f["value"] for f in given) / len(given)
    below = sum((f["value"] - f["low"]) ** 2 for f in given) ** 0.5 / len(given)
    above = sum((f["high"] - f["value"]) ** 2 for f in given) ** 0.5 / len(given)
    return {"value": value, "n": sum(f["n"] for f in given), "low": value - below, "high": value + above}


def average(values: Sequence[float], **more: object) -> Figure:
    """The mean, with the normal interval of a mean."""
    n = len(values)
    if not n:
        return {"value": None, "n": 0, "low": None, "high": None, **more}
    value = float(np.mean(values))
    spread = Z * float(np.std(values, ddof=1)) / n**0.5 if n > 1 else 0.0
    return {"value": value, "n": n, "low": value - spread, "high": value + spread, **more}


def paired(a: Sequence[float], b: Sequence[float], *, seed: int = 0, resamples: int = 2000, **more: object) -> Figure:
    """The mean of a - b over items that both measured, with a bootstrap interval. ValueError for unequal lengths."""
    if len(a) != len(b):
        raise ValueError(f"paired values must be as many on both sides, got {len(a)} and {len(b)}")
    if not a:
        return average([], **more)
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    drawn = np.random.default_rng(seed).choice(difference, (resamples, len(difference))).mean(1)
    low, high = np.quantile(drawn, (0.025, 0.975)).tolist()
    return {"value": float(difference.mean()), "n": len(difference), "low": low, "high": high, **more}


# Student's t, two-sided 95 %, by degrees of freedom; beyond 30 the normal value is within 4 %.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def over_seeds(values: Sequence[float], **more: object) -> Figure:
    """The mean over a few runs, with Student's interval; no interval for one run. Pass differences of paired runs to compare two."""
    n = len(values)
    if n < 2:
        return {"value": float(values[0]) if n else None, "n": n, "low": None, "high": None, **more}
    value = float(np.mean(values))
    spread = (_T[n - 2] if n - 2 < len(_T) else Z) * float(np.std(values, ddof=1)) / n**0.5
    return {"value": value, "n": n, "low": value - spread, "high": value + spread, **more}


def balanced(pairs: Sequence[tuple[bool, bool]]) -> Figure:
    """(truth, verdict) -> balanced accuracy, the mean of true-positive and true-negative rate; both truths must occur. Normal interval."""
    groups = [[verdict == truth for truth, verdict in pairs if truth == wanted] for wanted in (True, False)]
    if not all(groups):
        return {"value": None, "n": len(pairs), "low": None, "high": None}
    rates = [sum(group) / len(group) for group in groups]
    value = sum(rates) / 2
    spread = Z / 2 * sum(p * (1 - p) / len(g) for p, g in zip(rates, groups, strict=True)) ** 0.5
    return {"value": value, "n": len(pairs), "low": max(0.0, value - spread), "high": min(1.0, value + spread)}


def calibration(pairs: Sequence[tuple[float, bool]], bins: int = 10) -> Figure:
    """(predicted probability, truth) -> the expected calibration error (Guo et al. 2017) over bins.

    ``bins`` lists the bins that are not empty: lower limit, count, mean predicted probability, share of true outcomes.
    """
    filled: dict[int, list[tuple[float, bool]]] = {}
    for probability, truth in pairs:
        filled.setdefault(min(bins - 1, int(probability * bins)), []).append((probability, truth))
    rows = [
        {"from": k / bins, "n": len(v), "said": sum(c for c, _ in v) / len(v), "true": sum(t for _, t in v) / len(v)}
        for k, v in sorted(filled.items())
    ]
    error = sum(r["n"] * abs(r["said"] - r["true"]) for r in rows) / max(1, len(pairs))
    return {"value": error if pairs else None, "n": len(pairs), "bins": rows}


def correlation(pairs: Sequence[tuple[float, float]]) -> Figure:
    """Pearson's correlation, with Fisher's interval; None for fewer than four pairs or a constant side."""
    n, value = len(pairs), None
    if n > 3:
        a, b = np.asarray(pairs, dtype=np.float64).T
        if a.std() > 0 and b.std() > 0:
            value = float(np.corrcoef(a, b)[0, 1].clip(-1, 1))
    if value is None:
        return {"value": None, "n": n, "low": None, "high": None}
    middle, spread = np.arctanh(min(max(value, -1 + 1e-12), 1 - 1e-12)), Z / (n - 3) ** 0.5
    return {"value": value, "n": n, "low": float(np.tanh(middle - spread)), "high": float(np.tanh(middle + spread))}


def psnr(error: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error of pixels in 0..1."""
    return -10 * float(np.log10(max(error, _LEAST_ERROR)))


def psnr_of_mean(errors: Sequence[float], *, seed: int = 0, resamples: int = 1000) -> Figure:
    """PSNR of the mean squared error over all pictures, which single bad pictures lower. Interval by bootstrap."""
    if not errors:
        return average([])
    drawn = np.random.default_rng(seed).choice(np.asarray(errors), (resamples, len(errors)))
    worst, best = np.quantile(drawn.mean(1), (0.975, 0.025))
    return {"value": psnr(float(np.mean(errors))), "n": len(errors), "low": psnr(worst), "high": psnr(best)}


def clip_score(images: np.ndarray, texts: np.ndarray) -> Figure:
    """The mean over images of 100 max(cos, 0), the cosine of the features of an image and its text (Hessel et al. 2021, no weight).

    Both [N, F], row i of one belongs to row i of the other. ValueError if the shapes differ.
    """
    if images.shape != texts.shape or images.ndim != 2:
        raise ValueError(
            f"expected features [N, F] of the same shape for images and texts, got {images.shape} and {texts.shape}"
        )
    a, b = images.astype(np.float64), texts.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = (a * b).sum(1) / np.where(lengths > 0, lengths, 1)
    return average((100 * cosines.clip(min=0)).tolist())


def frechet(a: np.ndarray, b: np.ndarray) -> float | None:
    """Fréchet distance of two sets of features [N, F], each modelled as a normal distribution; None for fewer than two.

    |mean difference|^2 + trace(A + B - 2 (A B)^(1/2)) (Heusel et al. 2017, there over Inception features). It falls
    with N: compare it with the distance of as many real images from other real images.
    """
    if min(len(a), len(b)) < 2:
        return None
    a, b = a.astype(np.float64), b.astype(np.float64)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = _root(cov_a)
    # The eigenvalues of root B root are those of A B, and it is symmetric.
    both = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(min=0)).sum()
    apart = float(((a.mean(0) - b.mean(0)) ** 2).sum())
    return max(0.0, apart + float(np.trace(cov_a) + np.trace(cov_b) - 2 * both))


def _root(symmetric: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(symmetric)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
