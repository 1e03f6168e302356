"""One step of SGCL's loss as the paper describes it, against every tile; kept for `bench_sgcl.py` to compare with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 0.2
SPATIAL_TEMPERATURE = 0.07
CLOSER_THAN = 3.0  # tile sides
HARD_SHARE = 0.2
BETA = (5.0, 15.0)
MOMENTUM = 0.5


@dataclass(frozen=True)
class Banks:
    """What is known of all N tiles.

    Attributes:
        whole: unit vectors of whole views [N, P].
        corners: of the views of each corner [4, N, P].
        pooled: of the features of whole views [N, D].
        labels: cluster of each tile in three clusterings, int64 [3, N].
        slides: number of each tile's slide, int64 [N].
        places: x, y in tile sides, float32 [N, 2].
    """

    whole: Tensor
    corners: Tensor
    pooled: Tensor
    labels: Tensor
    slides: Tensor
    places: Tensor


@dataclass(frozen=True)
class Draws:
    """The random numbers of a step.

    Attributes:
        whole: negatives of each anchor, int64 [B, k].
        corners: negatives out of each corner's bank, int64 [4, 4, B, k / 4], the first axis for the corner that is
            compared with them; length 1 where the four corners of a tile are compared with the same vectors.
        ranks: places in the list of hard negatives, int64 [K].
    """

    whole: Tensor
    corners: Tensor
    ranks: Tensor


def draw(
    tiles: int, anchors: int, negatives: int, hard: int, gathered_once: bool, generator: torch.Generator | None = None
) -> Draws:
    """Draw uniform negatives of each anchor's own, and ranks by the Beta density.

    Args:
        tiles: N.
        anchors: B.
        negatives: k.
        hard: K.
        gathered_once: whether the four corners of a tile have the same negatives.
        generator: of the random numbers.
    """
    corners = (1 if gathered_once else 4, 4, anchors, negatives // 4)
    return Draws(
        torch.randint(tiles, (anchors, negatives), generator=generator),
        torch.randint(tiles, corners, generator=generator),
        draw_ranks(tiles, hard, generator),
    )


def draw_ranks(tiles: int, hard: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw ranks of the listed tiles, the Beta density taken at the middle of each rank, int64 [hard]."""
    listed = round(HARD_SHARE * tiles)
    middles = (torch.arange(listed, dtype=torch.float64) + 0.5) / listed
    first, second = BETA
    density = middles ** (first - 1) * (1 - middles) ** (second - 1)
    return torch.multinomial(density, hard, replacement=True, generator=generator)


def losses(
    banks: Banks, projected: Tensor, corners: Tensor, pooled: Tensor, own: Tensor, nearest: int, draws: Draws
) -> dict[str, Tensor]:
    """The three terms of a step, the faults of the published code corrected.

    Args:
        banks: of all tiles.
        projected: unit vectors of the anchors' whole views [B, P].
        corners: of their corners [4, B, P].
        pooled: of their features [B, D].
        own: their numbers, int64 [B].
        nearest: semantic neighbours are among so many nearest.
        draws: the random numbers.
    """
    return {
        "instance_loss": _discrimination(projected, banks.whole, own, [banks.whole[draws.whole]], draws.whole[None]),
        "corner_loss": _corner_loss(banks, corners, own, draws),
        "spatial_loss": _spatial_loss(banks, projected, F.normalize(pooled.detach(), dim=1), own, nearest, draws.ranks),
    }


def _corner_loss(banks: Banks, corners: Tensor, own: Tensor, draws: Draws) -> Tensor:
    """Mean over the corners, each with as many negatives from every corner's bank."""
    terms: list[Tensor] = []
    for number, queries in enumerate(corners):
        if number < len(draws.corners):
            drawn = draws.corners[number]
            gathered = [bank[tiles] for bank, tiles in zip(banks.corners, drawn, strict=True)]
        terms.append(_discrimination(queries, banks.corners[number], own, gathered, drawn))
    return torch.stack(terms).mean()


def _discrimination(queries: Tensor, bank: Tensor, own: Tensor, gathered: list[Tensor], drawn: Tensor) -> Tensor:
    """InfoNCE of queries [B, P] with the gathered vectors [B, k, P] of drawn tiles [B, k], a pair per source."""
    positive = (queries * bank[own]).sum(dim=1, keepdim=True)
    negative = [
        torch.einsum("bp,bkp->bk", queries, vectors).masked_fill(tiles == own[:, None], -torch.inf)
        for vectors, tiles in zip(gathered, drawn, strict=True)
    ]
    logits = torch.cat([positive, *negative], dim=1) / TEMPERATURE
    return F.cross_entropy(logits, torch.zeros_like(own))


def _spatial_loss(banks: Banks, projected: Tensor, pooled: Tensor, own: Tensor, nearest: int, ranks: Tensor) -> Tensor:
    scores = torch.exp(projected @ banks.whole.T / SPATIAL_TEMPERATURE)
    with torch.no_grad():
        positive = _positives(banks, projected, scores, own, nearest)
        unlike = (pooled @ banks.pooled.T).masked_fill_(positive, -torch.inf)
        unlike[torch.arange(len(own)), own] = -torch.inf
        listed = unlike.topk(round(HARD_SHARE * len(banks.whole)), dim=1, sorted=True).indices
        hard = listed[:, ranks]
    attracted = (scores * positive).sum(dim=1)
    repelled = torch.exp(torch.einsum("bp,bkp->bk", projected, banks.whole[hard]) / SPATIAL_TEMPERATURE).sum(dim=1)
    # An anchor without positives says nothing.
    told = positive.any(dim=1)
    return -torch.log(attracted[told] / (attracted[told] + repelled[told]) + 1e-7).mean()


def _positives(banks: Banks, projected: Tensor, scores: Tensor, own: Tensor, nearest: int) -> Tensor:
    """Neighbours in space, and what is like the anchor or like the most similar of those, bool [B, N]."""
    apart = torch.cdist(banks.places[own], banks.places)
    near = (banks.slides[own, None] == banks.slides) & (apart > 0) & (apart < CLOSER_THAN)
    auxiliary = (scores * near).argmax(dim=1)
    alike = _alike(banks, projected, own, nearest)
    beside = _alike(banks, banks.whole[auxiliary], auxiliary, nearest) & near.any(dim=1, keepdim=True)
    positive = near | alike | beside
    positive[torch.arange(len(own)), own] = False
    return positive


def _alike(banks: Banks, queries: Tensor, own: Tensor, nearest: int) -> Tensor:
    """Which tiles are among the nearest of each query and agree with it in every clustering, bool [B, N]."""
    similarity = queries @ banks.whole.T
    similarity[torch.arange(len(own)), own] = -torch.inf
    found = similarity.topk(nearest, dim=1, sorted=True).indices
    listed = torch.zeros_like(similarity, dtype=torch.bool).scatter_(1, found, True)
    for labels in banks.labels:
        listed &= labels[own, None] == labels
    return listed


@torch.no_grad()
def update(banks: Banks, own: Tensor, projected: Tensor, corners: Tensor, pooled: Tensor) -> None:
    """Mix what was seen of some tiles into the banks."""
    pairs = [(banks.whole, projected), (banks.pooled, F.normalize(pooled, dim=1))]
    pairs += list(zip(banks.corners, corners, strict=True))
    for bank, seen in pairs:
        bank[own] = F.normalize(MOMENTUM * bank[own] + (1 - MOMENTUM) * seen, dim=1)
