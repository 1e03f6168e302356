"""Bad input: one clear sentence, the right exit code, no traceback, nothing half-written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest


def check(outcome, code: int, *words: str) -> None:
    text = outcome.out + outcome.err
    assert outcome.code == code, text
    assert "Traceback" not in text
    for word in words:
        assert word in text, text


def test_a_missing_folder(histoseek: Callable, tiny_encoder: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    outcome = histoseek("index", tmp_path / "nowhere", "--store", store, "--encoder", tiny_encoder)
    check(outcome, 2, "nowhere")
    assert not store.exists()


def test_a_folder_without_slides(histoseek: Callable, tiny_encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "slides").mkdir()
    store = tmp_path / "store"
    check(histoseek("index", tmp_path / "slides", "--store", store, "--encoder", tiny_encoder), 2, "no slide")
    assert not store.exists()


def test_a_text_file_named_svs_is_quarantined_and_the_cohort_goes_on(
    histoseek: Callable, cohort_folder: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    good = sorted(cohort_folder.glob("*.tif*"))[0]
    (slides / good.name).symlink_to(good)
    (slides / "letter.svs").write_text("Dear pathologist,")
    outcome = histoseek("index", slides, "--store", tmp_path / "store", "--encoder", tiny_encoder, "--json")
    check(outcome, 3)
    report = json.loads(outcome.out)
    assert report["indexed"] == 1
    assert [row["slide_id"] for row in report["quarantined"]] == ["letter"]
    status = json.loads(histoseek("status", "--store", tmp_path / "store", "--json").out)
    assert status["slides"] == {"registered": 0, "indexed": 1, "empty": 0, "quarantined": 1}


def test_a_truncated_slide_is_quarantined(
    histoseek: Callable, cohort_folder: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    whole = sorted(cohort_folder.glob("*.tif*"))[0].read_bytes()
    cut = tmp_path / "cut.tif"
    cut.write_bytes(whole[: len(whole) // 3])
    outcome = histoseek("index", cut, "--store", tmp_path / "store", "--encoder", tiny_encoder)
    check(outcome, 3, "cut")


@pytest.mark.parametrize("command", ["status", "verify", "sql", "search", "classify", "export"])
def test_an_absent_store(histoseek: Callable, command: str, tmp_path: Path) -> None:
    more = {
        "sql": ["SELECT 1"],
        "search": ["--tile", "a@0,0"],
        "classify": ["--label", "organ"],
        "export": ["--parquet", tmp_path / "x.parquet"],
    }.get(command, [])
    absent = tmp_path / "absent"
    check(histoseek(command, "--store", absent, *more), 1, "absent")
    assert not absent.exists()
    assert not (tmp_path / "x.parquet").exists()


def test_a_folder_that_is_no_store(histoseek: Callable, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.txt").write_text("meow")
    check(histoseek("status", "--store", tmp_path / "photos"), 1, "photos")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.txt"]


def test_an_unknown_config_key_names_the_nearest(histoseek: Callable, tmp_path: Path) -> None:
    (tmp_path / "tiles").mkdir()
    run = tmp_path / "run"
    outcome = histoseek("pretrain", "contrastive-small", "--tiles", tmp_path / "tiles", "--out", run, "max_stepps=3")
    check(outcome, 2, "max_stepps", "max_steps")
    assert not run.exists()


def test_an_unknown_config(histoseek: Callable, tmp_path: Path) -> None:
    outcome = histoseek("pretrain", "contrastif", "--tiles", tmp_path, "--out", tmp_path / "run")
    check(outcome, 2, "contrastif", "contrastive-small")


def test_an_encoder_that_the_store_does_not_hold(histoseek: Callable, tiny_store: Path) -> None:
    outcome = histoseek("search", "--store", tiny_store, "--tile", "slide_0@0,0", "--encoder", "uni")
    check(outcome, 2, "uni", "tiny")


def test_a_misspelt_column_names_the_nearest(histoseek: Callable, tiny_store: Path) -> None:
    key = json.loads(histoseek("sql", "--store", tiny_store, "SELECT tile_key FROM tiles LIMIT 1", "--json").out)
    tile = key["rows"][0]["tile_key"]
    outcome = histoseek("search", "--store", tiny_store, "--tile", tile, "--where", "tisue > 0.5")
    check(outcome, 2, "tisue", "tissue")
    outcome = histoseek("search", "--store", tiny_store, "--tile", tile, "--where", "tissue >")
    check(outcome, 2, "tissue >")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--tile", "slide_0@0,0", "--image", "x.png"],
        [],
        ["--slide", "slide_0"],
        ["--slide", "slide_0", "--at", "here"],
        ["--slide", "slide_0", "--at", "inf,5"],
        ["--tile", "slide_0@0,0", "--image-mpp", "0.5"],
    ],
)
def test_an_ambiguous_query(histoseek: Callable, tiny_store: Path, arguments: list[str]) -> None:
    check(histoseek("search", "--store", tiny_store, *arguments), 2, "error:")


def test_sql_may_only_read(histoseek: Callable, tiny_store: Path, tmp_path: Path) -> None:
    for text, reason in (
        ("DROP TABLE slides", "single SELECT"),
        (f"COPY slides TO '{tmp_path / 'x.csv'}'", "single SELECT"),
        ("SELECT * FROM read_csv('/etc/passwd')", "disabled by configuration"),
        ("SELECT 1; SELECT 2", "single SELECT"),
    ):
        check(histoseek("sql", "--store", tiny_store, text), 2, reason)
    assert not (tmp_path / "x.csv").exists()


def test_a_slide_with_no_mpp_says_what_to_add(histoseek: Callable, tiny_encoder: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (512, 512), (200, 120, 170)).save(tmp_path / "field.png")
    outcome = histoseek("index", tmp_path / "field.png", "--store", tmp_path / "store", "--encoder", tiny_encoder)
    check(outcome, 3, "field", "mpp", "manifest")


def test_a_bad_shard(histoseek: Callable, cohort_folder: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    outcome = histoseek("index", cohort_folder, "--store", store, "--encoder", tiny_encoder, "--shard", "4/3")
    check(outcome, 2, "4/3")
    assert not store.exists()


def test_a_new_store_needs_an_encoder(histoseek: Callable, cohort_folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    check(histoseek("index", cohort_folder, "--store", store), 2, "--encoder")
    assert not store.exists()


def test_options_that_would_do_nothing_are_refused(histoseek: Callable, tiny_store: Path, tmp_path: Path) -> None:
    export = ["export", "--store", tiny_store]
    check(histoseek(*export, "--tiles", tmp_path / "t", "--encoder", "tiny"), 2, "--encoder")
    check(histoseek(*export, "--parquet", tmp_path / "p", "--label", "organ"), 2, "--label")
    check(histoseek("evaluate", "--store", tiny_store, "--label", "organ", "--device", "cpu"), 2, "--device")
    check(histoseek("evaluate", "--tiles", tmp_path, "--encoder", "colour", "--grid", "g"), 2, "--grid")
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way_is_one_sentence(histoseek: Callable, tiny_store: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    inside = tmp_path / "file" / "x.parquet"
    check(histoseek("export", "--store", tiny_store, "--parquet", inside), 2, "file")
    check(histoseek("demo", "--slides", tmp_path, "--out", tmp_path / "file"), 2, "file")
