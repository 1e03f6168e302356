"""Variety among hits: at most so many of a slide or patient, and no two that show the same tissue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from query.engines.contract import Hits, Ranking

# Sides of neighbouring tiles are rounded to whole pixels.
_ROUNDING_PX0 = 2
_FIRST = 4


@dataclass(frozen=True)
class Limit:
    """At most so many hits of one group.

    Attributes:
        group_of: group of each row, int64 [N], from 0 without gaps.
        most: hits of one group.
    """

    group_of: NDArray[np.int64]
    most: int


@dataclass(frozen=True)
class Apart:
    """Hits of one slide that are nearer to each other than this show the same tissue; all row-aligned.

    Attributes:
        slide_code: int32 [N].
        x0, y0, extent_px0: int32 [N], level-0 pixels.
        sides: least distance of two tiles along x or y, in sides of a tile.
    """

    slide_code: NDArray[np.int32]
    x0: NDArray[np.int32]
    y0: NDArray[np.int32]
    extent_px0: NDArray[np.int32]
    sides: float

    def reach_px0(self, row: int) -> float:
        """How near another hit may not be, level-0 pixels."""
        return self.sides * int(self.extent_px0[row]) - _ROUNDING_PX0


class _Taken:
    """Hits so far, by cells of their slide: what may be too near to a row lies in its cell or those around it."""

    def __init__(self, apart: Apart) -> None:
        self._apart = apart
        self._cells: dict[tuple[int, int, int], list[tuple[int, int]]] = {}

    def _cell(self, row: int) -> tuple[int, int, int]:
        # All tiles of a slide have one extent, so a slide's cells have one size.
        side = max(1.0, self._apart.reach_px0(row))
        apart = self._apart
        return int(apart.slide_code[row]), int(apart.x0[row] // side), int(apart.y0[row] // side)

    def clashes(self, row: int) -> bool:
        """Whether a row is too near to a hit."""
        reach, (slide, column, line) = self._apart.reach_px0(row), self._cell(row)
        x0, y0 = int(self._apart.x0[row]), int(self._apart.y0[row])
        for i in (-1, 0, 1):
            for j in (-1, 0, 1):
                for other_x0, other_y0 in self._cells.get((slide, column + i, line + j), ()):
                    if max(abs(other_x0 - x0), abs(other_y0 - y0)) < reach:
                        return True
        return False

    def add(self, row: int) -> None:
        """Note a hit."""
        place = int(self._apart.x0[row]), int(self._apart.y0[row])
        self._cells.setdefault(self._cell(row), []).append(place)


def choose_hits(ranking: Ranking, k: int, limits: Sequence[Limit] = (), apart: Apart | None = None) -> Hits:
    """Go through rows in the order of their distance and take each that its limits still allow, until k are taken.

    Never fewer than k where k can be had: what is passed over is struck out, and the next are looked at.

    Args:
        ranking: rows by distance.
        k: hits wanted.
        limits: of groups.
        apart: least distance of two hits of one slide; None for none.
    """
    if not limits and apart is None:
        return ranking.best(k)
    chosen: list[int] = []
    distances: list[float] = []
    used: list[dict[int, int]] = [{} for _ in limits]
    taken = None if apart is None else _Taken(apart)
    block = _FIRST * k
    while len(chosen) < k:
        hits = ranking.best(block)
        full = _take(hits, k, limits, taken, chosen, distances, used)
        if len(chosen) == k or len(hits) < block:
            break
        ranking.strike(hits.rows)
        for limit, groups in zip(limits, full, strict=True):
            if groups:
                is_full = np.zeros(int(limit.group_of.max()) + 1, np.bool_)
                is_full[list(groups)] = True
                ranking.strike(is_full[limit.group_of])
        block *= 2
    return Hits(np.asarray(chosen, np.int64), np.asarray(distances, np.float64))


def _take(
    hits: Hits,
    k: int,
    limits: Sequence[Limit],
    taken: _Taken | None,
    chosen: list[int],
    distances: list[float],
    used: list[dict[int, int]],
) -> list[set[int]]:
    """Add to the chosen rows what may be added; the groups of each limit that became full."""
    full: list[set[int]] = [set() for _ in limits]
    for row, distance in zip(hits.rows.tolist(), hits.distances.tolist(), strict=True):
        groups = [int(limit.group_of[row]) for limit in limits]
        if any(used[i].get(group, 0) >= limits[i].most for i, group in enumerate(groups)):
            continue
        if taken is not None and taken.clashes(row):
            continue
        chosen.append(row)
        distances.append(distance)
        if taken is not None:
            taken.add(row)
        for i, group in enumerate(groups):
            used[i][group] = used[i].get(group, 0) + 1
            if used[i][group] >= limits[i].most:
                full[i].add(group)
        if len(chosen) == k:
            break
    return full


def needs_apart(sides: float, stride_share: float) -> bool:
    """Whether two tiles of a grid can be nearer than `sides`, where its stride is that share of a tile's side."""
    return sides > 0 and stride_share < sides
