"""Which tiles the demo searches from: typical of something in their slide, and not of everything."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2

CLUSTERS = 4
LEAST_SHARE = 0.08


def typical_row(vectors: NDArray[np.float32], tissue: NDArray[np.float32]) -> int:
    """Choose the row in the middle of the cluster that stands out most from its slide's average.

    Args:
        vectors: unit vectors of one slide's tiles [N, dim].
        tissue: share of tissue per tile [N]; tiles full of tissue are preferred.

    Returns:
        The row's index.
    """
    full = np.flatnonzero(tissue >= min(0.95, float(np.quantile(tissue, 0.5))))
    candidates = vectors[full]
    clusters = min(CLUSTERS, len(candidates))
    if clusters < 2:
        return int(full[0])
    centres, member = kmeans2(candidates.astype(np.float64), clusters, minit="++", rng=np.random.default_rng(0))
    sizes = np.bincount(member, minlength=clusters)
    standing_out = np.linalg.norm(centres - candidates.mean(axis=0), axis=1)
    standing_out[sizes < LEAST_SHARE * len(candidates)] = -1.0  # a handful of folds or dust
    chosen = int(np.argmax(standing_out))
    rows = np.flatnonzero(member == chosen)
    nearest = rows[np.argmin(np.linalg.norm(candidates[rows] - centres[chosen], axis=1))]
    return int(full[nearest])
