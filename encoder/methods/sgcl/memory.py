"""The memory banks: what the network said of every tile when it saw it last."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CORNERS = 4


class Memory(nn.Module):
    """Unit vectors of all tiles, as buffers, so that they are saved with the weights.

    They begin as random directions.

    Args:
        tiles: number of tiles N.
        projection_dim: length P of projected vectors.
        feature_dim: length D of pooled features.
        semantic_kept: width K of the table of semantic neighbours.
        dtype: of the banks.

    Attributes:
        whole: of whole views [N, P].
        corners: of the views of each corner [4, N, P].
        pooled: features of whole views [N, D].
        semantic: semantic neighbours int32 [N, K], then -1.
        cells: what the clusterings say of each tile, int64 [N]; equal where they agree in all.
    """

    whole: Tensor
    corners: Tensor
    pooled: Tensor
    semantic: Tensor
    cells: Tensor

    def __init__(
        self, tiles: int, projection_dim: int, feature_dim: int, semantic_kept: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        for name, shape in (
            ("whole", (tiles, projection_dim)),
            ("corners", (CORNERS, tiles, projection_dim)),
            ("pooled", (tiles, feature_dim)),
        ):
            self.register_buffer(name, F.normalize(torch.randn(shape), dim=-1).to(dtype))
        self.register_buffer("semantic", torch.full((tiles, semantic_kept), -1, dtype=torch.int32))
        self.register_buffer("cells", torch.arange(tiles))

    @torch.no_grad()
    def update(self, tiles: Tensor, whole: Tensor, corners: Tensor | None, pooled: Tensor, momentum: float) -> None:
        """Mix what was seen of some tiles into the banks: momentum times old plus the rest new, made unit again.

        Args:
            tiles: their numbers int64 [B]; of one that stands there twice, as the stand-in of a broken tile may,
                the last row counts.
            whole: unit rows [B, P].
            corners: unit rows [4, B, P], or None to leave that bank.
            pooled: unit rows [B, D].
            momentum: share of the old entry.
        """
        once, place = torch.unique(tiles, return_inverse=True)
        rows = torch.zeros_like(once).scatter_reduce_(0, place, torch.arange(len(tiles), device=tiles.device), "amax")
        pairs = [(self.whole, whole), (self.pooled, pooled)]
        if corners is not None:
            pairs += list(zip(self.corners, corners, strict=True))
        for bank, seen in pairs:
            mixed = momentum * bank[once].float() + (1 - momentum) * seen[rows].float()
            bank[once] = F.normalize(mixed, dim=1).to(bank.dtype)
