"""Evaluation on tile folders and stores: the rule that is used, what is left out, the page."""

from __future__ import annotations

import json
import re

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from encoder.contract import EncoderSpec
from encoder.errors import QueryError
from query.evaluate import evaluate_store, evaluate_tiles
from query.report import report_html, write_report

CLASSES = {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200)}


class ToyEncoder:
    """Mean colour, or noise that knows nothing."""

    def __init__(self, name: str, blind: bool = False, mpp: float | None = None) -> None:
        self.spec = EncoderSpec(name, "random", {"kind": "toy"}, 3, 16, mpp, (0, 0, 0), (1, 1, 1))
        self._blind, self._rng = blind, np.random.default_rng(0)

    def embed(self, tiles):
        if self._blind:
            return self._rng.standard_normal((len(tiles), 3)).astype(np.float32)
        return tiles.reshape(len(tiles), -1, 3).mean(axis=1).astype(np.float32) - 100


def write_tiles(folder, columns, per_class=12, extra_rows=()):
    """Noisy squares per class; `columns(class, n)` gives the other cells of a row."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    rows = []
    for name, colour in CLASSES.items():
        for n in range(per_class):
            noisy = np.clip(np.array(colour) + rng.normal(0, 30, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / "images" / f"{name}{n}.png")
            rows.append({"file": f"{name}{n}.png", "label": name} | columns(name, n))
    rows += extra_rows
    head = list(dict.fromkeys(key for row in rows for key in row))
    lines = [",".join(head), *(",".join(str(row.get(key, "")) for key in head) for row in rows)]
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder


def test_encoders_are_compared_by_left_out_patients(tmp_path):
    folder = write_tiles(tmp_path / "t", lambda name, n: {"patient_id": f"p{n % 4}"})
    found = evaluate_tiles(folder, [ToyEncoder("sees"), ToyEncoder("blind", blind=True)], k=5)
    sees, blind = found.encoders
    assert sees.outcome.score.value == 1.0 and blind.outcome.score.value < 0.7
    assert found.best is sees
    assert sees.task.rule == "tiles of other patient groups vote" and sees.outcome.score.units == 4
    assert sees.task.warnings == () and sees.task.chance == pytest.approx(1 / 3)
    text = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert text["encoders"][0]["balanced_accuracy"] == 1.0
    assert text["encoders"][1]["interval"][0] <= text["encoders"][1]["balanced_accuracy"]


def test_a_marked_split_decides(tmp_path):
    folder = write_tiles(tmp_path / "t", lambda name, n: {"split": ["train", "train", "test", "val"][n % 4]})
    task = evaluate_tiles(folder, [ToyEncoder("sees")], k=3).encoders[0].task
    assert task.rule == "rows marked train vote for rows marked test"
    assert task.reference.size == 18 and task.queries.size == 9
    assert "9 labelled tiles are marked neither train nor test and take no part." in task.notes


def test_split_that_shares_patients_warns_and_one_sided_classes_are_left_out(tmp_path):
    def columns(name, n):
        return {"patient_id": f"p{n % 3}", "split": "train" if n % 2 or name == "blue" else "test"}

    folder = write_tiles(tmp_path / "t", columns)
    task = evaluate_tiles(folder, [ToyEncoder("sees")], k=3).encoders[0].task
    assert task.left_out == {"blue": "no tile of it is marked test"}
    assert any("3 patient groups have tiles in both train and test" in text for text in task.warnings)


def test_random_split_is_warned_about(tmp_path):
    folder = write_tiles(tmp_path / "t", lambda name, n: {"split": "train"})
    task = evaluate_tiles(folder, [ToyEncoder("sees")], k=3).encoders[0].task
    assert any("far too high" in text for text in task.warnings)
    assert any("column split" in text for text in task.warnings)
    assert task.unit_name == "tiles"


def test_a_class_of_one_patient_is_left_out(tmp_path):
    folder = write_tiles(tmp_path / "t", lambda name, n: {"patient_id": "p0" if name == "red" else f"p{n % 3}"})
    outcome = evaluate_tiles(folder, [ToyEncoder("sees")], k=3).encoders[0]
    assert outcome.task.left_out == {"red": "only one patient group has it"}
    assert outcome.outcome.score.value == 1.0 and outcome.outcome.recalls["red"] == 0.0
    assert outcome.task.chance == 0.5


def test_unlabelled_and_broken_pictures_are_said(tmp_path):
    rows = [{"file": "odd.png"}, {"file": "broken.png", "label": "red"}]
    folder = write_tiles(tmp_path / "t", lambda name, n: {"slide_id": f"s{n % 2}"}, extra_rows=rows)
    Image.new("RGB", (16, 16)).save(folder / "images" / "odd.png")
    (folder / "images" / "broken.png").write_bytes(b"\x89PNG broken")
    item = evaluate_tiles(folder, [ToyEncoder("sees")], k=3).encoders[0]
    assert item.task.queries.size == 36 and item.task.unit_name == "slides"
    assert any("1 tiles have no label" in text for text in item.task.notes)
    assert any("1 pictures could not be read" in text and "broken.png" in text for text in item.task.warnings)


def test_scale_that_does_not_fit_is_said(tmp_path):
    folder = write_tiles(tmp_path / "t", lambda name, n: {"mpp": 0.5, "patient_id": f"p{n % 3}"})
    coarse, fitting = evaluate_tiles(folder, [ToyEncoder("a", mpp=1.0), ToyEncoder("b", mpp=0.5)], k=3).encoders
    assert coarse.notes == ("made for 1 um/px, sees these tiles at 0.5 um/px",) and fitting.notes == ()


def test_wrong_folders_are_refused(tmp_path):
    folder = write_tiles(tmp_path / "t", lambda name, n: {})
    with pytest.raises(QueryError, match="No encoder"):
        evaluate_tiles(folder, [])
    with pytest.raises(QueryError, match="no label 'grade'"):
        evaluate_tiles(folder, [ToyEncoder("a")], label="grade")
    (folder / "labels.csv").unlink()
    with pytest.raises(QueryError, match="has no labels"):
        evaluate_tiles(folder, [ToyEncoder("a")])


def test_store_encoders_are_compared(tmp_path, write_store):
    slides = [{"slide_id": f"s{n}", "patient_id": f"p{n}", "grade": "ab"[n % 2]} for n in range(4)]
    path = tmp_path / "store"
    small = write_store(path, slides, side=4, spread=0.05, extra={"grade": pa.string()})
    write_store(path, slides, side=4, seed=7, spread=9.0, encoder_id="noise-00000000")
    names = np.array(["t", "s", "f", "l"])[small.cluster].tolist()
    small.store.annotate("kind", names, small.slide.tolist(), small.tile_id.tolist(), small.grid_id)
    found = evaluate_store(str(path), "kind", k=5)
    assert [item.encoder for item in found.encoders] == ["noise", "toy"]
    assert found.encoders[1].outcome.score.value > 0.9 > found.encoders[0].outcome.score.value
    assert found.encoders[0].task.rule == "tiles of other patients vote for a tile"
    assert [item.encoder for item in evaluate_store(str(path), "grade", ["noise"]).encoders] == ["noise"]
    with pytest.raises(QueryError, match="holds no vectors of encoder 'other'"):
        evaluate_store(str(path), "grade", ["other"])


def test_report_is_one_page_that_needs_nothing(tmp_path):
    def columns(name, n):
        return {"patient_id": "p0" if name == "red" else f"p{n % 3}"}

    folder = write_tiles(tmp_path / "t<b>", columns)
    found = evaluate_tiles(folder, [ToyEncoder("sees"), ToyEncoder("<script>", blind=True)], k=3)
    page = write_report(found, tmp_path / "out" / "report.html").read_text()
    assert page == report_html(found)
    assert not re.search(r"(src|href)\s*=|https?:|<script", page)
    assert "&lt;script&gt;" in page and "red: only one patient group has it" in page
    assert "100.0 %" in page and "Guessing gives 50.0 %" in page
    assert page.count("<table") == page.count("</table>") == 4
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["report.html"]


@pytest.mark.shared_data
def test_colour_statistics_on_real_tiles(shared_data):
    from encoder.registry import load_encoder

    found = evaluate_tiles(shared_data / "tiles_kather_sample", [load_encoder("colour")], k=5)
    assert found.encoders[0].outcome.score.value > 0.4
    assert found.encoders[0].task.warnings
