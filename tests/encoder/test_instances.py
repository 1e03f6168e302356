"""Cleaning, splitting and measuring of nuclei against plain counts."""

from __future__ import annotations

import numpy as np
import pytest

from encoder.instances import Agreement, agreement, clean_mask, dice, split_instances


def discs(side: int, *places: tuple[float, float, float]) -> np.ndarray:
    """Numbers from 1 of discs (y, x, radius), later ones on top."""
    y, x = np.mgrid[:side, :side]
    numbers = np.zeros((side, side), dtype=np.int64)
    for number, (cy, cx, radius) in enumerate(places, start=1):
        numbers[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = number
    return numbers


def plain_agreement(found: np.ndarray, drawn: np.ndarray) -> Agreement:
    """The same by sets of pixels, nucleus by nucleus."""
    sets = [
        {n: set(map(tuple, np.argwhere(numbers == n))) for n in np.unique(numbers) if n} for numbers in (drawn, found)
    ]
    truth, other = sets
    masks = dice(found > 0, drawn > 0)
    overlaps = [
        len(a & b) / len(a | b) for a in truth.values() for b in other.values() if len(a & b) / len(a | b) > 0.5
    ]
    detection = 2 * len(overlaps) / (len(truth) + len(other))
    segmentation = sum(overlaps) / len(overlaps) if overlaps else 0.0
    shared = joined = 0
    taken = set()
    for a in truth.values():
        best = max(other, key=lambda n: len(a & other[n]) / len(a | other[n]), default=None)
        if best is None or not a & other[best]:
            joined += len(a)
            continue
        taken.add(best)
        shared += len(a & other[best])
        joined += len(a | other[best])
    joined += sum(len(b) for n, b in other.items() if n not in taken)
    return Agreement(masks, shared / joined, detection, segmentation, detection * segmentation)


@pytest.mark.parametrize("seed", range(5))
def test_agreement_is_counted_as_by_sets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    drawn = discs(60, *((*rng.uniform(5, 55, 2), rng.uniform(3, 8)) for _ in range(9)))
    found = np.roll(drawn, rng.integers(-2, 3, 2), axis=(0, 1))
    found[found == 2] = 0
    found[:6, :6] = 77  # not in order, and with a gap
    got, expected = agreement(found, drawn), plain_agreement(found, drawn)
    for name in ("dice", "aji", "detection", "segmentation", "panoptic"):
        assert getattr(got, name) == pytest.approx(getattr(expected, name))


def test_perfect_and_empty_agreement() -> None:
    drawn = discs(40, (10, 10, 6), (28, 28, 7))
    assert agreement(drawn * 3, drawn) == Agreement(1, 1, 1, 1, 1)
    nothing = np.zeros_like(drawn)
    assert agreement(nothing, nothing) == Agreement(1, 1, 1, 1, 1)
    assert agreement(nothing, drawn) == Agreement(0, 0, 0, 0, 0)
    assert agreement(drawn, nothing) == Agreement(0, 0, 0, 0, 0)


def test_a_field_without_background_is_one_nucleus() -> None:
    whole = np.ones((10, 10), dtype=np.int64)
    assert agreement(whole, whole) == Agreement(1, 1, 1, 1, 1)


def test_touching_nuclei_are_told_apart() -> None:
    # Discs of 8 um across whose centres are 7 um apart.
    drawn = discs(120, (40, 40, 16), (40, 68, 16), (90, 60, 16))
    found = split_instances(drawn > 0, mpp=0.25)
    assert found.dtype == np.int32
    assert sorted(np.unique(found)) == [0, 1, 2, 3]
    assert agreement(found, drawn).aji > 0.9
    assert np.array_equal(found > 0, drawn > 0)


def test_one_long_nucleus_at_any_scale_stays_few() -> None:
    y, x = np.mgrid[:200, :200]
    long = ((x - 100) / 60) ** 2 + ((y - 100) / 18) ** 2 < 1
    assert split_instances(long, mpp=0.25).max() <= 2
    assert split_instances(np.zeros((20, 20), bool), 0.5).max() == 0


@pytest.mark.parametrize("mpp", [0.25, 0.5])
def test_cleaning_fills_holes_drops_specks_and_keeps_nuclei(mpp: float) -> None:
    scale = 0.25 / mpp
    side = round(160 * scale)
    nucleus = discs(side, (80 * scale, 80 * scale, 30 * scale)) > 0
    mask = nucleus & ~(discs(side, (80 * scale, 80 * scale, 6 * scale)) > 0)
    mask |= discs(side, (20 * scale, 20 * scale, 4 * scale)) > 0
    got = clean_mask(mask, mpp)
    assert dice(got, nucleus) > 0.98
    assert not got[: round(40 * scale), : round(40 * scale)].any()


def test_cleaning_keeps_nuclei_at_the_border() -> None:
    mask = discs(120, (0, 60, 25)) > 0
    assert dice(clean_mask(mask, 0.25), mask) > 0.97
