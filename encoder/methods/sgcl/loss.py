"""The terms of SGCL's loss (Lin et al. 2023), on similarities to the banks; all in float32."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_LEAST_SHARE = 1e-7


def similarities(queries: Tensor, bank: Tensor, tiles: Tensor) -> Tensor:
    """Similarity of queries to some tiles of a bank.

    Args:
        queries: [B, D].
        bank: [N, D].
        tiles: int64 [K], the same tiles for all queries; or [B, K], each query its own, cut out of one product
            with the whole bank, since gathering B x K vectors would take D times the memory.

    Returns:
        Float32 [B, K].
    """
    if tiles.ndim == 1:
        return queries @ bank[tiles].float().T
    return (queries @ bank.float().T).gather(1, tiles)


def few_similarities(queries: Tensor, bank: Tensor, tiles: Tensor) -> Tensor:
    """Similarity of each query [B, D] to few tiles of its own, int64 [B, K]: float32 [B, K]."""
    return torch.einsum("bd,bkd->bk", queries, bank[tiles].float())


def discrimination(positive: Tensor, negatives: list[Tensor]) -> Tensor:
    """InfoNCE of each anchor: -log of the positive's share, [B].

    Args:
        positive: logit of the anchor's own entry [B].
        negatives: logits [B, K_i]; minus infinity for what is none. Not joined, since a copy costs as much as
            the product that they come from.
    """
    repelled = torch.stack([torch.logsumexp(part, dim=1) for part in negatives])
    return F.softplus(torch.logsumexp(repelled, dim=0) - positive)


def union(lists: list[Tensor], own: Tensor) -> Tensor:
    """Join lists of tile numbers row by row, each tile once and never the row's own.

    Args:
        lists: each int64 [B, K_i], -1 for none.
        own: int64 [B].

    Returns:
        int64 [B, sum of K_i], the -1 first.
    """
    joined = torch.cat(lists, dim=1)
    joined = joined.masked_fill(joined == own[:, None], -1).sort(dim=1).values
    repeated = torch.zeros_like(joined, dtype=torch.bool)
    repeated[:, 1:] = joined[:, 1:] == joined[:, :-1]
    return joined.masked_fill(repeated, -1)


def rank_weights(length: int, beta: tuple[float, float], as_histogram: bool) -> Tensor:
    """Weights of the ranks of a list, most similar first: the Beta density at the middle of each, float64 [length].

    Args:
        length: of the list.
        beta: parameters.
        as_histogram: stretch the range of the published samples, 0.006 to 0.775, over the whole list.
    """
    middles = (torch.arange(length, dtype=torch.float64) + 0.5) / length
    if as_histogram:
        middles = 0.006 + (0.775 - 0.006) * middles
    first, second = beta
    logs = (first - 1) * middles.log() + (second - 1) * torch.log1p(-middles)
    return torch.exp(logs - logs.max())


@torch.no_grad()
def hard_negatives(pooled: Tensor, bank: Tensor, excluded: Tensor, ranks: Tensor, listed: int) -> Tensor:
    """Choose the tiles at given ranks of similarity in pooled features.

    Args:
        pooled: the anchors' features, unit rows [B, D].
        bank: features of the candidates [S, D].
        excluded: candidates that are no negatives of an anchor, bool [B, S].
        ranks: int64 [K] below `listed`, the same for all anchors; 0 is the most similar.
        listed: length of the ranked list.

    Returns:
        Places among the candidates, int64 [B, K]; -1 where so few remain that a rank is not taken.
    """
    similarity = (pooled @ bank.float().T).masked_fill_(excluded, -torch.inf)
    values, places = similarity.topk(listed, dim=1)
    chosen = places[:, ranks]
    return chosen.masked_fill_(values[:, ranks] == -torch.inf, -1)


def attraction(positives: Tensor, negatives: Tensor, temperature: float, spurious: Tensor | None) -> Tensor:
    """Spatial loss of each anchor: -log(share of all positives together + 1e-7), [B].

    One strong positive is enough, so that a false one among them does no harm.

    Args:
        positives: similarities [B, P]; minus infinity for what is none.
        negatives: similarities [B, K]; minus infinity for what is none.
        temperature: T_s.
        spurious: the published fault: number of tiles [B] that count as one each in the denominator.
    """
    attracted = torch.logsumexp(positives / temperature, dim=1)
    terms = [attracted, torch.logsumexp(negatives / temperature, dim=1)]
    if spurious is not None:
        terms.append(spurious.to(attracted.dtype).log())
    share = attracted - torch.logsumexp(torch.stack(terms), dim=0)
    return -torch.logaddexp(share, torch.full_like(share, math.log(_LEAST_SHARE)))


def ramp(epoch: int, progress: float, epochs: int, share: float) -> float:
    """Strength of the spatial loss: exp(-5 (1 - r)^2), r from 0 to 1.

    Args:
        epoch: passes over the tiles that are done; in the first one r is 0, since the banks are not filled yet.
        progress: share of the run that is done.
        epochs: r is 1 from this epoch on.
        share: r is 1 from this share of the run on.
    """
    reached = min(1.0, max(epoch / epochs, progress / share)) if epoch else 0.0
    return math.exp(-5 * (1 - reached) ** 2)
