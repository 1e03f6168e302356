"""k-means on the device, for banks of any length."""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK_BYTES = 32 << 20
# More rows than this for each cluster move its centre no further.
_ROWS_PER_CLUSTER = 256


@torch.no_grad()
def cluster(vectors: Tensor, clusters: int, iterations: int, seed: int) -> Tensor:
    """Cluster rows by Lloyd's k-means from random rows; an empty cluster begins again at a random row.

    Args:
        vectors: rows [N, D], N at least `clusters`; the centres are fitted to at most 256 rows per cluster.
        clusters: number of centres.
        iterations: rounds of assignment and averaging.
        seed: of the rows that are fitted to and begun with.

    Returns:
        Number of each row's centre, int64 [N].
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(vectors), generator=generator)[: clusters * _ROWS_PER_CLUSTER]
    rows = vectors[chosen.to(vectors.device)].float()
    centres = rows[:clusters].clone()
    for _ in range(iterations):
        nearest = assign(rows, centres)
        counts = torch.bincount(nearest, minlength=clusters)
        sums = torch.zeros_like(centres).index_add_(0, nearest, rows)
        fresh = rows[torch.randint(len(rows), (clusters,), generator=generator).to(rows.device)]
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], fresh)
    return assign(vectors, centres)


@torch.no_grad()
def assign(vectors: Tensor, centres: Tensor) -> Tensor:
    """The nearest centre [C, D] of each row [N, D] by Euclidean distance, int64 [N]."""
    step = max(1, _CHUNK_BYTES // (4 * len(centres)))
    half_norms = centres.square().sum(dim=1) / 2
    nearest = [torch.addmm(-half_norms, chunk.float(), centres.T).argmax(dim=1) for chunk in vectors.split(step)]
    return torch.cat(nearest)
