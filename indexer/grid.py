"""Where the tiles of a slide lie: the grid's settings, its arithmetic, and the plan for one slide."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from encoder.errors import QueryError, SlideError, UsageError
from indexer.resample import RESAMPLER

if TYPE_CHECKING:
    from indexer.slide import Slide, SlideInfo

NATIVE_TOLERANCE = 0.02
WARN_UPSAMPLING, MAX_UPSAMPLING = 1.25, 2.0
_MAX_INDEX = 1 << 16
_MAX_CELLS = 20_000_000  # a plan takes some hundred bytes for each while it is made


@dataclass(frozen=True)
class TissueSettings:
    """How tissue is told from everything else; see `indexer.tissue`.

    Attributes:
        detect: false takes all of a slide, or all of its mask, as tissue.
        pitch_um: micrometres per pixel of the tissue map.
        reject_pen: leave out ink in blue, green and black.
        reject_blur: leave out areas without sharp detail.
        max_pen: share of a tile that ink, black included, may cover.
    """

    detect: bool = True
    pitch_um: float = 8.0
    reject_pen: bool = True
    reject_blur: bool = True
    max_pen: float = 0.1


@dataclass(frozen=True)
class Grid:
    """Everything that decides which tiles a slide has and what their pixels are; made by `make_grid`.

    Attributes:
        mpp: micrometres per pixel of a tile.
        tile_px, stride_px: side of a tile and step between tiles, in tile pixels.
        min_tissue: least share of a tile that is usable tissue.
        resampler: name of the resampler; see `indexer.resample`.
        allow_upsampling: read slides that are more than twice too coarse.
    """

    mpp: float
    tile_px: int
    stride_px: int
    min_tissue: float = 0.5
    tissue: TissueSettings = field(default_factory=TissueSettings)
    resampler: str = RESAMPLER
    allow_upsampling: bool = False

    @property
    def settings_hash(self) -> str:
        """16 hex digits over all settings."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    @property
    def grid_id(self) -> str:
        """Slug for table names, such as `m1-0-t128-1a2b3c4d`."""
        mpp = f"{float(f'{self.mpp:.4g}')}".replace(".", "-")
        stride = "" if self.stride_px == self.tile_px else f"-s{self.stride_px}"
        return f"m{mpp}-t{self.tile_px}{stride}-{self.settings_hash[:8]}"

    def to_json(self) -> str:
        """All settings as JSON with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Grid:
        """Read what `to_json` wrote."""
        settings = json.loads(text)
        return cls(**{**settings, "tissue": TissueSettings(**settings["tissue"])})


def make_grid(
    mpp: float,
    tile_px: int,
    stride_px: int | None = None,
    *,
    min_tissue: float = 0.5,
    tissue: TissueSettings | None = None,
    allow_upsampling: bool = False,
) -> Grid:
    """Make a grid; without `stride_px` its tiles touch and do not overlap.

    Raises:
        UsageError: a value is out of range.
    """
    stride_px = tile_px if stride_px is None else stride_px
    if not (math.isfinite(mpp) and 0.05 <= mpp <= 50):
        raise UsageError(f"mpp {mpp:g} is out of range.", "Give 0.05 to 50 micrometres per pixel.")
    if not 8 <= tile_px <= 8192:
        raise UsageError(f"tile {tile_px} is out of range.", "Give 8 to 8192 pixels.")
    if not 1 <= stride_px <= 8192:
        raise UsageError(f"stride {stride_px} is out of range.", "Give 1 to 8192 pixels.")
    if not 0 <= min_tissue <= 1:
        raise UsageError(f"min_tissue {min_tissue:g} is out of range.", "Give a share between 0 and 1.")
    return Grid(
        mpp=float(mpp),
        tile_px=int(tile_px),
        stride_px=int(stride_px),
        min_tissue=float(min_tissue),
        tissue=tissue or TissueSettings(),
        allow_upsampling=allow_upsampling,
    )


@dataclass(frozen=True)
class Geometry:
    """How a grid lies on one slide, before tissue is looked at.

    Attributes:
        level: level to read.
        downsample: level-0 pixels per pixel of that level.
        native: tiles are the level's own pixels.
        true_mpp: scale of the tiles; differs from the grid's by at most 2 %, and only where native.
        upsampling: how much finer the tiles are than the slide; 1 where they are not.
        extent_exact_px0, stride_exact_px0: side and step in level-0 pixels, not rounded.
        origin_x0, origin_y0: level-0 corner of row 0, column 0, not rounded.
        rows, columns: size of the grid.
    """

    level: int
    downsample: float
    native: bool
    true_mpp: float
    upsampling: float
    extent_exact_px0: float
    stride_exact_px0: float
    origin_x0: float
    origin_y0: float
    rows: int
    columns: int


@dataclass(frozen=True)
class TilePlan:
    """The tiles of one slide on one grid, row by row.

    Attributes:
        rows, cols: int32 [N], index of each tile in the grid.
        x0, y0: int32 [N], level-0 pixels of each upper left corner.
        extent_px0: side in level-0 pixels; like `x0` and `y0` rounded once from the exact value.
        tissue: float32 [N], share of usable tissue.
        reasons: how many tiles of the grid were left out, by main cause.
        warnings: what the user should know about the scale.
    """

    slide: SlideInfo
    grid: Grid
    geometry: Geometry
    rows: NDArray[np.int32]
    cols: NDArray[np.int32]
    x0: NDArray[np.int32]
    y0: NDArray[np.int32]
    extent_px0: int
    tissue: NDArray[np.float32]
    reasons: dict[str, int]
    warnings: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def level(self) -> int:
        """Level that is read."""
        return self.geometry.level

    @property
    def true_mpp(self) -> float:
        """Micrometres per pixel of the tiles."""
        return self.geometry.true_mpp

    @property
    def upsampling(self) -> float:
        """How much finer the tiles are than the slide; 1 where they are not."""
        return self.geometry.upsampling

    def key(self, index: int) -> str:
        """Text key of a tile."""
        return tile_key(self.slide.slide_id, int(self.x0[index]), int(self.y0[index]))


def lay_grid(slide: SlideInfo, grid: Grid) -> Geometry:
    """Choose the level and lay the grid over a slide's bounds.

    A level within 2 % of the asked scale is read pixel for pixel; else the coarsest finer level is
    downsampled, or the finest upsampled. A tile belongs to the grid where at least half of its width and
    height lie inside the bounds; a slide smaller than that has one tile.

    Raises:
        SlideError: the slide is too coarse, or the grid has more than 65,536 rows or columns.
    """
    level_mpps = [slide.mpp * step for step in slide.level_downsamples]
    level = min(range(len(level_mpps)), key=lambda index: abs(math.log(level_mpps[index] / grid.mpp)))
    native = abs(level_mpps[level] / grid.mpp - 1) <= NATIVE_TOLERANCE
    if not native:
        finer = [index for index, mpp in enumerate(level_mpps) if mpp <= grid.mpp]
        level = max(finer, key=lambda index: level_mpps[index]) if finer else 0
    true_mpp = level_mpps[level] if native else grid.mpp
    upsampling = 1.0 if native else max(1.0, level_mpps[level] / grid.mpp)
    if upsampling > MAX_UPSAMPLING and not grid.allow_upsampling:
        raise SlideError(
            f"{slide.path}: its finest level has {slide.mpp:.4g} um/px, {upsampling:.1f} times coarser than the "
            f"grid's {grid.mpp:g}.",
            "Use a grid with a larger mpp, correct the slide's mpp in the manifest, or allow upsampling.",
        )
    downsample = slide.level_downsamples[level]
    x0, y0, width0, height0 = slide.bounds_px0
    per_pixel = downsample if native else grid.mpp / slide.mpp
    extent, stride = grid.tile_px * per_pixel, grid.stride_px * per_pixel
    # Native tiles begin on whole pixels of their level.
    origin = [math.ceil(start / downsample - 1e-9) * downsample if native else float(start) for start in (x0, y0)]
    columns = _count(x0 + width0 - origin[0], extent, stride)
    rows = _count(y0 + height0 - origin[1], extent, stride)
    if max(rows, columns) > _MAX_INDEX:
        raise SlideError(
            f"{slide.path}: the grid would have {rows} rows and {columns} columns (at most {_MAX_INDEX}).",
            "Use a larger stride or mpp.",
        )
    return Geometry(
        level, downsample, native, true_mpp, upsampling, extent, stride, origin[0], origin[1], rows, columns
    )


def _count(length: float, extent: float, stride: float) -> int:
    """Number of steps whose tile lies at least half inside; at least 1."""
    return max(1, math.floor((length - extent / 2) / stride + 1e-9) + 1)


def plan_tiles(slide: Slide, grid: Grid, mask: Path | None = None) -> TilePlan:
    """Find the tiles of a slide that hold tissue.

    Args:
        mask: GeoJSON polygons in level-0 pixels; tissue outside them is left out.

    Raises:
        SlideError: the slide is too coarse or too large for the grid, no part of it can be read, or the mask is
            no GeoJSON.
    """
    from indexer.tissue import judge_tiles, tissue_mask  # needs scipy; grids are also used without slides

    info = slide.info
    geometry = lay_grid(info, grid)
    cells = geometry.rows * geometry.columns
    if cells > _MAX_CELLS:
        raise SlideError(
            f"{info.path}: the grid would have {cells:,} cells (at most {_MAX_CELLS:,}).", "Use a larger stride or mpp."
        )
    found = tissue_mask(slide, grid.tissue, mask)
    rows, cols = (
        index.ravel() for index in np.meshgrid(np.arange(geometry.rows), np.arange(geometry.columns), indexing="ij")
    )
    left = geometry.origin_x0 + cols.astype(np.float64) * geometry.stride_exact_px0
    top = geometry.origin_y0 + rows.astype(np.float64) * geometry.stride_exact_px0
    kept, share, reasons = judge_tiles(
        found, left, top, geometry.extent_exact_px0, min_tissue=grid.min_tissue, max_pen=grid.tissue.max_pen
    )
    warnings = list(info.warnings)
    if geometry.upsampling > WARN_UPSAMPLING:
        warnings.append(
            f"tiles are upsampled {geometry.upsampling:.2f} times: the slide has {info.mpp:.4g} um/px, the grid "
            f"{grid.mpp:g}"
        )
    if found.note:
        warnings.append(found.note)
    return TilePlan(
        slide=info,
        grid=grid,
        geometry=geometry,
        rows=rows[kept].astype(np.int32),
        cols=cols[kept].astype(np.int32),
        x0=np.rint(left[kept]).astype(np.int32),
        y0=np.rint(top[kept]).astype(np.int32),
        extent_px0=max(1, round(geometry.extent_exact_px0)),
        tissue=share[kept].astype(np.float32),
        reasons=reasons,
        warnings=tuple(warnings),
    )


def tile_id(slide_no: int, row: int | NDArray[np.int32], col: int | NDArray[np.int32]) -> np.int64 | NDArray[np.int64]:
    """Pack `slide_no << 32 | row << 16 | col` into int64; rows and columns may be arrays of one shape."""
    return np.int64(slide_no) << 32 | np.asarray(row, np.int64) << 16 | np.asarray(col, np.int64)


def tile_key(slide_id: str, x0: int, y0: int) -> str:
    """Text key `slide_id@x0,y0` of a tile."""
    return f"{slide_id}@{x0},{y0}"


def parse_tile_key(text: str) -> tuple[str, int, int]:
    """Split a text key into slide_id, x0, y0.

    Raises:
        QueryError: the text is no tile key.
    """
    slide_id, _, position = text.rpartition("@")
    x0, _, y0 = position.partition(",")
    try:
        if not slide_id:
            raise ValueError
        return slide_id, int(x0), int(y0)
    except ValueError:
        raise QueryError(f"`{text}` is no tile key.", "Tile keys look like slide_id@x0,y0.") from None
