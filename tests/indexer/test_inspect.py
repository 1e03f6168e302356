"""A look at slides never raises and says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from encoder.progress import SilentReporter
from indexer.grid import make_grid
from indexer.inspect import inspect
from indexer.manifest import SlideEntry, discover
from indexer.synthetic import draw_slide


class Counting(SilentReporter):
    """Counts what is reported."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def advance(self, n: int = 1, detail: str = "") -> None:
        self.seen.append(detail)


def test_good_and_bad_slides_are_reported_in_order(tmp_path: Path) -> None:
    truth = draw_slide(tmp_path / "good.tif", seed=1, width0=1024, height0=1024)
    (tmp_path / "text.svs").write_text("no slide")
    reporter = Counting()
    good, coarse, bad, gone = inspect(
        [
            SlideEntry("good", tmp_path / "good.tif"),
            SlideEntry("coarse", tmp_path / "good.tif", mpp=3.0),
            SlideEntry("text", tmp_path / "text.svs"),
            SlideEntry("gone", tmp_path / "gone.svs"),
        ],
        None,
        make_grid(0.5, 128),
        reporter,
    )
    assert reporter.seen == ["good", "coarse", "text", "gone"]
    assert (good.width0, good.height0, good.mpp_source, good.reader, good.problem) == (1024, 1024, "reader", "vips", "")
    assert good.mpp == pytest.approx(0.5) and good.level_mpps[1] == pytest.approx(1.0)
    assert good.tiles and good.reasons is not None
    assert good.tiles + sum(good.reasons.values()) == 64
    assert good.tissue_share == pytest.approx(float(truth.tissue.mean()), abs=0.12)
    assert "upsampling" in coarse.problem and coarse.mpp == 3.0 and coarse.manifest_line == ""
    assert any("disagree" in w or "says" in w for w in coarse.warnings)
    assert "text.svs" in bad.problem and bad.vendor is None and bad.tiles is None
    assert "does not exist" in gone.problem
    for report in (good, coarse, bad, gone):
        json.dumps(report.to_dict())


def test_a_slide_without_scale_carries_its_manifest_line(tmp_path: Path) -> None:
    Image.new("RGB", (512, 512), (200, 120, 170)).save(tmp_path / "a.png", dpi=(96, 96))
    entry = SlideEntry("a,b", tmp_path / "a.png")
    (report,) = inspect([entry])
    assert report.manifest_line == '"a,b",MPP' and report.manifest_line in report.problem
    (assumed,) = inspect([entry], cohort_mpp=0.5)
    assert (assumed.mpp, assumed.mpp_source, assumed.problem) == (0.5, "cohort", "")


@pytest.mark.shared_data
def test_every_real_and_odd_slide_is_reported(shared_data: Path) -> None:
    entries = discover([shared_data / "slides"], shared_data / "slides/manifest.csv")
    reports = inspect([*entries, *discover([shared_data / "slides_odd"])])
    by_id = {report.slide_id: report for report in reports}
    assert all(by_id[entry.slide_id].problem == "" and by_id[entry.slide_id].tiles for entry in entries)
    assert by_id["CropBreastSlide"].manifest_line == "CropBreastSlide,MPP"
    assert by_id["fluorescence_dapi"].tiles == 0 and "dark" in (by_id["fluorescence_dapi"].reasons or {})
    bad = {"histolab_broken", "unopenable", "unreadable", "small_dicom", "os-1-detail.ome", "boxes", "CropBreastSlide"}
    assert {slide_id for slide_id, report in by_id.items() if report.problem} == bad
