"""Fields to look at closely: pictures of a folder, or a square of a slide, each with its scale."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from encoder.errors import UsageError
from encoder.tiles import TileFolder
from indexer.grid import Grid
from indexer.manifest import discover
from indexer.slide import open_slide
from query.slide_tile import read_centred_tile


@dataclass(frozen=True)
class Field:
    """A picture with its scale.

    Attributes:
        name: of the file without its ending, or `slide_id@x0,y0` of the upper left corner.
        pixels: uint8 [H, W, 3].
        mpp: micrometres per pixel.
    """

    name: str
    pixels: NDArray[np.uint8]
    mpp: float


def folder_fields(folder: Path, mpp: float | None) -> Iterator[Field | tuple[str, str]]:
    """Read the pictures of a tile folder at their own size; a broken one gives its name and the reason.

    Args:
        folder: as for training; its table may have an `mpp` column.
        mpp: of pictures for which the table has none.

    Raises:
        UsageError: the scale of some picture is unknown.
    """
    source = TileFolder(folder)
    scales = np.full(len(source), np.nan) if source.mpps is None else source.mpps
    scales = np.where(np.isnan(scales), mpp or np.nan, scales)
    if np.isnan(scales).any():
        raise UsageError(
            f"The scale of {int(np.isnan(scales).sum())} pictures of {folder} is unknown.",
            "Give --mpp, or a column mpp in its tiles.csv.",
        )
    for name, scale in zip(source.names, scales, strict=True):
        try:
            with Image.open(source.path / name) as picture:
                pixels = np.asarray(picture.convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            yield name, str(error)
            continue
        yield Field(Path(name).stem, pixels, float(scale))


def slide_field(
    path: Path, manifest: Path | None, cohort_mpp: float | None, x0: int, y0: int, side_um: float, mpp: float
) -> Field:
    """Read a square of a slide around a point.

    Args:
        path: of the slide.
        manifest, cohort_mpp: as for indexing; they give the slide's scale where its file does not.
        x0, y0: the centre in level-0 pixels.
        side_um: side in micrometres.
        mpp: of the picture.

    Raises:
        UsageError, SlideError: the slide cannot be read, or has no scale.
    """
    entries = discover([path], manifest)
    if len(entries) != 1:
        raise UsageError(f"{path} holds {len(entries)} slides.", "Name one slide file.")
    with open_slide(entries[0], cohort_mpp) as slide:
        info = slide.info
    if not (0 <= x0 < info.width0 and 0 <= y0 < info.height0):
        raise UsageError(
            f"The point {x0},{y0} lies outside slide {info.slide_id} of {info.width0} x {info.height0} px.",
            "Give a point inside it, in level-0 pixels.",
        )
    row = {
        "slide_id": info.slide_id,
        "path": str(info.path),
        "mpp": info.mpp,
        "patient_id": None,
        "site_id": None,
        "cohort": None,
        "fingerprint": None,
    }
    side_px = round(side_um / mpp)
    pixels = read_centred_tile(row, x0, y0, Grid(mpp=mpp, tile_px=side_px, stride_px=side_px))
    half_px0 = side_um / info.mpp / 2
    return Field(f"{info.slide_id}@{round(x0 - half_px0)},{round(y0 - half_px0)}", pixels, mpp)


def read_drawn(folder: Path, field: Field) -> NDArray[np.integer] | None:
    """Nuclei that someone drew for a field: a picture of numbers of the same name; None where there is none.

    Raises:
        UsageError: it is not of the field's size.
    """
    found = next((path for path in sorted(folder.glob(f"{field.name}.*")) if path.is_file()), None)
    if found is None:
        return None
    try:
        with Image.open(found) as picture:
            drawn = np.asarray(picture)
    except (OSError, ValueError, SyntaxError) as error:
        raise UsageError(f"The mask {found} cannot be read: {error}", "Give a PNG of nucleus numbers.") from error
    if drawn.ndim != 2 or drawn.shape != field.pixels.shape[:2]:
        raise UsageError(
            f"The mask {found} is {drawn.shape}, its picture {field.pixels.shape[:2]}.",
            "Give one number per pixel of the picture.",
        )
    return np.asarray(drawn, dtype=np.int64)
