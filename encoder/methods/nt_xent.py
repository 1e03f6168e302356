"""Normalised temperature-scaled cross-entropy between two views of every tile (SimCLR, Chen et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def nt_xent(vectors: Tensor, temperature: float, counted: Tensor | None = None) -> Tensor:
    """The loss as one matrix product.

    Args:
        vectors: unit rows [2B, D]; row i and row i + B are two views of one tile.
        temperature: of the softmax.
        counted: which tiles' pairs count, bool [B]; the others are still pushed away. None counts all.

    Returns:
        Mean over the counted rows of -log softmax at the partner, among all rows but itself.
    """
    count = len(vectors)
    logits = (vectors @ vectors.T) / temperature
    logits = logits.masked_fill(torch.eye(count, dtype=torch.bool, device=vectors.device), -torch.inf)
    partner = (torch.arange(count, device=vectors.device) + count // 2) % count
    if counted is None:
        return F.cross_entropy(logits, partner)
    each = F.cross_entropy(logits, partner, reduction="none")
    weight = counted.repeat(2).to(each.dtype)
    return (each * weight).sum() / weight.sum().clamp(min=1)
