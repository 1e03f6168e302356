"""Geometry of a synthetic slide: tissue outline, tissue classes, glands, fat cells and fibre directions.

Everything here depends on the seed alone, never on the scanner, so that one piece of tissue can be drawn
under two scanners. Lengths are micrometres unless a name says px0 (level-0 pixels).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import cKDTree

CLASSES = ("epithelium", "tumour", "stroma", "muscle", "lymphoid", "adipose")
EPITHELIUM, TUMOUR, STROMA, MUSCLE, LYMPHOID, ADIPOSE = range(len(CLASSES))
GLASS = 255
CELL_UM = 4.0  # side of a class-map cell
FIELD_UM = 1.0  # side of a texture-field pixel
FAT_CELL_UM = 44.0
GLAND_UM = 80.0  # between gland centres

# Shares of the tissue area per organ, in the order of CLASSES; every organ holds every class.
ORGANS: dict[str, tuple[float, ...]] = {
    "mixed": (0.22, 0.16, 0.15, 0.16, 0.16, 0.15),
    "colon": (0.33, 0.14, 0.11, 0.22, 0.13, 0.08),
    "breast": (0.22, 0.19, 0.19, 0.06, 0.10, 0.25),
    "lung": (0.19, 0.25, 0.15, 0.11, 0.22, 0.08),
}


@dataclass(frozen=True)
class Flow:
    """Fibre coordinates of a fibrous tissue: `across` counts micrometres across fibres, `along` along them.

    Both are float32 [h, w] at the resolution of the texture fields; `angle` is the fibre direction in radians
    at the resolution of the class map.
    """

    across: NDArray[np.float32]
    along: NDArray[np.float32]
    angle: NDArray[np.float32]


@dataclass(frozen=True)
class Gland:
    """One gland: a closed wall around a lumen, radius(t) = radius_um * (1 + sum of two harmonics)."""

    x_um: float
    y_um: float
    radius_um: float
    lumen: float  # of the radius
    oval: float  # amplitude of the second harmonic, of the radius
    oval_phase: float
    lobes: float  # of the third
    lobes_phase: float

    def wall(self, t: NDArray[np.float64]) -> NDArray[np.float64]:
        """Outer radius in micrometres at the angles `t`."""
        oval = self.oval * np.cos(2 * t + self.oval_phase)
        return self.radius_um * (1 + oval + self.lobes * np.cos(3 * t + self.lobes_phase))


@dataclass(frozen=True)
class Layout:
    """Where each tissue lies on a slide.

    Attributes:
        cell_px0: level-0 pixels per side of a class-map cell.
        field_px0: level-0 pixels per side of a texture-field pixel.
        class_map: uint8 [hc, wc], index into CLASSES, GLASS off the tissue.
        pen: uint8 [hc, wc], 0 or 1 + index of the ink.
        glands: within the epithelium.
        fat_um: float64 [n, 2], centres (x, y) of fat cells over the whole slide.
        stroma: fibre coordinates of the stroma.
        muscle: fibre coordinates of the muscle.
    """

    width0: int
    height0: int
    mpp: float
    cell_px0: int
    field_px0: int
    class_map: NDArray[np.uint8]
    pen: NDArray[np.uint8]
    glands: tuple[Gland, ...]
    fat_um: NDArray[np.float64]
    stroma: Flow
    muscle: Flow

    def class_of(self, points_um: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Class at points [n, 2] (x, y); GLASS outside the slide."""
        cell_um = self.cell_px0 * self.mpp
        col, row = np.floor(points_um.T / cell_um).astype(np.int64)
        rows, cols = self.class_map.shape
        inside = (col >= 0) & (row >= 0) & (col < cols) & (row < rows)
        found = self.class_map[np.clip(row, 0, rows - 1), np.clip(col, 0, cols - 1)]
        return np.where(inside, found, GLASS).astype(np.uint8)


def plan_layout(
    rng: np.random.Generator,
    width0: int,
    height0: int,
    mpp: float,
    organ: str,
    pen: bool,
    region_um: float | None = None,
) -> Layout:
    """Lay tissue classes, glands, fat cells and fibres out on a slide.

    Args:
        organ: a key of ORGANS, which decides how much of each class there is.
        pen: put one or two ink strokes beside the tissue.
        region_um: over how many micrometres the class fields are smooth; None takes what suits the slide's size.
    """
    field_px0 = max(1, round(FIELD_UM / mpp))
    cell_px0 = max(1, round(CELL_UM / mpp))
    cell_um = cell_px0 * mpp
    shape = (-(-height0 // cell_px0), -(-width0 // cell_px0))
    field_shape = (-(-height0 // field_px0), -(-width0 // field_px0))
    radius = _outline_radius(shape)
    tissue = radius - 0.2 * smooth_noise(rng, shape, 0.22 * min(shape)) < 1.0
    class_map = _classes(rng, tissue, cell_um, ORGANS[organ], region_um)
    layout = Layout(
        width0,
        height0,
        mpp,
        cell_px0,
        field_px0,
        class_map,
        _pen_strokes(rng, shape) if pen else np.zeros(shape, np.uint8),
        (),
        jittered_grid(rng, width0 * mpp, height0 * mpp, FAT_CELL_UM, 0.28),
        _flow(rng, field_shape, field_px0 * mpp, shape, 220.0, 44.0),
        _flow(rng, field_shape, field_px0 * mpp, shape, 420.0, 34.0),
    )
    glands = _glands(rng, layout)
    return replace(layout, glands=glands, class_map=_epithelium_near(glands, class_map, cell_um))


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], length: float) -> NDArray[np.float32]:
    """Gaussian noise [h, w] of about unit variance, smooth over `length` pixels (two octaves)."""
    total = np.zeros(shape, np.float32)
    for factor, weight in ((1.0, 0.85), (0.45, 0.4)):
        step = max(1.0, length * factor)
        coarse = rng.standard_normal((int(shape[0] / step) + 4, int(shape[1] / step) + 4), dtype=np.float32)
        box = (1.0, 1.0, 1.0 + shape[1] / step, 1.0 + shape[0] / step)
        total += np.float32(weight * 1.3) * np.asarray(
            Image.fromarray(coarse).resize((shape[1], shape[0]), Image.Resampling.BICUBIC, box=box)
        )
    return total


def jittered_grid(
    rng: np.random.Generator, width_um: float, height_um: float, spacing_um: float, jitter: float
) -> NDArray[np.float64]:
    """Points [n, 2] (x, y) of a hexagonal grid over the slide, each moved by up to `jitter` spacings."""
    rows = int(height_um / (spacing_um * 0.866)) + 2
    cols = int(width_um / spacing_um) + 2
    row, col = np.meshgrid(np.arange(rows), np.arange(cols), indexing="ij")
    points = np.stack([(col + 0.5 * (row % 2)) * spacing_um, row * spacing_um * 0.866], axis=-1)
    moved = points.reshape(-1, 2) + rng.uniform(-jitter, jitter, (rows * cols, 2)) * spacing_um
    return moved


def fat_walls(layout: Layout, points_um: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Distance of points [n, 2] to the wall between two fat cells, and the direction of that wall."""
    distance, nearest = cKDTree(layout.fat_um).query(points_um, k=2)
    between = layout.fat_um[nearest[:, 1]] - layout.fat_um[nearest[:, 0]]
    return (distance[:, 1] - distance[:, 0]) / 2, np.arctan2(between[:, 1], between[:, 0]) + np.pi / 2


def _outline_radius(shape: tuple[int, int]) -> NDArray[np.float32]:
    y = (np.arange(shape[0], dtype=np.float32) + 0.5) / shape[0] * 2 - 1
    x = (np.arange(shape[1], dtype=np.float32) + 0.5) / shape[1] * 2 - 1
    # A rounded box rather than an ellipse: more tissue on the slide, glass still in every corner.
    power = (np.abs(x[None]) / 0.9) ** 2.6 + (np.abs(y[:, None]) / 0.9) ** 2.6
    return (power ** (1 / 2.6)).astype(np.float32)


def _classes(
    rng: np.random.Generator,
    tissue: NDArray[np.bool_],
    cell_um: float,
    shares: tuple[float, ...],
    region_um: float | None,
) -> NDArray[np.uint8]:
    """Argmax of smooth noise, its offsets tuned until each class has about its share of the tissue."""
    side_um = min(tissue.shape) * cell_um
    length = (region_um or min(420.0, max(240.0, 0.22 * side_um))) / cell_um
    fields = np.stack([smooth_noise(rng, tissue.shape, length) for _ in CLASSES])
    wanted = np.asarray(shares) * rng.uniform(0.75, 1.25, len(CLASSES))
    wanted /= wanted.sum()
    inside = fields[:, tissue]
    offsets = np.zeros(len(CLASSES), np.float32)
    for _ in range(25):
        found = np.bincount((inside + offsets[:, None]).argmax(0), minlength=len(CLASSES)) / inside.shape[1]
        offsets += (0.5 * np.log((wanted + 0.01) / (found + 0.01))).astype(np.float32)
    chosen = (fields + offsets[:, None, None]).argmax(0).astype(np.uint8)
    return np.where(tissue, chosen, GLASS).astype(np.uint8)


def _flow(
    rng: np.random.Generator,
    field_shape: tuple[int, int],
    field_um: float,
    shape: tuple[int, int],
    length_um: float,
    amplitude_um: float,
) -> Flow:
    angle = rng.uniform(0, np.pi)
    y, x = (np.arange(n, dtype=np.float32) * np.float32(field_um) for n in field_shape)
    bend = amplitude_um * smooth_noise(rng, field_shape, length_um / field_um)
    across = np.float32(np.cos(angle)) * y[:, None] - np.float32(np.sin(angle)) * x[None] + bend
    along = np.float32(np.sin(angle)) * y[:, None] + np.float32(np.cos(angle)) * x[None]
    coarse = np.asarray(Image.fromarray(across).resize(shape[::-1], Image.Resampling.BOX))
    down, right = np.gradient(coarse)
    # Fibres are the contours of `across`, so they run at right angles to its gradient.
    return Flow(across, along, np.arctan2(right, -down).astype(np.float32))


def _glands(rng: np.random.Generator, layout: Layout) -> tuple[Gland, ...]:
    centres = jittered_grid(rng, layout.width0 * layout.mpp, layout.height0 * layout.mpp, GLAND_UM, 0.1)
    radii = rng.uniform(0.40, 0.49, len(centres)) * GLAND_UM
    lumens = rng.uniform(0.25, 0.55, len(centres))
    shapes = np.column_stack(
        [
            rng.uniform(0, 0.13, len(centres)),
            rng.uniform(0, 2 * np.pi, len(centres)),
            rng.uniform(0, 0.07, len(centres)),
            rng.uniform(0, 2 * np.pi, len(centres)),
        ]
    )
    ring = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    around = np.stack([np.cos(ring), np.sin(ring)], -1)[None] * radii[:, None, None] + centres[:, None]
    inside = (layout.class_of(around.reshape(-1, 2)) == EPITHELIUM).reshape(len(centres), -1)
    kept = np.flatnonzero((inside.mean(1) >= 0.6) & (layout.class_of(centres) == EPITHELIUM))
    return tuple(
        Gland(float(centres[i, 0]), float(centres[i, 1]), float(radii[i]), float(lumens[i]), *shapes[i].tolist())
        for i in kept
    )


def _epithelium_near(glands: tuple[Gland, ...], class_map: NDArray[np.uint8], cell_um: float) -> NDArray[np.uint8]:
    """Epithelium is where glands are; what is left of its area shows nothing but stroma, and is called so."""
    row, col = np.nonzero(class_map == EPITHELIUM)
    far = np.ones(len(row), bool)
    if glands:
        centres = cKDTree([(gland.x_um, gland.y_um) for gland in glands])
        far = centres.query(np.stack([col + 0.5, row + 0.5], -1) * cell_um)[0] > 0.7 * GLAND_UM
    corrected = class_map.copy()
    corrected[row[far], col[far]] = STROMA
    return corrected


def _pen_strokes(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """One or two thick strokes that round a corner of the slide, where the glass is."""
    pen = np.zeros(shape, np.uint8)
    height, width = shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    corners = rng.permutation(4)[: rng.integers(1, 3)]
    for corner in corners:
        middle = np.pi / 4 + corner * np.pi / 2 + rng.uniform(-0.1, 0.1)
        t = np.linspace(middle - rng.uniform(0.16, 0.3), middle + rng.uniform(0.16, 0.3), 60)
        reach = 1.19 + 0.03 * np.sin(3 * t + rng.uniform(0, 6)) + rng.uniform(-0.02, 0.02)
        path = np.stack([(0.5 + 0.5 * reach * np.cos(t)) * width, (0.5 + 0.5 * reach * np.sin(t)) * height], -1)
        near = cKDTree(path).query(np.stack([x, y], -1).reshape(-1, 2))[0].reshape(shape)
        pen[near < 0.018 * min(shape)] = 1 + rng.integers(0, 3)
    return pen
