"""The segment command and several seeds of a run, as a user gives them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from encoder.progress import SilentReporter
from tests.encoder.nuclei_pictures import nuclei_picture
from ui.shipped import config_path

OVERRIDES = [
    *("tile_px=96", "batch=4", "max_steps=8", "max_seconds=null", "tensorboard=false"),
    *("monitor.tiles=8", "monitor.looks=1", "method.window.side_px=32", "method.window.stride_px=16"),
    *("method.least_coverage=0", "method.most_coverage=1"),
]


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four fields of 96 px with drawn nuclei, one broken picture, and a table of their scale."""
    from scipy import ndimage

    folder = tmp_path_factory.mktemp("fields")
    for name in ("images", "masks"):
        (folder / name).mkdir()
    names = [f"field-{seed}.png" for seed in range(8)]
    for seed, name in enumerate(names):
        picture, mask = nuclei_picture(seed, side=96)
        Image.fromarray(picture).save(folder / "images" / name)
        Image.fromarray(ndimage.label(mask)[0].astype(np.uint16)).save(folder / "masks" / name)
    (folder / "tiles.csv").write_text("file,mpp\n" + "".join(f"{name},0.5\n" for name in names))
    return folder


@pytest.fixture(scope="module")
def segmenter(fields: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The best of two seeds that are too short to find nuclei well, but keep a map."""
    from encoder.config import load_config
    from encoder.seeds import train_seeds
    from encoder.tiles import open_for_training

    out = tmp_path_factory.mktemp("runs") / "seeds"
    config = load_config(config_path("patch_contrast-small"), OVERRIDES)
    source = open_for_training([fields], config.tile_px, config.mpp, SilentReporter())
    assert train_seeds(config, source, out, 2, SilentReporter(), "cpu").finished
    return out


def test_seeds_are_summed_up_and_the_best_is_kept(histoseek: Callable, fields: Path, segmenter: Path) -> None:
    summary = json.loads((segmenter / "seeds.json").read_text())
    scores = {int(seed): metrics["score"] for seed, metrics in summary["metrics"].items()}
    assert set(scores) == {0, 1}
    assert summary["best_seed"] == max(scores, key=lambda seed: scores[seed])
    spread = summary["spread"]["score"]
    assert spread["mean"] == pytest.approx(np.mean(list(scores.values())))
    assert spread["std"] == pytest.approx(np.std(list(scores.values()), ddof=1))
    kept = (segmenter / "checkpoint" / "encoder.safetensors").read_bytes()
    assert kept == (segmenter / f"seed-{summary['best_seed']}" / "checkpoint" / "encoder.safetensors").read_bytes()
    again = histoseek(
        "pretrain", "patch_contrast-small", *OVERRIDES, "--tiles", fields, "--out", segmenter, "--seeds", 2
    )
    assert again.code == 0 and again.err.count("Nothing to do") == 2


def test_fields_are_segmented_drawn_and_measured(
    histoseek: Callable, fields: Path, segmenter: Path, tmp_path: Path
) -> None:
    out = tmp_path / "nuclei"
    outcome = histoseek(
        "segment", "--encoder", segmenter, "--tiles", fields, "--masks", fields / "masks", "--out", out, "--json"
    )
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert len(report["fields"]) == 8 and not report["failed"]
    assert set(report["means"]) >= {"dice", "classical_dice"}
    assert report["means"]["classical_dice"] > 0.8
    for field in report["fields"]:
        numbers = np.asarray(Image.open(out / f"{field['name']}-instances.png"))
        assert numbers.shape == (96, 96) and numbers.max() == field["nuclei"]
        with (out / f"{field['name']}.csv").open() as table:
            rows = list(csv.DictReader(table))
        assert len(rows) == field["nuclei"]
        areas = [float(row["area_um2"]) for row in rows]
        assert sum(areas) == pytest.approx((numbers > 0).sum() * 0.25, rel=1e-3)
        drawn = np.asarray(Image.open(out / f"{field['name']}-outlines.png"))
        picture = np.asarray(Image.open(fields / "images" / f"{field['name']}.png"))
        assert ((drawn != picture).any(axis=2) <= (numbers > 0)).all()


def test_a_broken_picture_is_reported_and_the_others_go_on(
    histoseek: Callable, segmenter: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(nuclei_picture(1, side=64)[0]).save(folder / "good.png")
    (folder / "bad.png").write_bytes(b"no picture")
    outcome = histoseek("segment", "--encoder", segmenter, "--tiles", folder, "--mpp", 0.5, "--out", tmp_path / "out")
    assert outcome.code == 3
    assert "not segmented: bad.png" in outcome.out
    assert (tmp_path / "out" / "good-outlines.png").exists()


def test_a_field_of_a_slide(histoseek: Callable, cohort_folder: Path, segmenter: Path, tmp_path: Path) -> None:
    slide = next(path for path in sorted(cohort_folder.iterdir()) if path.suffix == ".tif")
    given = ["segment", "--encoder", segmenter, "--slide", slide, "--field-um", 60]
    outcome = histoseek(*given, "--at", "700,700", "--out", tmp_path / "out", "--cohort-mpp", 0.5, "--json")
    assert outcome.code == 0, outcome.err
    name = json.loads(outcome.out)["fields"][0]["name"]
    assert name == f"{slide.stem}@640,640"
    assert Image.open(tmp_path / "out" / f"{name}-outlines.png").size == (120, 120)
    outside = histoseek(*given, "--at", "99999,5", "--out", tmp_path / "other", "--cohort-mpp", 0.5)
    assert outside.code == 2 and "outside slide" in outside.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Give --tiles, or --slide and --at"),
        (["--slide", "x.tif"], "Give --at X,Y"),
    ],
)
def test_incomplete_requests(
    histoseek: Callable, segmenter: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    outcome = histoseek("segment", "--encoder", segmenter, *arguments, "--out", tmp_path / "out")
    assert outcome.code == 2 and said in outcome.err


def test_an_encoder_that_does_not_segment(histoseek: Callable, fields: Path, tmp_path: Path) -> None:
    outcome = histoseek("segment", "--encoder", "colour", "--tiles", fields, "--out", tmp_path / "out")
    assert outcome.code == 1 and "does not segment" in outcome.err
    assert not (tmp_path / "out").exists()


def test_pictures_without_scale(histoseek: Callable, segmenter: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(nuclei_picture(1, side=64)[0]).save(folder / "good.png")
    outcome = histoseek("segment", "--encoder", segmenter, "--tiles", folder, "--out", tmp_path / "out")
    assert outcome.code == 2 and "Give --mpp" in outcome.err


def test_the_segmenter_indexes_and_searches(
    histoseek: Callable, cohort_folder: Path, segmenter: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    outcome = histoseek("index", cohort_folder, "--manifest", cohort_folder / "manifest.csv", "--store", store,
                        "--encoder", segmenter, "--tile", 96, "--mpp", 0.5)  # fmt: skip
    assert outcome.code == 0, outcome.err
    key = json.loads(histoseek("sql", "--store", store, "SELECT tile_key FROM tiles LIMIT 1", "--json").out)
    hits = histoseek("search", "--store", store, "--tile", key["rows"][0]["tile_key"], "-k", 4, "--json")
    assert len(json.loads(hits.out)["hits"]) == 4
