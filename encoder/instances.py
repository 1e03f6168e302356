"""From a mask of nuclei to single nuclei, and measures of how well they agree with others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# All in micrometres, so that they mean the same at every scale. The radii are those of Boserup and Selvan (2023),
# three pixels and one at 0.25 um.
_SMOOTH_UM = (0.75, 0.25)
_LEAST_AREA_UM2 = 10.0
_LARGEST_HOLE_UM2 = 20.0
# Half the distance at which two neighbouring nuclei can be told apart.
_SEED_DISTANCE_UM = 2.0


@dataclass(frozen=True)
class Agreement:
    """How well nuclei agree with those that someone drew.

    Attributes:
        dice: of the two masks; 1 where both are empty.
        aji: aggregated Jaccard index (Kumar et al. 2017).
        detection: F1 of nuclei whose overlap exceeds one half.
        segmentation: mean overlap of those.
        panoptic: the product of the two (Kirillov et al. 2019).
    """

    dice: float
    aji: float
    detection: float
    segmentation: float
    panoptic: float


def clean_mask(mask: NDArray[np.bool_], mpp: float) -> NDArray[np.bool_]:
    """Smooth outlines, fill holes and drop specks.

    Args:
        mask: bool [H, W].
        mpp: micrometres per pixel.
    """
    from scipy import ndimage
    from skimage.morphology import disk

    for radius_um in _SMOOTH_UM:
        radius = round(radius_um / mpp)
        if radius:
            mask = ndimage.binary_opening(mask, disk(radius))
            # Beyond the border nothing is known, so closing must not take it for empty.
            padded = np.pad(mask, radius, mode="edge")
            closed = ndimage.binary_closing(padded, disk(radius))
            mask = closed[radius:-radius, radius:-radius]
    mask = mask | _small_parts(~mask, _LARGEST_HOLE_UM2 / mpp**2)
    return mask & ~_small_parts(mask, _LEAST_AREA_UM2 / mpp**2)


def split_instances(mask: NDArray[np.bool_], mpp: float) -> NDArray[np.int32]:
    """Tell touching nuclei apart by a watershed of the distance to the outline.

    Args:
        mask: bool [H, W].
        mpp: micrometres per pixel.

    Returns:
        Numbers from 1 of each nucleus, 0 for the background, int32 [H, W].
    """
    from scipy import ndimage
    from skimage.feature import peak_local_max
    from skimage.segmentation import watershed

    if not mask.any():
        return np.zeros(mask.shape, dtype=np.int32)
    distance = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask), 0.5 / mpp)
    parts, _ = ndimage.label(mask)
    least = max(1, round(_SEED_DISTANCE_UM / mpp))
    peaks = peak_local_max(distance, min_distance=least, labels=parts, exclude_border=False)
    seeds = np.zeros(mask.shape, dtype=np.int32)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    found = watershed(-distance, seeds, mask=mask)
    return np.asarray(found, dtype=np.int32)


def dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Overlap of two masks, 2 |A and B| / (|A| + |B|); 1 where both are empty."""
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else 1.0


def agreement(found: NDArray[np.integer], drawn: NDArray[np.integer]) -> Agreement:
    """Measure found nuclei against drawn ones.

    Args:
        found, drawn: numbers of nuclei [H, W], 0 for the background; any positive numbers.
    """
    found, drawn = _numbered(found), _numbered(drawn)
    masks = dice(found > 0, drawn > 0)
    counts = np.zeros((int(drawn.max()) + 1, int(found.max()) + 1), dtype=np.int64)
    np.add.at(counts, (drawn.ravel(), found.ravel()), 1)
    both = counts[1:, 1:]
    drawn_area, found_area = counts.sum(axis=1)[1:], counts.sum(axis=0)[1:]
    union = drawn_area[:, None] + found_area[None] - both
    overlap = both / np.maximum(union, 1)
    if not len(drawn_area) and not len(found_area):
        return Agreement(1.0, 1.0, 1.0, 1.0, 1.0)
    matched = overlap > 0.5
    hits = int(matched.sum())
    detection = 2 * hits / (len(drawn_area) + len(found_area))
    segmentation = float(overlap[matched].mean()) if hits else 0.0
    index = _aji(both, union, drawn_area, found_area)
    return Agreement(masks, index, detection, segmentation, detection * segmentation)


def _numbered(instances: NDArray[np.integer]) -> NDArray[np.int64]:
    """The same nuclei with numbers from 1 without gaps."""
    known = np.unique(instances[instances > 0])
    numbers = np.searchsorted(known, instances) + 1
    return np.where(instances > 0, numbers, 0)


def _aji(
    both: NDArray[np.int64], union: NDArray[np.int64], drawn: NDArray[np.int64], found: NDArray[np.int64]
) -> float:
    """Each drawn nucleus takes the found one of largest overlap; found ones that none took count against."""
    if not both.size:
        return 0.0
    best = (both / np.maximum(union, 1)).argmax(axis=1)
    rows = np.arange(len(drawn))
    met = both[rows, best] > 0
    shared = int(both[rows, best][met].sum())
    joined = int(union[rows, best][met].sum()) + int(drawn[~met].sum())
    taken = np.zeros(len(found), dtype=bool)
    taken[best[met]] = True
    return shared / max(joined + int(found[~taken].sum()), 1)


def _small_parts(mask: NDArray[np.bool_], area_px: float) -> NDArray[np.bool_]:
    """Connected parts of a mask below an area."""
    from scipy import ndimage

    parts, _ = ndimage.label(mask)
    small = np.bincount(parts.ravel()) < area_px
    small[0] = False
    return np.asarray(small[parts])
