"""Synthetic slides: the truth agrees with the pixels, and any reader can open them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import openslide
import pytest
import pyvips
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import binary_dilation

from encoder.errors import UsageError
from indexer.synthetic import (
    LANDMARK_PX0,
    SyntheticTruth,
    class_at,
    classes_at,
    draw_cohort,
    draw_slide,
)

SIDE = 1024


def pixels(path: Path) -> NDArray[np.uint8]:
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))


def enlarged(mask: NDArray[np.bool_], truth: SyntheticTruth) -> NDArray[np.bool_]:
    cell = truth.class_map_px0
    return mask.repeat(cell, 0).repeat(cell, 1)[: truth.height0, : truth.width0]


def red_density(rgb: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Eosin hardly absorbs red, so red tells haematoxylin."""
    return -np.log((rgb[..., 0] + 1.0) / 245)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> SyntheticTruth:
    return draw_slide(tmp_path_factory.mktemp("syn") / "one.tif", 3, SIDE, SIDE, scanner="neutral")


def test_opens_with_exact_mpp_and_levels(drawn: SyntheticTruth) -> None:
    with openslide.OpenSlide(drawn.path) as slide:
        assert slide.dimensions == (SIDE, SIDE)
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5, rel=1e-6)
        assert slide.level_downsamples == pytest.approx((1, 2, 4))
    assert pyvips.Image.new_from_file(str(drawn.path), page=1).width == SIDE // 2
    assert (drawn.slide_id, drawn.class_map_px0, drawn.class_map.shape) == ("one", 8, (128, 128))


@pytest.mark.parametrize("mpp", [0.25, 1.0])
def test_mpp_scales_the_tissue(tmp_path: Path, mpp: float) -> None:
    truth = draw_slide(tmp_path / "s.tif", 1, 768, 512, mpp=mpp, pen=False)
    with openslide.OpenSlide(truth.path) as slide:
        assert slide.dimensions == (768, 512)
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(mpp, rel=1e-5)
    lymphoid = truth.nuclei.polygons_px0[truth.nuclei.classes == truth.classes.index("lymphoid")]
    diameter_um = np.ptp(lymphoid, axis=1).mean() * mpp
    assert 5 < diameter_um < 7.5


def test_nuclei_are_darker_in_haematoxylin_than_what_lies_around(drawn: SyntheticTruth) -> None:
    assert len(drawn.nuclei) > 300
    mask = Image.new("1", (SIDE, SIDE))
    for polygon in drawn.nuclei.polygons_px0:
        ImageDraw.Draw(mask).polygon((polygon - 0.5).ravel().tolist(), fill=1)
    inside, rgb = np.asarray(mask), pixels(drawn.path)
    density = red_density(rgb)
    around = enlarged(drawn.tissue & ~drawn.pen, drawn) & ~inside
    assert density[inside].mean() > 3 * density[around].mean()
    # Each nucleus on its own, at its centre.
    x, y = drawn.nuclei.polygons_px0.mean(axis=1).astype(int).T
    assert (density[y, x] > np.quantile(density[around], 0.9)).mean() > 0.97


def test_glass_is_white_and_tissue_is_not(drawn: SyntheticTruth) -> None:
    rgb = pixels(drawn.path)
    beside = binary_dilation(drawn.tissue | drawn.pen, iterations=2)
    glass = rgb[enlarged(~beside, drawn)]
    assert glass.min() > 220
    assert np.abs(glass.mean(0) - 241).max() < 4
    solid = np.isin(drawn.class_map, [drawn.classes.index(c) for c in ("tumour", "stroma", "muscle")])
    assert rgb[enlarged(solid, drawn)].mean(0)[1] < 190


def test_pen_is_where_the_truth_says(drawn: SyntheticTruth) -> None:
    assert 0.002 < drawn.pen.mean() < 0.2
    on_glass = enlarged(drawn.pen & ~drawn.tissue, drawn)
    assert np.median(pixels(drawn.path)[on_glass].min(axis=-1)) < 110
    without = draw_slide(drawn.path.with_name("plain.tif"), 3, SIDE, SIDE, scanner="neutral", pen=False)
    assert not without.pen.any()


def test_landmarks_have_their_colours(tmp_path: Path) -> None:
    truth = draw_slide(tmp_path / "marks.tif", 5, SIDE, SIDE, landmarks=True)
    rgb = pixels(truth.path).astype(int)
    assert len({colour for _, _, colour in truth.landmarks}) == len(truth.landmarks) == 6
    for x0, y0, colour in truth.landmarks:
        # JPEG keeps colour at half the resolution, which touches the outermost pixels.
        square = rgb[y0 + 1 : y0 + LANDMARK_PX0 - 1, x0 + 1 : x0 + LANDMARK_PX0 - 1]
        assert np.abs(square - colour).max() <= 4
        assert np.abs(rgb[y0 - 4, x0 - 4] - colour).max() > 40


def test_same_seed_same_pixels_other_seed_others(drawn: SyntheticTruth, tmp_path: Path) -> None:
    again = draw_slide(tmp_path / "again.tif", 3, SIDE, SIDE, scanner="neutral")
    assert np.array_equal(pixels(again.path), pixels(drawn.path))
    assert np.array_equal(again.nuclei.polygons_px0, drawn.nuclei.polygons_px0)
    other = draw_slide(tmp_path / "other.tif", 4, SIDE, SIDE, scanner="neutral")
    assert (other.class_map != drawn.class_map).mean() > 0.2


def test_another_scanner_shows_the_same_tissue_in_other_colours(drawn: SyntheticTruth, tmp_path: Path) -> None:
    other = draw_slide(tmp_path / "warm.tif", 3, SIDE, SIDE, scanner="warm")
    for name in ("class_map", "tissue", "pen"):
        assert np.array_equal(getattr(other, name), getattr(drawn, name))
    assert np.array_equal(other.nuclei.polygons_px0, drawn.nuclei.polygons_px0)
    tissue = enlarged(drawn.tissue, drawn)
    before, after = pixels(drawn.path)[tissue].astype(float), pixels(other.path)[tissue].astype(float)
    assert np.abs(before.mean(0) - after.mean(0)).max() > 8
    assert np.corrcoef(before[:, 0], after[:, 0])[0, 1] > 0.9


def test_classes_at_counts_cells(drawn: SyntheticTruth) -> None:
    extent, rng = 100, np.random.default_rng(0)
    x0, y0 = rng.integers(-60, SIDE, (2, 60))
    found, shares = classes_at(drawn, x0, y0, extent)
    cell = drawn.class_map_px0
    for x, y, index, share in zip(x0.tolist(), y0.tolist(), found.tolist(), shares.tolist(), strict=True):
        rows, cols = range(y // cell, -(-(y + extent) // cell)), range(x // cell, -(-(x + extent) // cell))
        votes = [int(drawn.class_map[r, c]) if 0 <= r < 128 and 0 <= c < 128 else 255 for r in rows for c in cols]
        tissue = [v for v in votes if v != 255]
        counts = np.bincount(tissue, minlength=len(drawn.classes))
        assert share == pytest.approx(counts.max() / len(votes))
        expected = int(counts.argmax()) if 2 * len(tissue) > len(votes) else -1
        assert index == expected
        assert class_at(drawn, x, y, extent) == (None if expected < 0 else drawn.classes[expected])
    assert {-1} < set(found.tolist())


def test_no_class_is_told_by_mean_colour_across_scanners(tmp_path: Path) -> None:
    """The nearest mean colour on other slides errs often, yet less often than chance."""
    colours, classes, slides = [], [], []
    for i, scanner in enumerate(("neutral", "violet", "warm", "dark")):
        truth = draw_slide(tmp_path / f"{scanner}.tif", 20 + i, SIDE, SIDE, scanner=scanner, pen=False)
        rgb = pixels(truth.path).astype(np.float32)
        y, x = (a.ravel() for a in np.mgrid[0 : SIDE - 127 : 64, 0 : SIDE - 127 : 64])
        index, share = classes_at(truth, x, y, 128)
        for j in np.flatnonzero((index >= 0) & (share > 0.8)):
            colours.append(rgb[y[j] : y[j] + 128, x[j] : x[j] + 128].mean((0, 1)))
            classes.append(index[j])
            slides.append(i)
    c, k, s = np.array(colours), np.array(classes), np.array(slides)
    distance = np.linalg.norm(c[:, None] - c[None], axis=-1)
    distance[s[:, None] == s[None]] = np.inf
    right = k[distance.argmin(1)] == k
    recalls = [right[k == j].mean() for j in np.unique(k)]
    assert len(recalls) == 6
    assert 1 / 6 < np.mean(recalls) < 0.65


def test_cohort_has_a_manifest(tmp_path: Path) -> None:
    truths = draw_cohort(tmp_path / "cohort", 3, 9, width0=256, height0=320)
    rows = list(csv.DictReader((tmp_path / "cohort" / "manifest.csv").open()))
    assert [r["slide_id"] for r in rows] == [t.slide_id for t in truths] == ["slide-001", "slide-002", "slide-003"]
    assert all((tmp_path / "cohort" / r["path"]).is_file() for r in rows)
    assert [r["patient_id"] for r in rows] == ["patient-01", "patient-01", "patient-02"]
    assert len({r["scanner"] for r in rows}) == 3 and rows[0]["organ"] == rows[1]["organ"] != rows[2]["organ"]
    assert [t.pen.any() for t in truths] == [True, False, False]
    assert truths[0].height0 == 320


def test_seeded_scanners_differ(tmp_path: Path) -> None:
    a, b = (draw_slide(tmp_path / f"{i}.tif", 1, 256, 256, scanner=i) for i in (0, 1))
    assert (a.scanner, b.scanner) == ("seeded-0", "seeded-1")
    assert not np.array_equal(pixels(a.path), pixels(b.path))


@pytest.mark.parametrize(
    ("bad", "names"), [({"scanner": "x"}, "neutral"), ({"organ": "x"}, "colon"), ({"width0": 100}, "256")]
)
def test_wrong_requests_are_refused(tmp_path: Path, bad: dict[str, object], names: str) -> None:
    with pytest.raises(UsageError, match=names):
        draw_slide(tmp_path / "no.tif", 0, **({"height0": 256, "width0": 256} | bad))  # type: ignore[arg-type]
    assert not (tmp_path / "no.tif").exists()
