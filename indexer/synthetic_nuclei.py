"""Nuclei of a synthetic slide: where they lie, and their outlines as polygons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from indexer.synthetic_layout import (
    ADIPOSE,
    EPITHELIUM,
    GLASS,
    LYMPHOID,
    MUSCLE,
    STROMA,
    TUMOUR,
    Flow,
    Layout,
    fat_walls,
    jittered_grid,
    smooth_noise,
)

VERTICES = 16


@dataclass(frozen=True)
class Nuclei:
    """Outlines of nuclei in level-0 pixels.

    Attributes:
        polygons_px0: float32 [n, VERTICES, 2], (x, y); a pixel's centre is at +0.5.
        classes: uint8 [n], index into the classes: the tissue that this kind of cell belongs to.
        density: float32 [n], haematoxylin of the interior, 0 to 1.
        rim: float32 [n], haematoxylin of the membrane, 0 to 1.
        nucleolus_px0: float32 [n], radius of the nucleolus, 0 where there is none.
    """

    polygons_px0: NDArray[np.float32]
    classes: NDArray[np.uint8]
    density: NDArray[np.float32]
    rim: NDArray[np.float32]
    nucleolus_px0: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True)
class _Kind:
    """How the nuclei of one kind of cell look; ranges are uniform, lengths micrometres."""

    diameter: float
    spread: float  # of the logarithm of the diameter
    aspect: tuple[float, float]
    irregularity: float
    density: tuple[float, float]
    rim: float  # added to the density
    nucleolus: float  # share of nuclei that show one


_KINDS = {
    EPITHELIUM: _Kind(7.0, 0.10, (1.3, 1.9), 0.05, (0.48, 0.68), 0.16, 0.1),
    TUMOUR: _Kind(9.6, 0.19, (1.05, 1.6), 0.10, (0.30, 0.62), 0.26, 0.65),
    STROMA: _Kind(5.6, 0.16, (2.3, 4.6), 0.05, (0.50, 0.80), 0.05, 0.0),
    MUSCLE: _Kind(5.6, 0.12, (3.6, 6.5), 0.03, (0.45, 0.65), 0.08, 0.0),
    LYMPHOID: _Kind(5.9, 0.08, (1.0, 1.18), 0.04, (0.68, 0.95), 0.05, 0.0),
    ADIPOSE: _Kind(4.6, 0.15, (2.0, 4.0), 0.04, (0.60, 0.80), 0.05, 0.0),
}


@dataclass(frozen=True)
class _Places:
    points_um: NDArray[np.float64]
    angles: NDArray[np.float64]
    kind: int


def plan_nuclei(rng: np.random.Generator, layout: Layout) -> Nuclei:
    """Place nuclei in every tissue of the layout; no two centres are nearer than the nuclei are wide."""
    cellularity = smooth_noise(rng, layout.class_map.shape, 260.0 / (layout.cell_px0 * layout.mpp))
    groups = [
        _gland_walls(rng, layout),
        _scattered(rng, layout, cellularity, TUMOUR, (TUMOUR,), 11.4, 0.16, 0.9, _any_direction),
        _scattered(rng, layout, cellularity, LYMPHOID, (LYMPHOID,), 7.4, 0.22, 0.66, _any_direction),
        _fibroblasts(rng, layout, cellularity),
        _scattered(rng, layout, cellularity, MUSCLE, (MUSCLE,), 21.0, 0.42, 0.8, _along(layout, layout.muscle)),
        _fat_nuclei(rng, layout),
        # Single lymphocytes wander through every tissue; some slides have many.
        _scattered(rng, layout, -cellularity, LYMPHOID, (TUMOUR, STROMA, MUSCLE), 24.0, 0.45, 0.22, _any_direction),
    ]
    points = np.concatenate([g.points_um for g in groups])
    angles = np.concatenate([g.angles for g in groups])
    kinds = np.concatenate([np.full(len(g.angles), g.kind, np.uint8) for g in groups])
    table = {name: np.array([getattr(_KINDS[k], name) for k in sorted(_KINDS)]) for name in _Kind.__annotations__}
    n = len(kinds)
    diameters = table["diameter"][kinds] * np.exp(table["spread"][kinds] * rng.standard_normal(n))
    aspects = _between(rng, table["aspect"][kinds])
    density = _between(rng, table["density"][kinds])
    nucleolus = np.where(rng.random(n) < table["nucleolus"][kinds], diameters * rng.uniform(0.09, 0.15, n), 0)
    outlines = _outlines(rng, diameters, aspects, angles, table["irregularity"][kinds])
    polygons = (outlines + points[:, None]) / layout.mpp
    inside = (polygons >= 1).all((1, 2)) & (polygons < [layout.width0 - 1, layout.height0 - 1]).all((1, 2))
    inside &= (layout.class_of((polygons * layout.mpp).reshape(-1, 2)) != GLASS).reshape(n, -1).all(1)
    kept = np.flatnonzero(inside & ~_crowded(points, diameters * aspects**-0.4))
    return Nuclei(
        polygons[kept].astype(np.float32),
        kinds[kept],
        density[kept].astype(np.float32),
        np.minimum(density + table["rim"][kinds], 1)[kept].astype(np.float32),
        (nucleolus[kept] / layout.mpp).astype(np.float32),
    )


def _between(rng: np.random.Generator, ranges: NDArray[np.float64]) -> NDArray[np.float64]:
    return ranges[:, 0] + (ranges[:, 1] - ranges[:, 0]) * rng.random(len(ranges))


def _outlines(
    rng: np.random.Generator,
    diameters: NDArray[np.float64],
    aspects: NDArray[np.float64],
    angles: NDArray[np.float64],
    irregularity: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Polygons [n, VERTICES, 2] about the origin: ellipses with a few harmonics and some jitter."""
    n = len(diameters)
    t = np.linspace(0, 2 * np.pi, VERTICES, endpoint=False)
    phases = rng.uniform(0, 2 * np.pi, (n, 2, 1))
    bumps = rng.standard_normal((n, 2, 1)) * irregularity[:, None, None]
    radius = 1 + bumps[:, 0] * np.cos(2 * t + phases[:, 0]) + bumps[:, 1] * np.cos(3 * t + phases[:, 1])
    radius = np.clip(radius + 0.22 * irregularity[:, None] * rng.standard_normal((n, VERTICES)), 0.6, 1.4)
    long = radius * np.cos(t) * (diameters * np.sqrt(aspects) / 2)[:, None]
    short = radius * np.sin(t) * (diameters / np.sqrt(aspects) / 2)[:, None]
    c, s = np.cos(angles)[:, None], np.sin(angles)[:, None]
    return np.stack([c * long - s * short, s * long + c * short], axis=-1)


def _crowded(points: NDArray[np.float64], widths: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Mark the later nucleus of each pair whose centres are nearer than 0.92 of their mean width."""
    marked = np.zeros(len(points), bool)
    if len(points) < 2:
        return marked
    pairs = cKDTree(points).query_pairs(float(widths.max()), output_type="ndarray")
    if len(pairs):
        gap = np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1)
        near = gap < 0.46 * (widths[pairs[:, 0]] + widths[pairs[:, 1]])
        marked[pairs[near].max(axis=1)] = True
    return marked


_Directions = Callable[[np.random.Generator, NDArray[np.float64]], NDArray[np.float64]]


def _any_direction(rng: np.random.Generator, points: NDArray[np.float64]) -> NDArray[np.float64]:
    return rng.uniform(0, np.pi, len(points))


def _along(layout: Layout, flow: Flow) -> _Directions:
    def directions(rng: np.random.Generator, points: NDArray[np.float64]) -> NDArray[np.float64]:
        row, col = _cells(layout, points)
        return flow.angle[row, col] + 0.12 * rng.standard_normal(len(points))

    return directions


def _cells(layout: Layout, points: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rows, cols = layout.class_map.shape
    col, row = np.floor(points.T / (layout.cell_px0 * layout.mpp)).astype(np.int64)
    return np.clip(row, 0, rows - 1), np.clip(col, 0, cols - 1)


def _scattered(
    rng: np.random.Generator,
    layout: Layout,
    cellularity: NDArray[np.float32],
    kind: int,
    within: tuple[int, ...],
    spacing_um: float,
    jitter: float,
    filled: float,
    directions: _Directions,
) -> _Places:
    """Nuclei on a jittered grid, of which about the share `filled` is kept, more where cellularity is high."""
    points = jittered_grid(rng, layout.width0 * layout.mpp, layout.height0 * layout.mpp, spacing_um, jitter)
    points = points[np.isin(layout.class_of(points), within)]
    row, col = _cells(layout, points)
    chance = np.clip(filled + 0.22 * cellularity[row, col], 0.3 * filled, 1)
    points = points[rng.random(len(points)) < chance]
    return _Places(points, directions(rng, points), kind)


def _gland_walls(rng: np.random.Generator, layout: Layout) -> _Places:
    """A palisade near the outer wall of each gland, every nucleus pointing to the lumen."""
    points, angles = [np.zeros((0, 2))], [np.zeros(0)]
    for gland in layout.glands:
        for depth, spacing, filled in ((0.86, 5.9, 0.97), (0.70, 7.2, 0.25)):
            n = int(2 * np.pi * gland.radius_um * depth / spacing)
            t = np.linspace(0, 2 * np.pi, n, endpoint=False) + rng.uniform(-0.15, 0.15, n) * 2 * np.pi / n
            t = t[rng.random(n) < filled]
            inner = gland.lumen + (1 - gland.lumen) * 0.25
            r = gland.wall(t) * np.maximum(depth + rng.uniform(-0.05, 0.05, len(t)), inner)
            points.append(np.stack([gland.x_um + r * np.cos(t), gland.y_um + r * np.sin(t)], -1))
            angles.append(t + 0.15 * rng.standard_normal(len(t)))
    kept = np.concatenate(points)
    on_tissue = layout.class_of(kept) != GLASS
    return _Places(kept[on_tissue], np.concatenate(angles)[on_tissue], EPITHELIUM)


def _fibroblasts(rng: np.random.Generator, layout: Layout, cellularity: NDArray[np.float32]) -> _Places:
    """Spindles along the fibres of the stroma, and in the gaps between glands."""
    places = _scattered(
        rng,
        layout,
        cellularity,
        STROMA,
        (STROMA, EPITHELIUM),
        15.5,
        0.45,
        0.62,
        _along(layout, layout.stroma),
    )
    free = np.ones(len(places.points_um), bool)
    if layout.glands:
        tree = cKDTree([(g.x_um, g.y_um) for g in layout.glands])
        distance, nearest = tree.query(places.points_um)
        offset = places.points_um - tree.data[nearest]
        t = np.arctan2(offset[:, 1], offset[:, 0])
        for i, gland in enumerate(layout.glands):
            mine = np.flatnonzero(nearest == i)
            free[mine] = distance[mine] > gland.wall(t[mine]) + 2
    return _Places(places.points_um[free], places.angles[free], STROMA)


def _fat_nuclei(rng: np.random.Generator, layout: Layout) -> _Places:
    """Thin nuclei pressed against the walls of fat cells."""
    points = rng.uniform(0, 1, (int(layout.width0 * layout.height0 * layout.mpp**2 / 160), 2))
    points *= [layout.width0 * layout.mpp, layout.height0 * layout.mpp]
    points = points[layout.class_of(points) == ADIPOSE]
    if not len(points):
        return _Places(points, np.zeros(0), ADIPOSE)
    distance, direction = fat_walls(layout, points)
    near = distance < 1.2
    return _Places(points[near], direction[near], ADIPOSE)
