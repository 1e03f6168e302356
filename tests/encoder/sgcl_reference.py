"""SGCL's loss in plain loops of float64, one anchor and one tile at a time: what the fast code is held against.

Lin et al., Medical Image Analysis 89:102845, 2023, with the faults of the published code as switches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]
Numbers = NDArray[np.int64]

CORNERS = 4


def unit(rows: Rows) -> Rows:
    """Rows of length one."""
    out: Rows = rows / np.sqrt((rows**2).sum(axis=-1, keepdims=True))
    return out


def discrimination(query: Rows, entry: Rows, others: Sequence[Rows], temperature: float) -> float:
    """-log of the share of the anchor's own entry among it and the others."""
    positive = math.exp(float(query @ entry) / temperature)
    total = positive
    for other in others:
        total += math.exp(float(query @ other) / temperature)
    return -math.log(positive / total)


def instance_loss(
    queries: Rows, own: Sequence[int], bank: Rows, drawn: Numbers, temperature: float, count_itself: bool = False
) -> float:
    """Mean over anchors of their discrimination from the tiles drawn, [K] for all or [B, K] for each."""
    total = 0.0
    for anchor, tile in enumerate(own):
        mine = drawn if drawn.ndim == 1 else drawn[anchor]
        others = [bank[j] for j in mine if count_itself or j != tile]
        total += discrimination(queries[anchor], bank[tile], others, temperature)
    return total / len(own)


def corner_loss(
    corners: Rows, own: Sequence[int], banks: Rows, drawn: Numbers, temperature: float, count_itself: bool = False
) -> float:
    """Mean over corners and anchors: the corner's own entry against a quarter of the negatives out of each bank."""
    total = 0.0
    for corner in range(CORNERS):
        for anchor, tile in enumerate(own):
            mine = drawn if drawn.ndim == 1 else drawn[anchor]
            quarter = len(mine) // CORNERS
            others = []
            for other in range(CORNERS):
                for j in mine[other * quarter : (other + 1) * quarter]:
                    if count_itself or j != tile:
                        others.append(banks[other, j])
            total += discrimination(corners[corner, anchor], banks[corner, tile], others, temperature)
    return total / (CORNERS * len(own))


def spatial_neighbours(slides: Sequence[str], corners_px: Numbers, sides_px: Numbers, distance: int) -> list[list[int]]:
    """Other tiles of the slide, at another place and closer than so many tile sides; in whole numbers, so exact."""
    found: list[list[int]] = []
    for i in range(len(slides)):
        mine = []
        for j in range(len(slides)):
            dx, dy = (int(corners_px[j, axis]) - int(corners_px[i, axis]) for axis in (0, 1))
            if slides[i] == slides[j] and 0 < dx * dx + dy * dy < (distance * int(sides_px[i])) ** 2:
                mine.append(j)
        found.append(mine)
    return found


def nearest_centre(row: Rows, centres: Rows) -> tuple[int, float]:
    """Number of the nearest centre and the squared distance to it."""
    distances = [float(((row - centre) ** 2).sum()) for centre in centres]
    best = min(range(len(centres)), key=lambda c: distances[c])
    return best, distances[best]


def lloyd(rows: Rows, begun_with: Numbers, restarts: Numbers) -> tuple[list[int], Rows, list[float]]:
    """k-means by assignment and averaging.

    Args:
        rows: what is clustered.
        begun_with: rows that are the first centres [C].
        restarts: rows that take the place of centres without any row, one line per round [rounds, C].

    Returns:
        The cluster of each row, the final centres, and the inertia before each round and after the last.
    """
    centres = rows[begun_with].copy()
    inertias = []
    for fresh in restarts:
        nearest = [nearest_centre(row, centres) for row in rows]
        inertias.append(sum(distance for _, distance in nearest))
        moved = []
        for c in range(len(centres)):
            members = [rows[i] for i in range(len(rows)) if nearest[i][0] == c]
            moved.append(sum(members) / len(members) if members else rows[fresh[c]])
        centres = np.array(moved)
    nearest = [nearest_centre(row, centres) for row in rows]
    inertias.append(sum(distance for _, distance in nearest))
    return [c for c, _ in nearest], centres, inertias


def cell_mates(labels: Numbers) -> list[set[int]]:
    """The other tiles that share a tile's cluster in all clusterings [C, N]."""
    count = labels.shape[1]
    return [{j for j in range(count) if j != i and all(line[i] == line[j] for line in labels)} for i in range(count)]


def nearest_tiles(tile: int, bank: Rows, nearest: int) -> list[int]:
    """The tiles whose entries are most similar to a tile's, itself left out, the most similar first."""
    others = [j for j in range(len(bank)) if j != tile]
    return sorted(others, key=lambda j: -float(bank[tile] @ bank[j]))[:nearest]


def semantic_neighbours(bank: Rows, mates: Sequence[set[int]], nearest: int, kept: int) -> list[list[int]]:
    """For each tile those among its nearest that share its clusters, at most `kept`."""
    return [[j for j in nearest_tiles(i, bank, nearest) if j in mates[i]][:kept] for i in range(len(bank))]


def auxiliary_of(query: Rows, bank: Rows, neighbours: Sequence[int], temperature: float) -> int | None:
    """The spatial neighbour whose entry is most similar to the anchor's query."""
    if not neighbours:
        return None
    return max(neighbours, key=lambda j: math.exp(float(query @ bank[j]) / temperature))


def positives_of(
    tile: int, spatial: Sequence[int], semantic: Sequence[Sequence[int]], auxiliary: int | None
) -> set[int]:
    """Spatial neighbours and the semantic ones of the anchor and of its auxiliary, each once, never the anchor."""
    found = set(spatial) | set(semantic[tile])
    if auxiliary is not None:
        found |= set(semantic[auxiliary])
    return found - {tile}


def hard_negatives(
    pooled: Rows, bank: Rows, left_out: Collection[int], candidates: Sequence[int], listed: int, ranks: Sequence[int]
) -> list[int]:
    """The tiles at some ranks among the candidates most similar in pooled features; ranks not taken are left out."""
    ranked = [j for j in candidates if j not in left_out]
    ranked.sort(key=lambda j: -float(pooled @ bank[j]))
    ranked = ranked[:listed]
    return [ranked[rank] for rank in ranks if rank < len(ranked)]


def beta_density(x: float, first: float, second: float) -> float:
    """The density of the Beta distribution."""
    constant = math.lgamma(first + second) - math.lgamma(first) - math.lgamma(second)
    return math.exp(constant + (first - 1) * math.log(x) + (second - 1) * math.log(1 - x))


def attraction(
    query: Rows,
    bank: Rows,
    positives: Collection[int],
    negatives: Sequence[int],
    temperature: float,
    ones: int = 0,
    repelled: Rows | None = None,
) -> float:
    """-log(sum over positives / (sum over positives + sum over negatives) + 1e-7).

    Args:
        query: of the anchor.
        bank: of all tiles.
        positives: tile numbers.
        negatives: tile numbers, counted as often as they occur.
        temperature: T_s.
        ones: how often 1 is added to the denominator.
        repelled: what negatives are compared with where that is held fixed; None takes `query`.
    """
    against = query if repelled is None else repelled
    attracting = sum(math.exp(float(query @ bank[j]) / temperature) for j in positives)
    repelling = sum(math.exp(float(against @ bank[j]) / temperature) for j in negatives)
    return -math.log(attracting / (attracting + repelling + ones) + 1e-7)


@dataclass(frozen=True)
class Surroundings:
    """What the spatial loss knows of all N tiles.

    Attributes:
        bank: entries of whole views now [N, P].
        pooled: entries of pooled features now [N, D].
        spatial: spatial neighbours.
        semantic: semantic neighbours, as they were listed when the pass began.
        mates: tiles that share a tile's cluster in all clusterings.
    """

    bank: Rows
    pooled: Rows
    spatial: Sequence[Sequence[int]]
    semantic: Sequence[Sequence[int]]
    mates: Sequence[set[int]]


def spatial_loss(
    queries: Rows,
    pooled: Rows,
    own: Sequence[int],
    around: Surroundings,
    candidates: Sequence[int],
    listed: int,
    ranks: Sequence[int],
    temperature: float,
    spurious_ones: bool = False,
    lonely_anchors: bool = False,
    repelled: Rows | None = None,
) -> tuple[float, list[int]]:
    """Mean over the anchors that have a positive, and how many each has; two faults as switches."""
    terms, counts = [], []
    for anchor, tile in enumerate(own):
        near = around.spatial[tile]
        auxiliary = auxiliary_of(queries[anchor], around.bank, near, temperature)
        if auxiliary is None and lonely_anchors:
            auxiliary = 0
        positives = positives_of(tile, near, around.semantic, auxiliary)
        left_out = {tile} | positives | around.mates[tile]
        if auxiliary is not None:
            left_out |= {auxiliary} | around.mates[auxiliary]
        negatives = hard_negatives(pooled[anchor], around.pooled, left_out, candidates, listed, ranks)
        counts.append(len(positives))
        if positives or lonely_anchors:
            ones = len(around.bank) - len(positives) if spurious_ones else 0
            fixed = None if repelled is None else repelled[anchor]
            terms.append(attraction(queries[anchor], around.bank, positives, negatives, temperature, ones, fixed))
    return (sum(terms) / len(terms) if terms else 0.0), counts


def ramp(passes: float, until: float) -> float:
    """Strength of the spatial loss after so many passes."""
    return math.exp(-5 * (1 - min(passes, until) / until) ** 2)


def remembered(old: Rows, seen: Rows, momentum: float) -> Rows:
    """An entry after its tile was seen."""
    return unit(momentum * old + (1 - momentum) * seen)


def slope(function: Callable[[Rows], float], point: Rows, coordinate: tuple[int, ...], step: float = 1e-5) -> float:
    """Derivative along a coordinate by a central difference."""
    above, below = point.copy(), point.copy()
    above[coordinate] += step
    below[coordinate] -= step
    return (function(above) - function(below)) / (2 * step)
