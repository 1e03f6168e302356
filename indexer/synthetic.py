"""Synthetic slides with exact truth: small whole-slide images that any reader opens, in seconds.

They serve tests, benchmarks and the demo. A slide depends on its seed (tissue) and its scanner (stain, light,
noise) only; the same seed under two scanners shows the same tissue.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyvips
from numpy.typing import ArrayLike, NDArray

from encoder.errors import UsageError
from indexer.synthetic_layout import CLASSES, GLASS, ORGANS, plan_layout
from indexer.synthetic_nuclei import Nuclei, plan_nuclei
from indexer.synthetic_paint import paint
from indexer.synthetic_stain import SCANNERS, find_scanner

LANDMARK_PX0 = 64
_LANDMARK_COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255))


@dataclass(frozen=True)
class SyntheticTruth:
    """What a synthetic slide really shows.

    Attributes:
        classes: names of the tissue classes; maps and nuclei hold indices into it.
        class_map: uint8 [h, w], 255 on glass.
        class_map_px0: level-0 pixels per side of a cell of the maps.
        nuclei: outlines in level-0 pixels, each with its class.
        tissue: bool [h, w], tissue of any class.
        pen: bool [h, w], ink on the glass.
        landmarks: (x0, y0, RGB) of the upper left corner of squares of LANDMARK_PX0 in one pure colour.
    """

    slide_id: str
    path: Path
    width0: int
    height0: int
    mpp: float
    scanner: str
    classes: tuple[str, ...]
    class_map: NDArray[np.uint8]
    class_map_px0: int
    nuclei: Nuclei
    tissue: NDArray[np.bool_]
    pen: NDArray[np.bool_]
    landmarks: list[tuple[int, int, tuple[int, int, int]]]


def draw_slide(
    path: Path,
    seed: int,
    width0: int = 4096,
    height0: int = 4096,
    mpp: float = 0.5,
    scanner: str | int = 0,
    jpeg_quality: int = 85,
    pen: bool = True,
    landmarks: bool = False,
    organ: str = "mixed",
    region_um: float | None = None,
) -> SyntheticTruth:
    """Draw one slide as a pyramidal tiled JPEG TIFF that carries its mpp.

    Args:
        path: file to write; its stem becomes the slide_id.
        seed: of tissue and texture.
        scanner: a preset's name, or an integer from which one is drawn.
        pen: draw ink strokes beside the tissue.
        landmarks: draw squares of pure colour at the places that the truth tells.
        organ: how much of each class there is: mixed, colon, breast or lung.
        region_um: over how many micrometres the class fields are smooth; None takes 240 to 420, by the
            slide's size.

    Returns:
        The truth, which does not depend on the scanner.

    Raises:
        UsageError: the scanner or the organ is unknown, or the slide's size or scale cannot be drawn.
    """
    if not 0.1 <= mpp <= 4:
        raise UsageError(f"a synthetic slide of {mpp:g} um/px cannot be drawn;", fix="use 0.1 to 4.")
    if min(width0, height0) < 256:
        raise UsageError(f"a synthetic slide of {width0} x {height0} pixels is too small;", fix="use 256 or more.")
    if organ not in ORGANS:
        raise UsageError(f"no organ is named {organ!r};", fix=f"use one of {', '.join(ORGANS)}.")
    seen_by = find_scanner(scanner)
    rng = np.random.default_rng([1, seed])
    layout = plan_layout(rng, width0, height0, mpp, organ, pen, region_um)
    nuclei = plan_nuclei(rng, layout)
    rgb = paint(layout, nuclei, seen_by, seed)
    placed = _place_landmarks(rgb) if landmarks else []
    _write_pyramid(path, rgb, mpp, jpeg_quality)
    return SyntheticTruth(
        path.stem,
        path,
        width0,
        height0,
        mpp,
        seen_by.name,
        CLASSES,
        layout.class_map,
        layout.cell_px0,
        nuclei,
        layout.class_map != GLASS,
        layout.pen > 0,
        placed,
    )


def draw_cohort(folder: Path, slides: int, seed: int, **size: Any) -> list[SyntheticTruth]:
    """Draw several slides and their manifest.csv (path, slide_id, patient_id, organ, scanner).

    Patients have two slides each, of one organ; the preset scanners take turns, so that a patient's two
    slides come from two scanners. Every third slide bears pen marks.

    Args:
        slides: how many.
        size: passed on to `draw_slide`: width0, height0, mpp, jpeg_quality, scanner, pen, landmarks, organ,
            region_um.
    """
    folder.mkdir(parents=True, exist_ok=True)
    organs, scanners = [o for o in ORGANS if o != "mixed"], list(SCANNERS)
    truths, rows = [], []
    for i in range(slides):
        patient = i // 2
        drawn: dict[str, Any] = {
            "organ": organs[patient % len(organs)],
            "scanner": scanners[i % len(scanners)],
            "pen": i % 3 == 0,
        } | size
        name = f"slide-{i + 1:03d}"
        truth = draw_slide(folder / f"{name}.tif", seed * 100_003 + i, **drawn)
        truths.append(truth)
        rows.append((truth.path.name, name, f"patient-{patient + 1:02d}", drawn["organ"], truth.scanner))
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "slide_id", "patient_id", "organ", "scanner"))
        writer.writerows(rows)
    return truths


def class_at(truth: SyntheticTruth, x0: float, y0: float, extent_px0: float) -> str | None:
    """Give the class that most of a square tile shows, None where at least half of it is glass."""
    index, _ = classes_at(truth, [x0], [y0], extent_px0)
    return None if index[0] < 0 else truth.classes[index[0]]


def classes_at(
    truth: SyntheticTruth, x0: ArrayLike, y0: ArrayLike, extent_px0: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Give the majority class of many square tiles at once.

    Args:
        x0: [n], level-0 pixels of the left edges.
        y0: [n], level-0 pixels of the upper edges.
        extent_px0: side of the tiles in level-0 pixels.

    Returns:
        int64 [n] indices into `truth.classes`, -1 where at least half of the tile is glass or off the slide;
        float32 [n], the share of the tile that this class covers.
    """
    cell = truth.class_map_px0
    x, y = np.asarray(x0, np.float64), np.asarray(y0, np.float64)
    rows, cols = truth.class_map.shape
    left, right = np.floor(x / cell).astype(int), np.ceil((x + extent_px0) / cell).astype(int)
    top, bottom = np.floor(y / cell).astype(int), np.ceil((y + extent_px0) / cell).astype(int)
    whole = np.maximum((right - left) * (bottom - top), 1)
    left, right = np.clip(left, 0, cols), np.clip(right, 0, cols)
    top, bottom = np.clip(top, 0, rows), np.clip(bottom, 0, rows)
    counts = np.empty((len(truth.classes), *x.shape), np.int64)
    for k in range(len(truth.classes)):
        total = np.zeros((rows + 1, cols + 1), np.int64)
        total[1:, 1:] = (truth.class_map == k).cumsum(0).cumsum(1)
        counts[k] = total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left]
    best = counts.argmax(0)
    share = (counts.max(0) / whole).astype(np.float32)
    return np.where(counts.sum(0) * 2 > whole, best, -1), share


def _place_landmarks(rgb: NDArray[np.uint8]) -> list[tuple[int, int, tuple[int, int, int]]]:
    """Draw the squares on multiples of 64 pixels, so that no JPEG block straddles an edge."""
    height, width = rgb.shape[:2]
    placed = []
    for i, colour in enumerate(_LANDMARK_COLOURS):
        across, down = (0.25, 0.5, 0.75)[i % 3], (0.3, 0.7)[i // 3]
        x0 = int(across * width) // LANDMARK_PX0 * LANDMARK_PX0
        y0 = int(down * height) // LANDMARK_PX0 * LANDMARK_PX0
        rgb[y0 : y0 + LANDMARK_PX0, x0 : x0 + LANDMARK_PX0] = colour
        placed.append((x0, y0, colour))
    return placed


def _write_pyramid(path: Path, rgb: NDArray[np.uint8], mpp: float, jpeg_quality: int) -> None:
    image = pyvips.Image.new_from_array(rgb, interpretation="srgb")
    image.tiffsave(
        str(path),
        tile=True,
        tile_width=256,
        tile_height=256,
        pyramid=True,
        compression="jpeg",
        Q=jpeg_quality,
        depth="onetile",
        region_shrink="mean",
        xres=1000 / mpp,
        yres=1000 / mpp,
        resunit="cm",
    )
