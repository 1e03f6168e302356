"""Pixels of a synthetic slide: concentration maps from a layout and its nuclei, then colour, band by band."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import gaussian_filter

from indexer.synthetic_layout import (
    ADIPOSE,
    EPITHELIUM,
    LYMPHOID,
    MUSCLE,
    STROMA,
    TUMOUR,
    Flow,
    Gland,
    Layout,
    fat_walls,
    smooth_noise,
)
from indexer.synthetic_nuclei import Nuclei
from indexer.synthetic_stain import INK_DENSITIES, INKS, Scanner, transmit

BAND_PX0 = 256
_FLOAT32 = np.float32


class _Fields:
    """Concentrations off the nuclei, float32 [h, w] at the resolution of the texture fields."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.haematoxylin = np.zeros(shape, _FLOAT32)
        self.eosin = np.zeros(shape, _FLOAT32)
        self.chromatin = np.ones(shape, _FLOAT32)  # a factor on the nuclei


def paint(layout: Layout, nuclei: Nuclei, scanner: Scanner, seed: int) -> NDArray[np.uint8]:
    """Draw the whole slide.

    Args:
        seed: of the tissue's texture; the sensor's noise depends on the scanner as well.

    Returns:
        uint8 RGB [height0, width0, 3].
    """
    fields = _background(np.random.default_rng([3, seed]), layout)
    chromatin = np.asarray(
        _rasterise(layout, nuclei).filter(ImageFilter.GaussianBlur(scanner.blur_px0)), dtype=np.uint8
    )
    sensor = np.random.default_rng([5, seed, *scanner.name.encode()])
    rgb = np.empty((layout.height0, layout.width0, 3), np.uint8)
    for top in range(0, layout.height0, BAND_PX0):
        rows = slice(top, min(top + BAND_PX0, layout.height0))
        nuclear = chromatin[rows].astype(_FLOAT32)
        nuclear *= _FLOAT32(1 / 255)
        off = np.maximum(1 - 3 * nuclear, 0, dtype=_FLOAT32)
        haematoxylin = _enlarge(fields.haematoxylin, layout.field_px0, layout, rows) * off
        haematoxylin += nuclear * _enlarge(fields.chromatin, layout.field_px0, layout, rows)
        eosin = _enlarge(fields.eosin, layout.field_px0, layout, rows)
        eosin *= _FLOAT32(0.45) + _FLOAT32(0.55) * off
        noise = sensor.standard_normal((*eosin.shape, 3), dtype=_FLOAT32)
        rgb[rows] = transmit(scanner, haematoxylin, eosin, _light(scanner, layout, rows), noise)
    _ink(np.random.default_rng([11, seed]), layout, rgb)
    return rgb


def _light(scanner: Scanner, layout: Layout, rows: slice) -> NDArray[np.float32]:
    y = (np.arange(rows.start, rows.stop, dtype=_FLOAT32) / layout.height0 - 0.45) ** 2
    x = (np.arange(layout.width0, dtype=_FLOAT32) / layout.width0 - 0.55) ** 2
    return (1 - _FLOAT32(2 * scanner.shading) * (x[None] + y[:, None])).astype(_FLOAT32)


def _enlarge(field: NDArray[np.float32], px0: int, layout: Layout, rows: slice) -> NDArray[np.float32]:
    """Give the rows of a field whose pixels are `px0` wide at level 0."""
    if px0 == 1:
        return field[rows, : layout.width0].copy()
    # Whole pixels only, with a margin: so a band joins its neighbours without a seam.
    first, last = max(rows.start // px0 - 2, 0), min(-(-rows.stop // px0) + 2, field.shape[0])
    box = (0.0, rows.start / px0 - first, layout.width0 / px0, rows.stop / px0 - first)
    size = (layout.width0, rows.stop - rows.start)
    return np.array(Image.fromarray(field[first:last]).resize(size, Image.Resampling.BILINEAR, box=box))


def _rasterise(layout: Layout, nuclei: Nuclei) -> Image.Image:
    """Nuclear haematoxylin as grey levels: filled polygons, darker rims, nucleoli."""
    canvas = Image.new("L", (layout.width0, layout.height0))
    draw = ImageDraw.Draw(canvas)
    # PIL counts from the pixel's centre, the polygons from its corner.
    outlines = (nuclei.polygons_px0 - _FLOAT32(0.5)).reshape(len(nuclei), -1).tolist()
    fills = np.round(nuclei.density * 255).astype(int).tolist()
    rims = np.round(nuclei.rim * 255).astype(int).tolist()
    for outline, fill, rim in zip(outlines, fills, rims, strict=True):
        draw.polygon(outline, fill=fill, outline=rim)
    spotted = np.flatnonzero(nuclei.nucleolus_px0 > 0)
    centres = nuclei.polygons_px0[spotted].mean(axis=1) - _FLOAT32(0.5)
    for (x, y), r, rim in zip(
        centres.tolist(), nuclei.nucleolus_px0[spotted].tolist(), nuclei.rim[spotted].tolist(), strict=True
    ):
        # Off the centre, as nucleoli are; which way follows from the position.
        x, y = x + r * ((int(x) % 3) - 1), y + r * ((int(y) % 3) - 1)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=min(255, round(255 * (rim + 0.15))))
    return canvas


def _background(rng: np.random.Generator, layout: Layout) -> _Fields:
    field_um = layout.field_px0 * layout.mpp
    shape = layout.stroma.across.shape
    fields = _Fields(shape)
    blotches = gaussian_filter(rng.standard_normal(shape, dtype=_FLOAT32), 1.3 / field_um, mode="wrap")
    blotches /= blotches.std()
    fibres = gaussian_filter(rng.standard_normal((1024, 1024), dtype=_FLOAT32), (0.9, 16), mode="wrap")
    fibres /= fibres.std()
    collagen = _collagen(fibres, layout.stroma)
    tissue = np.zeros(shape, _FLOAT32)
    for k, (haematoxylin, eosin) in {
        EPITHELIUM: (0.06, 0.85 * collagen),
        STROMA: (0.04, collagen),
        MUSCLE: (0.05, _muscle(fibres, layout.muscle)),
        TUMOUR: (0.17, 0.40 + 0.07 * blotches),
        LYMPHOID: (0.14, 0.30 + 0.08 * blotches),
        ADIPOSE: (0.01, _fat(layout, shape)),
    }.items():
        weight = _weight(layout, k, shape)
        tissue += weight
        fields.haematoxylin += weight * _FLOAT32(haematoxylin)
        fields.eosin += weight * eosin
    for gland in layout.glands:
        _paint_gland(fields, gland, field_um, blotches, tissue)
    # Sections are not of one thickness, nor is the stain even.
    length = 350 / field_um
    fields.eosin *= 1 + 0.10 * smooth_noise(rng, shape, length)
    fields.eosin *= 1 + 0.05 * blotches
    np.maximum(fields.eosin, 0, out=fields.eosin)
    fields.chromatin = 1 + 0.08 * smooth_noise(rng, shape, length) + 0.20 * blotches
    return fields


def _weight(layout: Layout, k: int, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Share of class `k`, soft at the borders, on a map as fine as the fields or a whole number coarser."""
    mask = Image.fromarray((layout.class_map == k).astype(_FLOAT32))
    field_px0 = layout.field_px0 * round(layout.stroma.across.shape[0] / shape[0])
    reach = (n * field_px0 / layout.cell_px0 for n in (shape[1], shape[0]))
    box = (0.0, 0.0, *(min(r, limit) for r, limit in zip(reach, mask.size, strict=True)))
    return np.asarray(mask.resize(shape[::-1], Image.Resampling.BILINEAR, box=box))


def _look_up(table: NDArray[np.float32], flow: Flow, width_um: float, stretch: float) -> NDArray[np.float32]:
    across = np.floor(flow.across / _FLOAT32(width_um)).astype(np.int32) & 1023
    along = np.floor(flow.along / _FLOAT32(stretch)).astype(np.int32) & 1023
    return table[across, along]


def _collagen(fibres: NDArray[np.float32], flow: Flow) -> NDArray[np.float32]:
    fine = _look_up(fibres, flow, 1.0, 1.0)
    coarse = _look_up(fibres, flow, 3.0, 2.0)
    eosin = 0.47 + 0.11 * fine + 0.09 * coarse
    # Shrinkage opens pale clefts between the bundles.
    return eosin * (1 - np.clip(1.6 * (coarse - 1.25), 0, 0.9))


def _muscle(fibres: NDArray[np.float32], flow: Flow) -> NDArray[np.float32]:
    """Broad even fibres, parallel, with thin pale lines between them."""
    phase = flow.across / _FLOAT32(7.0) + 0.55 * _look_up(fibres, flow, 9.0, 4.0)
    within = np.abs(phase - np.floor(phase) - 0.5)  # 0.5 on the line between two fibres
    return 0.50 - 0.30 * np.clip((within - 0.36) / 0.1, 0, 1) + 0.03 * _look_up(fibres, flow, 1.0, 1.0)


def _fat(layout: Layout, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Thin walls between empty cells; distances are found at half the resolution and enlarged."""
    half = (-(-shape[0] // 2), -(-shape[1] // 2))
    wanted = _weight(layout, ADIPOSE, half) > 0
    distance = np.full(half, 9.0, _FLOAT32)
    row, col = np.nonzero(wanted)
    if len(row):
        um = 2 * layout.field_px0 * layout.mpp
        distance[row, col] = fat_walls(layout, np.stack([(col + 0.5) * um, (row + 0.5) * um], -1))[0]
    box = (0.0, 0.0, shape[1] / 2, shape[0] / 2)
    full = np.asarray(Image.fromarray(distance).resize(shape[::-1], Image.Resampling.BILINEAR, box=box))
    wall: NDArray[np.float32] = np.clip((2 - full) / _FLOAT32(1.2), 0, 1)
    return _FLOAT32(0.035) + _FLOAT32(0.50) * wall


def _paint_gland(
    fields: _Fields,
    gland: Gland,
    field_um: float,
    blotches: NDArray[np.float32],
    tissue: NDArray[np.float32],
) -> None:
    reach = gland.radius_um * 1.3
    rows, cols = fields.eosin.shape
    y0, y1 = (int(np.clip((gland.y_um + d) / field_um, 0, rows)) for d in (-reach, reach))
    x0, x1 = (int(np.clip((gland.x_um + d) / field_um, 0, cols)) for d in (-reach, reach))
    y = (np.arange(y0, y1) + 0.5)[:, None] * field_um - gland.y_um
    x = (np.arange(x0, x1) + 0.5)[None] * field_um - gland.x_um
    part = np.s_[y0:y1, x0:x1]
    depth = (np.hypot(x, y) / gland.wall(np.arctan2(y, x))).astype(_FLOAT32)  # 1 on the outer wall
    depth += 0.012 * blotches[part]
    soft = _FLOAT32(gland.radius_um)
    inside = np.clip((1 - depth) * soft / 1.5, 0, 1) * tissue[part]
    cell = np.clip((depth - gland.lumen) * soft / 1.5, 0, 1)
    apical = np.clip((depth - gland.lumen) / (1 - gland.lumen), 0, 1)
    eosin = cell * (0.34 + 0.12 * (1 - apical) + 0.05 * blotches[part]) + 0.03
    fields.eosin[part] += inside * (eosin - fields.eosin[part])
    fields.haematoxylin[part] += inside * (cell * (0.10 + 0.08 * apical) - fields.haematoxylin[part])


def _ink(rng: np.random.Generator, layout: Layout, rgb: NDArray[np.uint8]) -> None:
    """Lay the pen's strokes over the drawn slide, streaky and a little transparent."""
    for index, name in enumerate(INKS):
        mask = layout.pen == index + 1
        if not mask.any():
            continue
        row, col = np.nonzero(mask)
        margin = 2
        top, left = max(int(row.min()) - margin, 0), max(int(col.min()) - margin, 0)
        bottom, right = int(row.max()) + 1 + margin, int(col.max()) + 1 + margin
        part = np.s_[
            top * layout.cell_px0 : min(bottom * layout.cell_px0, layout.height0),
            left * layout.cell_px0 : min(right * layout.cell_px0, layout.width0),
        ]
        view = rgb[part]
        amount = mask[top:bottom, left:right].astype(_FLOAT32)
        amount *= 0.88 + 0.05 * smooth_noise(rng, amount.shape, 6.0)
        height, width = view.shape[:2]
        box = (0.0, 0.0, min(width / layout.cell_px0, amount.shape[1]), min(height / layout.cell_px0, amount.shape[0]))
        thick = np.asarray(Image.fromarray(amount).resize((width, height), Image.Resampling.BILINEAR, box=box))
        for c, density in enumerate(INK_DENSITIES[name]):
            view[..., c] = view[..., c] * np.exp(-_FLOAT32(density) * thick)
