"""Balanced accuracy with a bootstrap interval over patients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BLOCK = 64


@dataclass(frozen=True)
class Score:
    """A balanced accuracy and how far to trust it.

    Attributes:
        value: mean of the recalls of the counted classes; NaN where none has a tile.
        low, high: 95 % bootstrap interval; NaN where there is one unit only.
        units: number of patients, slides or tiles that were resampled.
    """

    value: float
    low: float
    high: float
    units: int

    def __str__(self) -> str:
        if np.isnan(self.value):
            return "none (every class was left out)"
        if np.isnan(self.low):
            return f"{self.value:.3f} (no interval: {self.units} {'unit' if self.units == 1 else 'units'})"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def bootstrap_score(
    truth: NDArray[np.int64],
    predicted: NDArray[np.int64],
    units: NDArray[np.int64],
    counted: NDArray[np.bool_],
    resamples: int = 2000,
    seed: int = 0,
) -> Score:
    """Balanced accuracy over the counted classes, with the interval of resampling whole units.

    Args:
        truth: class of each tile [N].
        predicted: predicted class of each tile [N]; -1 for none.
        units: patient (or what stands for it) of each tile [N].
        counted: True for the classes in the mean [C].
        resamples: bootstrap samples; a class that a sample lacks is left out of that sample's mean.
        seed: of the resampling.
    """
    total, right = unit_counts(truth, predicted, units, counted.size)
    value = _mean_recall(total.sum(axis=0)[None], right.sum(axis=0)[None], counted)[0]
    count = total.shape[0]
    if count < 2:
        return Score(float(value), float("nan"), float("nan"), count)
    rng = np.random.default_rng(seed)
    values = []
    for start in range(0, resamples, _BLOCK):
        size = min(_BLOCK, resamples - start)
        weights = rng.multinomial(count, np.full(count, 1 / count), size=size).astype(np.float64)
        values.append(_mean_recall(weights @ total, weights @ right, counted))
    spread = np.concatenate(values)
    spread = spread[~np.isnan(spread)]
    if not spread.size:
        return Score(float(value), float("nan"), float("nan"), count)
    low, high = np.percentile(spread, [2.5, 97.5])
    return Score(float(value), float(low), float(high), count)


def unit_counts(
    truth: NDArray[np.int64], predicted: NDArray[np.int64], units: NDArray[np.int64], classes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Tiles and rightly predicted tiles of each unit and class, float64 [U, C] each."""
    _, unit = np.unique(units, return_inverse=True)
    count = int(unit.max()) + 1 if unit.size else 0
    cell = unit * classes + truth
    total = np.bincount(cell, minlength=count * classes).reshape(count, classes).astype(np.float64)
    right = np.bincount(cell[truth == predicted], minlength=count * classes).reshape(count, classes)
    return total, right.astype(np.float64)


def _mean_recall(
    total: NDArray[np.float64], right: NDArray[np.float64], counted: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Mean recall over the counted classes that occur, for each row of counts [B, C]; NaN where none does."""
    present = (total > 0) & counted
    recalls = np.where(present, right / np.where(total > 0, total, 1), 0.0)
    classes = present.sum(axis=1)
    return np.where(classes > 0, recalls.sum(axis=1) / np.where(classes > 0, classes, 1), np.nan)
