"""Principal directions of vectors, from one pass over them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Variance below this share of the whole, or of the squared length of the vectors, is rounding and no spread.
_SHARE, _ROUNDING = 1e-10, 1e-15


@dataclass(frozen=True)
class Directions:
    """Where vectors spread most.

    Attributes:
        mean: of the vectors, float64 [dim].
        components: unit rows, the widest first, float64 [C, dim]; a row is zero where there is no spread left.
        shares: of the variance along each component, float64 [C].
        rows: vectors that were looked at.
    """

    mean: NDArray[np.float64]
    components: NDArray[np.float64]
    shares: NDArray[np.float64]
    rows: int

    def of(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Coordinates of vectors [m, dim] along the components, float32 [m, C]."""
        return ((vectors - self.mean) @ self.components.T).astype(np.float32)


def principal_directions(blocks: Iterable[NDArray[np.float32]], dim: int, count: int) -> Directions:
    """The exact principal directions of unit vectors: of their covariance, summed in float64 block by block.

    Each points to where its largest number is positive, so that the same vectors always give the same ones.

    Args:
        blocks: unit vectors, float32 [m, dim] each.
        dim: of the vectors.
        count: components wanted; what exceeds `dim` is zero.
    """
    from scipy.linalg import eigh

    rows, origin = 0, np.zeros(dim)
    total, products = np.zeros(dim), np.zeros((dim, dim))
    for block in blocks:
        if not rows and len(block):
            # Near the mean the sums stay small, and so does what rounding takes from their difference.
            origin = block.mean(axis=0, dtype=np.float64)
        away = block - origin
        total += away.sum(axis=0)
        products += away.T @ away
        rows += len(block)
    offset = total / max(rows, 1)
    covariance = products / max(rows, 1) - np.outer(offset, offset)
    found = min(count, dim)
    values, vectors = eigh(covariance, subset_by_index=[dim - found, dim - 1])
    variances, directions = np.maximum(values[::-1], 0), vectors.T[::-1]
    whole = max(float(np.trace(covariance)), 0.0)
    largest = np.abs(directions).argmax(axis=1)
    signs = np.sign(directions[np.arange(found), largest])
    spread = variances > max(_SHARE * whole, _ROUNDING)
    components, shares = np.zeros((count, dim)), np.zeros(count)
    components[:found] = np.where(spread, signs, 0)[:, None] * directions
    shares[:found] = np.where(spread, variances / (whole or 1.0), 0)
    return Directions(origin + offset, components, shares, rows)
