"""Bayesian optimisation of a few numbers in 0..1 whose score is costly, such as the times of a sampler's steps.

Public idea: ``maximise(score, 5, seed=0) -> Search``: random points first, then points with the largest expected improvement under a
Gaussian process (Jones, Schonlau and Welch 1998, "Efficient Global Optimization of Expensive Black-Box Functions").

Shapes: n points tried · m candidates · d numbers of a point.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_CANDIDATES = 512
_erf = np.vectorize(math.erf)


@dataclass(frozen=True, kw_only=True)
class Search:
    """``best``: the point with the highest score, ``score`` · ``tried``: all points and scores in order."""

    best: tuple[float, ...]
    score: float
    tried: tuple[tuple[tuple[float, ...], float], ...]


def maximise(
    score: Callable[[tuple[float, ...]], float],
    numbers: int,
    *,
    first: int = 40,
    guided: int = 200,
    seed: int = 0,
    start: tuple[tuple[float, ...], ...] = (),
    ordered: bool = False,
) -> Search:
    """The best of ``start``, ``first`` random and ``guided`` chosen points of ``numbers`` numbers.

    ``ordered``: points are sorted before they are scored, as for times whose order does not matter. ValueError without any point, or for a
    start of another length.
    """
    if any(len(point) != numbers for point in start):
        raise ValueError(f"starting points need {numbers} numbers, got {[len(point) for point in start]}")
    if not len(start) + first > 0 or numbers < 1:
        raise ValueError(f"a search needs numbers and at least 1 point, got {numbers} and {len(start) + first}")
    rng = np.random.default_rng(seed)
    shape = np.sort if ordered else np.asarray
    points = [shape(np.array(point, dtype=float)) for point in start]
    points += [shape(rng.random(numbers)) for _ in range(first)]
    scores = [float(score(tuple(point.tolist()))) for point in points]
    for _ in range(guided):
        point = shape(_next(np.stack(points), np.array(scores), rng))
        points.append(point)
        scores.append(float(score(tuple(point.tolist()))))
    best = int(np.argmax(scores))
    tried = tuple((tuple(p.tolist()), s) for p, s in zip(points, scores, strict=True))
    return Search(best=tried[best][0], score=scores[best], tried=tried)


def _next(points: np.ndarray, scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The candidate with the largest expected improvement: half random, half near the best point."""
    best = points[int(np.argmax(scores))]
    anywhere = rng.random((_CANDIDATES // 2, points.shape[1]))
    near = np.clip(best + 0.1 * rng.standard_normal(anywhere.shape), 0, 1)
    candidates = np.concatenate([anywhere, near])
    return candidates[int(np.argmax(_improvement(points, scores, candidates)))]


def _improvement(points: np.ndarray, scores: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Expected improvement over the best score, in standard deviations of the scores, [m]."""
    y = (scores - scores.mean()) / (scores.std() + 1e-9)
    length = 0.3 * math.sqrt(points.shape[1])
    noise = 1e-2
    covariance = _kernel(points, points, length) + noise * np.eye(len(points))
    across = _kernel(candidates, points, length)
    mean = across @ np.linalg.solve(covariance, y)
    variance = 1 - (across * np.linalg.solve(covariance, across.T).T).sum(1)
    deviation = np.sqrt(np.maximum(variance, 1e-12))
    z = (mean - y.max()) / deviation
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return deviation * (z * (1 + _erf(z / math.sqrt(2))) / 2 + density)


def _kernel(a: np.ndarray, b: np.ndarray, length: float) -> np.ndarray:
    return np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / (2 * length**2))
