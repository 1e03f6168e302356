"""How much of the true answer an approximate search finds, measured on rows of the table itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from query.engines.contract import Ask, Engine
from query.engines.faiss_ivf import FaissIvf

_CALIBRATION_ROWS = 200
_CALIBRATION_RECALL = 0.995


@dataclass(frozen=True)
class Step:
    """One setting of an approximate engine, and how good it was.

    Attributes:
        probes: lists looked into; None for all.
        refine: rows whose vectors are compared, for each row wanted.
        recall: mean share of the ten true neighbours that were found.
        milliseconds: median time of a query.
        error: standard error of the recall, over the queries.
    """

    probes: int | None
    refine: int
    recall: float
    milliseconds: float
    error: float = 0.0

    def reaches(self, target: float) -> bool:
        """Whether the recall is at least this for all that chance may have done in its measurement."""
        return self.recall - 2 * self.error >= target


def cheapest(steps: Sequence[Step], target: float) -> Step | None:
    """The fastest step that reaches a recall; None where none does."""
    good = [step for step in steps if step.reaches(target)]
    return min(good, key=lambda step: step.milliseconds) if good else None


def held_out(rows: int, count: int, seed: int) -> NDArray[np.int64]:
    """Rows that are asked for, each of them left out of its own answer; int64 [count], ascending."""
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(rows, min(rows, count), replace=False)).astype(np.int64)


def neighbours(
    engine: Engine, asks: Sequence[Ask], own: NDArray[np.int64], k: int, allowed: NDArray[np.bool_] | None = None
) -> tuple[list[NDArray[np.int64]], list[float]]:
    """Rows found for each query without the query's own row, and seconds of each.

    Args:
        engine: to ask.
        asks: queries.
        own: row of each, which is left out.
        k: rows wanted.
        allowed: True for the rows that may be found, bool [N].
    """
    found, seconds = [], []
    started = perf_counter()
    for ranking, row in zip(engine.rank(asks, allowed), own.tolist(), strict=True):
        ranking.strike(np.array([row]))
        found.append(ranking.best(k).rows)
        seconds.append(perf_counter() - started)
        started = perf_counter()
    return found, seconds


def mean_recall(found: Sequence[NDArray[np.int64]], truth: Sequence[NDArray[np.int64]], k: int) -> tuple[float, float]:
    """Mean share of the k true neighbours among the first k found, and its standard error.

    Queries that have no neighbours count as found.
    """
    shares = [
        float(np.isin(true[:k], some[:k]).mean()) if true.size else 1.0 for some, true in zip(found, truth, strict=True)
    ]
    error = float(np.std(shares, ddof=1) / np.sqrt(len(shares))) if len(shares) > 1 else 0.0
    return (float(np.mean(shares)) if shares else 1.0), error


def calibrate(index: FaissIvf, exact: Engine) -> tuple[Step, ...]:
    """Measure recall and time of FAISS by the number of lists probed, against exact search."""
    own = held_out(len(index.matrix), _CALIBRATION_ROWS, seed=1)
    asks = [Ask(index.matrix[row]) for row in own.tolist()]
    truth, _ = neighbours(exact, asks, own, 10)
    steps: list[Step] = []
    probes, lists = 4, int(index.index.nlist)
    while True:
        probes = min(probes, lists)
        found, seconds = neighbours(index.probing(probes), asks, own, 10)
        recall, error = mean_recall(found, truth, 10)
        steps.append(Step(probes, 1, recall, 1e3 * float(np.median(seconds)), error))
        if probes == lists or recall >= _CALIBRATION_RECALL:
            return tuple(steps)
        probes *= 2
