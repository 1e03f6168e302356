"""Which tiles look alike, by the agreement of several clusterings of their bank; renewed once per epoch."""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK_BYTES = 128 << 20
# Up to so many tiles their ranks are counted exactly, beyond that estimated from so many random ones.
_RANKED_COLUMNS = 16_384
# Of a larger cell the vectors are not gathered for each tile, which would take time with the square of its size.
_GATHERED_CELL = 1024


def cells_of(labels: Tensor) -> Tensor:
    """Number tiles by what all clusterings say of them: labels int64 [C, N] to int64 [N], equal for equal columns."""
    return torch.unique(labels, dim=1, return_inverse=True)[1]


@torch.no_grad()
def semantic_neighbours(bank: Tensor, cells: Tensor, nearest: int, kept: int, seed: int) -> Tensor:
    """List the tiles of each one's cell that are among its nearest in the bank.

    Args:
        bank: unit rows [N, D].
        cells: int64 [N].
        nearest: a neighbour is among so many nearest of all tiles, the tile itself not counted. Above 16,384
            tiles the similarity that stands for this rank is read off a random 16,384 of them.
        kept: list at most so many, the most similar.
        seed: of the random tiles.

    Returns:
        int32 [N, kept], most similar first, then -1.
    """
    count, device = len(bank), bank.device
    table = torch.full((count, kept), -1, dtype=torch.int32, device=device)
    order = torch.argsort(cells, stable=True)
    sizes = torch.bincount(cells)
    starts = sizes.cumsum(0) - sizes
    columns = torch.arange(count, device=device)
    if count > _RANKED_COLUMNS:
        generator = torch.Generator().manual_seed(seed)
        columns = torch.randperm(count, generator=generator)[:_RANKED_COLUMNS].to(device)
    sample = bank[columns].float()
    rank = max(1, round(nearest * len(columns) / count))
    # Tiles of like cell size together, so that little of the padding is computed; a tile alone has no neighbour.
    by_size = torch.argsort(cells, stable=True)
    by_size = by_size[torch.argsort(sizes[cells[by_size]], stable=True, descending=True)]
    begin = 0
    while begin < count and (width := int(sizes[cells[by_size[begin]]])) > 1:
        vector_bytes = 4 * bank.shape[1] if width <= _GATHERED_CELL else 4
        step = max(1, _CHUNK_BYTES // max(4 * len(columns), width * vector_bytes))
        if width > _GATHERED_CELL:
            # Of one cell only: its members are then the same for all rows.
            first = int(starts[cells[by_size[begin]]])
            left = int((cells[by_size[begin : begin + width]] == cells[by_size[begin]]).sum())
            rows = by_size[begin : begin + min(step, left)]
            members = order[first : first + width][None].expand(len(rows), -1)
        else:
            rows = by_size[begin : begin + step]
            slots = torch.arange(width, device=device)
            members = order[(starts[cells[rows], None] + slots).clamp(max=count - 1)]
            members = torch.where(slots < sizes[cells[rows], None], members, rows[:, None])
        begin += len(rows)
        vectors = bank[rows].float()
        overall = (vectors @ sample.T).masked_fill_(columns[None, :] == rows[:, None], -torch.inf)
        least = overall.topk(min(rank, len(columns)), dim=1).values[:, -1:]
        if width > _GATHERED_CELL:
            similarity = vectors @ bank[members[0]].float().T
        else:
            similarity = torch.einsum("rd,rwd->rw", vectors, bank[members].float())
        # The two products round differently; without a margin a tile at exactly the rank could drop out.
        similarity.masked_fill_((members == rows[:, None]) | (similarity < least - 1e-6), -torch.inf)
        values, places = similarity.topk(min(kept, width), dim=1)
        found = members.gather(1, places).masked_fill_(values == -torch.inf, -1)
        table[rows, : found.shape[1]] = found.int()
    return table
