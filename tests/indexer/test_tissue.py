"""Tissue is found, and everything else is left out for the right reason."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from encoder.errors import SlideError
from indexer.grid import TissueSettings, make_grid, plan_tiles
from indexer.manifest import SlideEntry, discover
from indexer.mask import read_mask
from indexer.slide import open_slide
from indexer.synthetic import draw_slide
from indexer.tissue import Place, TissueMap, judge_tiles, tissue_mask

GLASS = (238, 237, 240)
MPP = 4.0  # pictures are drawn at 4 um per pixel, so that one map pixel is two by two of theirs


def glass(side: int = 512) -> NDArray[np.float64]:
    """Glass with the brightness steps that stitching leaves."""
    pixels = np.broadcast_to(np.array(GLASS, dtype=np.float64), (side, side, 3)).copy()
    pixels[: side // 2, side // 2 :] -= 6
    pixels[side // 2 :, : side // 3] += 4
    return pixels


def tissue(side: int = 512, seed: int = 0) -> NDArray[np.float64]:
    """Pink ground with dark violet nuclei, at the texture that real tissue has at this scale."""
    rng = np.random.default_rng(seed)
    nuclei = ndimage.gaussian_filter(rng.random((side, side)), 0.8) > 0.55
    pale = ndimage.gaussian_filter(rng.random((side, side)), 12) * 200
    ground = np.array([215, 150, 195]) + (pale - pale.mean())[..., None]
    return np.where(nuclei[..., None], [110, 70, 140], ground)


def entry(folder: Path, pixels: NDArray[np.float64], mpp: float = MPP) -> SlideEntry:
    noise = np.random.default_rng(9).normal(0, 0.4, pixels.shape)
    Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)).save(folder / "a.png")
    return SlideEntry("a", folder / "a.png", mpp=mpp)


def found_in(folder: Path, pixels: NDArray[np.float64], settings: TissueSettings | None = None) -> TissueMap:
    with open_slide(entry(folder, pixels)) as slide:
        return tissue_mask(slide, settings or TissueSettings())


def block(pixels: NDArray[np.float64], found: TissueMap, area: tuple[slice, slice]) -> NDArray[np.uint8]:
    """The part of the map that shows an area of the picture, without its rim."""
    rows, cols = (slice(part.start // 2 + 4, part.stop // 2 - 4) for part in area)
    return found.places[rows, cols]


SQUARE = (slice(128, 384), slice(160, 400))


def test_tissue_on_glass(tmp_path: Path) -> None:
    pixels = glass()
    pixels[SQUARE] = tissue()[SQUARE]
    found = found_in(tmp_path, pixels)
    truth = np.zeros((256, 256), dtype=bool)
    truth[64:192, 80:200] = True
    assert (found.mask & truth).sum() / (found.mask | truth).sum() > 0.95
    assert found.pitch_px0 == 2.0 and found.note == ""


def test_bare_glass_is_empty_and_full_tissue_is_full(tmp_path: Path) -> None:
    assert not found_in(tmp_path, glass()).mask.any()
    assert found_in(tmp_path, tissue()).mask.mean() > 0.99
    # Pale and dark tissue without any glass: Otsu alone would take the pale half for glass.
    half = tissue()
    half[:, :256] = 255 - (255 - half[:, :256]) * 0.35
    assert found_in(tmp_path, half).mask.mean() > 0.97


def test_tinted_glass_is_still_glass(tmp_path: Path) -> None:
    pixels = glass() * (1.0, 0.97, 0.9)
    assert not found_in(tmp_path, pixels).mask.any()


def test_stain_smeared_over_the_glass_is_no_tissue(tmp_path: Path) -> None:
    pixels = glass()
    pixels[100:300, 100:300] = (240, 205, 225)
    pixels[350:450, 50:450] = tissue()[350:450, 50:450]
    found = found_in(tmp_path, pixels)
    assert found.mask[60:140, 70:140].mean() < 0.02
    assert found.mask[180:220, 40:210].mean() > 0.95


@pytest.mark.parametrize(
    ("ink", "expected"),
    [
        ((40, 70, 170), Place.PEN),
        ((30, 120, 160), Place.PEN),
        ((40, 140, 70), Place.PEN),
        ((80, 82, 84), Place.PEN),
        ((20, 20, 24), Place.DARK),
    ],
)
def test_ink_is_told_from_tissue(tmp_path: Path, ink: tuple[int, int, int], expected: Place) -> None:
    pixels = glass()
    pixels[SQUARE] = tissue()[SQUARE]
    stroke = (slice(20, 90), slice(60, 440))
    across = (slice(300, 340), slice(60, 500))
    for area in (stroke, across):
        pixels[area] = np.asarray(ink) + np.random.default_rng(1).normal(0, 6, (*pixels[area].shape[:2], 1))
    found = found_in(tmp_path, pixels)
    assert (block(pixels, found, stroke) == expected).mean() > 0.97
    assert (block(pixels, found, across) == expected).mean() > 0.97
    assert (block(pixels, found, (slice(140, 280), slice(170, 390))) == Place.TISSUE).mean() > 0.97
    # The rim of a stroke is not taken for tissue either.
    assert not found.mask[:50].any()


def test_ink_is_kept_where_asked(tmp_path: Path) -> None:
    pixels = tissue()
    pixels[100:200, 100:400] = (40, 70, 170)
    kept = found_in(tmp_path, pixels, TissueSettings(reject_pen=False))
    assert not (kept.places == Place.PEN).any()


def test_haematoxylin_and_brown_are_no_ink(tmp_path: Path) -> None:
    pixels = tissue()
    pixels[:128] = np.where(pixels[:128, :, :1] < 150, [90, 84, 160], [150, 160, 200])  # blue counterstain
    pixels[128:256] = np.where(pixels[128:256, :, :1] < 150, [110, 70, 40], [190, 170, 150])  # DAB
    pixels[256:300] = np.where(pixels[256:300, :, :1] < 150, [55, 23, 57], [70, 30, 70])  # dense lymphocytes
    found = found_in(tmp_path, pixels)
    assert found.mask.mean() > 0.98


def test_blurred_tissue_is_left_out(tmp_path: Path) -> None:
    pixels = tissue()
    pixels[:, 256:] = ndimage.gaussian_filter(pixels, (3, 3, 0))[:, 256:]
    found = found_in(tmp_path, pixels)
    assert (found.places[:, :110] == Place.TISSUE).mean() > 0.98
    assert np.isin(found.places[:, 150:], [Place.BLUR, Place.GLASS]).mean() > 0.95
    assert found_in(tmp_path, pixels, TissueSettings(reject_blur=False)).mask[:, 150:].mean() > 0.5


@pytest.mark.parametrize("colour", [(0, 0, 180), (0, 200, 0), (90, 90, 90)])
def test_a_dark_background_is_no_brightfield_slide(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    pixels = np.full((512, 512, 3), 3.0)
    spots = ndimage.gaussian_filter(np.random.default_rng(0).random((512, 512)), 3) > 0.53
    pixels[spots] = colour
    with open_slide(entry(tmp_path, pixels)) as slide:
        plan = plan_tiles(slide, make_grid(MPP, 64))
    assert len(plan) == 0 and plan.reasons == {"dark": 64}
    assert "dark background" in plan.warnings[-1]


def test_a_slide_coarser_than_the_map_is_still_seen(tmp_path: Path) -> None:
    pixels = glass()
    pixels[SQUARE] = tissue()[SQUARE]
    with open_slide(entry(tmp_path, pixels, mpp=16.0)) as slide:
        found = tissue_mask(slide, TissueSettings())
    assert found.pitch_px0 == 2.0
    assert found.mask[70:186, 86:194].mean() > 0.9 and not found.mask[:50].any()


def polygon(*rings: list[tuple[float, float]]) -> dict[str, object]:
    return {"type": "Polygon", "coordinates": [[*ring, ring[0]] for ring in rings]}


OUTER = [(40.0, 40.0), (360.0, 40.0), (360.0, 360.0), (40.0, 360.0)]
HOLE = [(120.0, 120.0), (280.0, 120.0), (280.0, 280.0), (120.0, 280.0)]
INNER = [(160.0, 160.0), (240.0, 160.0), (240.0, 240.0), (160.0, 240.0)]


@pytest.mark.parametrize("shape", ["collection", "feature", "list", "multi", "geometries"])
def test_masks_are_drawn_with_holes_and_islands(tmp_path: Path, shape: str) -> None:
    ring, island = polygon(OUTER, HOLE), polygon(INNER)
    features = [{"type": "Feature", "properties": {}, "geometry": part} for part in (ring, island)]
    documents: dict[str, object] = {
        "collection": {"type": "FeatureCollection", "features": features},
        "list": features,
        "feature": {
            "type": "Feature",
            "geometry": {"type": "MultiPolygon", "coordinates": [ring["coordinates"], island["coordinates"]]},
        },
        "multi": {"type": "MultiPolygon", "coordinates": [island["coordinates"], ring["coordinates"]]},
        "geometries": {"type": "GeometryCollection", "geometries": [ring, island, {"type": "Point"}]},
    }
    file = tmp_path / "m.geojson"
    file.write_text(json.dumps(documents[shape]))
    inside = read_mask(file, 18.0, 0.0, 8.0, (60, 50))
    y, x = (np.mgrid[:60, :50] + 0.5) * 8
    x += 18
    square = [(abs(x - 200) < half) & (abs(y - 200) < half) for half in (160, 80, 40)]
    truth = square[0] & ~square[1] | square[2]
    assert np.array_equal(inside, truth)


def test_slanted_outlines_are_filled_by_pixel_centres(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 40))
    ring = 200 + rng.uniform(60, 260, 40)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    (tmp_path / "m.json").write_text(json.dumps(polygon([(float(x), float(y)) for x, y in ring])))
    inside = read_mask(tmp_path / "m.json", 10.0, -20.0, 7.3, (50, 60))
    for row, col in rng.integers(0, (50, 60), (400, 2)):
        x, y = 10.0 + (col + 0.5) * 7.3, -20.0 + (row + 0.5) * 7.3
        crossed = 0
        for (x1, y1), (x2, y2) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            if (y1 <= y) != (y2 <= y):
                crossed += x1 + (y - y1) / (y2 - y1) * (x2 - x1) < x
        assert inside[row, col] == crossed % 2


@pytest.mark.parametrize(
    "text", ["no json", '{"type": "Polygon"}', '{"type": "Polygon", "coordinates": [[[1, 2]]]}', "[]", "3", '{"a": 1}']
)
def test_what_is_no_mask_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.geojson").write_text(text)
    with pytest.raises(SlideError, match=r"m\.geojson"):
        read_mask(tmp_path / "m.geojson", 0, 0, 8.0, (10, 10))
    with pytest.raises(SlideError, match="cannot be read"):
        read_mask(tmp_path / "gone.geojson", 0, 0, 8.0, (10, 10))


def test_a_mask_restricts_tissue_and_may_replace_detection(tmp_path: Path) -> None:
    pixels = glass()
    pixels[SQUARE] = tissue()[SQUARE]
    (tmp_path / "m.geojson").write_text(json.dumps(polygon([(0, 0), (280, 0), (280, 512), (0, 512)])))
    with open_slide(entry(tmp_path, pixels)) as slide:
        grid = make_grid(MPP, 32)
        plan = plan_tiles(slide, grid, tmp_path / "m.geojson")
        drawn = plan_tiles(slide, make_grid(MPP, 32, tissue=TissueSettings(detect=False)), tmp_path / "m.geojson")
    assert {(int(x), int(y)) for x, y in zip(plan.x0, plan.y0, strict=True)} == {
        (x, y) for x in (160, 192, 224, 256) for y in range(128, 384, 32)
    }
    # The fifth column is three quarters inside the mask; the glass left of the tissue counts as glass.
    assert plan.tissue.max() > 0.97 and plan.tissue[plan.x0 == 256].max() < 0.8
    assert plan.reasons == {"glass": 16 * 9 - 32, "outside mask": 16 * 7}
    assert len(drawn) == 16 * 9


def brute_share(found: TissueMap, place: Place, left: float, top: float, extent: float) -> float:
    """Share of a tile by looking at ten by ten points per level-0 pixel."""
    n = int(extent * 10)
    x = left + (np.arange(n) + 0.5) * extent / n
    y = top + (np.arange(n) + 0.5) * extent / n
    col, row = (x - found.x0) / found.pitch_px0, (y - found.y0) / found.pitch_px0
    good_x = (x >= found.x0) & (x < found.x0 + found.width0) & (col < found.places.shape[1])
    good_y = (y >= found.y0) & (y < found.y0 + found.height0) & (row < found.places.shape[0])
    here = found.places[np.clip(row.astype(int), 0, None)[good_y][:, None], col.astype(int)[good_x]]
    return float((here == place).sum()) / n**2


def test_shares_are_exact_for_fractions_of_map_pixels() -> None:
    rng = np.random.default_rng(3)
    places = rng.choice([0, 1, 2, 4], (12, 17), p=[0.2, 0.6, 0.1, 0.1]).astype(np.uint8)
    found = TissueMap(places, 30, 50, 88, 61, 5.3)
    left, top = rng.uniform(0, 110, 40), rng.uniform(20, 100, 40)
    kept, share, reasons = judge_tiles(found, left, top, 13.7, min_tissue=0.5, max_pen=0.1)
    for i in range(40):
        expected = brute_share(found, Place.TISSUE, left[i], top[i], 13.7)
        pen = brute_share(found, Place.PEN, left[i], top[i], 13.7)
        assert share[i] == pytest.approx(expected, abs=0.01)
        pen += brute_share(found, Place.DARK, left[i], top[i], 13.7)
        if min(abs(expected - 0.5), abs(pen - 0.1)) > 0.01:
            assert kept[i] == (expected >= 0.5 and pen <= 0.1)
    assert sum(reasons.values()) == (~kept).sum() and "off slide" in reasons


def test_synthetic_slides_match_their_truth(tmp_path: Path) -> None:
    for seed in (0, 1):
        file = tmp_path / f"s{seed}.tif"
        truth = draw_slide(file, seed=seed, width0=2048, height0=2048, scanner=seed, pen=True)
        with open_slide(SlideEntry(file.stem, file)) as slide:
            found = tissue_mask(slide, TissueSettings())
            plan = plan_tiles(slide, make_grid(0.5, 128))
        size = found.places.shape[::-1]
        real, ink = (
            np.asarray(Image.fromarray(part).resize(size, Image.Resampling.NEAREST))
            for part in (truth.tissue, truth.pen)
        )
        assert (found.mask & real).sum() / (found.mask | real).sum() > 0.93
        assert (found.mask & ink & ~real).sum() <= 0.02 * max(1, ink.sum())
        cell = truth.class_map_px0
        shares = [
            truth.tissue[y0 // cell : (y0 + 128) // cell, x0 // cell : (x0 + 128) // cell].mean()
            for x0, y0 in zip(plan.x0, plan.y0, strict=True)
        ]
        # The map closes clefts that the truth leaves open, so single tiles may differ.
        assert np.mean(np.abs(shares - plan.tissue)) < 0.05 and min(shares) > 0.25


@pytest.mark.shared_data
def test_real_slides_have_the_tissue_that_one_sees(shared_data: Path) -> None:
    # Shares of the slide as judged by eye on overlays of the maps.
    seen = {
        "cmu-1-small-region": 0.40,
        "colon_traditional_serrated_adenoma": 0.445,
        "her2st_C2": 0.175,
        "oral_squamous_cell_carcinoma": 0.29,
        "tcga-cr-7395-01a-01-ts1": 0.645,
    }
    for slide_entry in discover([shared_data / "slides"], shared_data / "slides/manifest.csv"):
        with open_slide(slide_entry) as slide:
            found = tissue_mask(slide, TissueSettings())
        assert found.mask.mean() == pytest.approx(seen[slide_entry.slide_id], abs=0.02)
        assert (found.places == Place.PEN).mean() < 0.002
        assert (found.places == Place.BLUR).mean() < 0.005


@pytest.mark.shared_data
def test_ink_on_a_real_slide(shared_data: Path, tmp_path: Path) -> None:
    with open_slide(SlideEntry("c", shared_data / "slides/cmu-1-small-region.svs")) as slide:
        pixels = slide.read_region(0, 0, 0, slide.info.width0, slide.info.height0).astype(np.float64)
    strokes = [((40, 80, 190), 300), ((30, 130, 80), 900), ((60, 60, 62), 1500)]
    for ink, top in strokes:
        pixels[top : top + 120, 100:2100] *= np.asarray(ink) / 245.0
    where = entry(tmp_path, pixels, mpp=0.499)
    with open_slide(where) as slide:
        found = tissue_mask(slide, TissueSettings())
    for _, top in strokes:
        rows = slice(int((top + 30) / found.pitch_px0), int((top + 90) / found.pitch_px0))
        assert found.mask[rows].mean() < 0.05


@pytest.mark.shared_data
def test_fluorescence_is_empty_with_its_reason(shared_data: Path) -> None:
    path = shared_data / "slides_odd/fluorescence_dapi.ndpi"
    with open_slide(SlideEntry("f", path)) as slide:
        plan = plan_tiles(slide, make_grid(0.5, 224))
    assert len(plan) == 0 and set(plan.reasons) == {"dark"}
