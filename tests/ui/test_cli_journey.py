"""The main job by command: index, search, classify, evaluate, ask, take out, check."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image


def read(outcome) -> dict:
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


@pytest.fixture
def some_tile(histoseek: Callable, tiny_store: Path) -> str:
    text = "SELECT tile_key FROM tiles WHERE slide_id = (SELECT min(slide_id) FROM slides) ORDER BY tile_id LIMIT 1"
    return read(histoseek("sql", "--store", tiny_store, text, "--json"))["rows"][0]["tile_key"]


def test_a_tile_finds_itself_first(histoseek: Callable, tiny_store: Path, some_tile: str, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    outcome = histoseek("search", "--store", tiny_store, "--tile", some_tile, "-k", 5, "--montage", sheet, "--json")
    hits = read(outcome)["hits"]
    assert [hit["rank"] for hit in hits] == [1, 2, 3, 4, 5]
    assert hits[0]["tile_key"] == some_tile
    assert hits[0]["distance"] <= 1e-6
    assert set(hits[0]) >= {"rank", "slide_id", "x0", "y0", "extent_px0", "distance"}
    with Image.open(sheet) as image:
        assert image.width > 500


def test_a_point_and_other_slides_only(histoseek: Callable, tiny_store: Path, some_tile: str) -> None:
    slide, _, place = some_tile.partition("@")
    x0, y0 = (int(part) + 5 for part in place.split(","))
    outcome = histoseek(
        "search", "--store", tiny_store, "--slide", slide, "--at", f"{x0},{y0}", "--exclude", "slide", "--json",
        "-k", 6, "--per-slide", 3,
    )  # fmt: skip
    hits = read(outcome)["hits"]
    assert len(hits) == 6
    assert slide not in {hit["slide_id"] for hit in hits}
    assert max(sum(hit["slide_id"] == name for hit in hits) for name in {hit["slide_id"] for hit in hits}) == 3


def test_a_filter_that_leaves_seven_rows_returns_seven(histoseek: Callable, tiny_store: Path, some_tile: str) -> None:
    text = "SELECT tile_id FROM tiles ORDER BY tile_id LIMIT 7"
    rows = read(histoseek("sql", "--store", tiny_store, text, "--json"))["rows"]
    where = f"tile_id IN ({', '.join(str(row['tile_id']) for row in rows)})"
    outcome = histoseek("search", "--store", tiny_store, "--tile", some_tile, "--where", where, "--json")
    assert len(read(outcome)["hits"]) == 7


def test_a_picture_of_a_tile_finds_the_tile(
    histoseek: Callable, tiny_store: Path, some_tile: str, tmp_path: Path
) -> None:
    from query import open_cohort

    cohort = open_cohort(str(tiny_store))
    hit = cohort.search(some_tile, k=1)
    picture = tmp_path / "tile.jpg"
    images = cohort.store.tile_images(hit.plan.grid_id, hit.tile_ids.tolist())
    picture.write_bytes(images[int(hit.tile_ids[0])])
    outcome = histoseek("search", "--store", tiny_store, "--image", picture, "--image-mpp", 1.0, "-k", 1, "--json")
    assert read(outcome)["hits"][0]["tile_key"] == some_tile


def test_text_output_is_a_table(histoseek: Callable, tiny_store: Path, some_tile: str) -> None:
    outcome = histoseek("search", "--store", tiny_store, "--tile", some_tile, "-k", 2)
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["rank", "slide_id", "x0", "y0", "extent_px0", "distance", "percentile"]
    assert lines[2].split()[0] == "1"


def test_a_second_run_has_nothing_to_do(
    histoseek: Callable, store_copy: Path, cohort_folder: Path, tiny_encoder: Path
) -> None:
    arguments = ["--manifest", cohort_folder / "manifest.csv", "--keep-images", "--encoder", tiny_encoder, "--json"]
    report = read(histoseek("index", cohort_folder, "--store", store_copy, *arguments))
    assert (report["indexed"], report["already"], report["tiles"]) == (0, 3, 0)


def test_the_store_remembers_slides_and_encoder(histoseek: Callable, store_copy: Path) -> None:
    report = read(histoseek("index", "--store", store_copy, "--mpp", 2.0, "--tile", 48, "--json"))
    assert (report["indexed"], report["exit_code"]) == (3, 0)
    listed = read(histoseek("encoders", "--store", store_copy, "--json"))["encoders"]
    assert len(listed) == 2 and len({row["encoder_id"] for row in listed}) == 1


def test_status_and_verify_of_a_sound_store(histoseek: Callable, tiny_store: Path) -> None:
    status = read(histoseek("status", "--store", tiny_store, "--json"))
    assert status["slides"] == {"registered": 0, "indexed": 3, "empty": 0, "quarantined": 0}
    assert status["last_run"]["status"] == "finished"
    assert read(histoseek("verify", "--store", tiny_store, "--json"))["ok"] is True
    assert "indexed" in histoseek("status", "--store", tiny_store).out


def test_verify_finds_what_is_wrong(histoseek: Callable, store_copy: Path) -> None:
    from indexer.store import create_store

    store = create_store(str(store_copy))
    (name,) = [table for table in store.tables() if table.startswith("vectors_")]
    store.lance.delete("damage", name, "slide_no = 0")
    outcome = histoseek("verify", "--store", store_copy, "--json")
    assert outcome.code == 1
    assert json.loads(outcome.out)["problems"]


def test_classify_by_organ(histoseek: Callable, tiny_store: Path) -> None:
    document = read(histoseek("classify", "--store", tiny_store, "--label", "scanner", "--json"))
    assert "balanced_accuracy" in document and "interval" in document
    assert histoseek("classify", "--store", tiny_store, "--label", "scanner").code == 0


def test_tiles_out_and_evaluated(histoseek: Callable, tiny_store: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tiles"
    report = read(histoseek("export", "--store", tiny_store, "--tiles", folder, "--label", "scanner", "--json"))
    with (folder / "tiles.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == report["tiles"] == len(list((folder / "images").rglob("*.jp*g")))
    page = tmp_path / "report.html"
    outcome = histoseek(
        "evaluate", "--tiles", folder, "--encoder", tiny_encoder, "--encoder", "colour", "--report", page, "--json"
    )
    scores = read(outcome)["encoders"]
    assert [score["encoder"] for score in scores] == ["tiny", "colour"]
    assert "<table" in page.read_text()
    text = histoseek("evaluate", "--tiles", folder, "--encoder", tiny_encoder)
    assert text.code == 0 and "balanced accuracy" in text.out


def test_parquet_out(histoseek: Callable, tiny_store: Path, tmp_path: Path) -> None:
    target = tmp_path / "vectors.parquet"
    report = read(histoseek("export", "--store", tiny_store, "--parquet", target, "--json"))
    table = pq.read_table(target)
    assert table.num_rows == report["tiles"] > 0
    assert {"slide_id", "x0", "y0", "vector"} <= set(table.column_names)


def test_inspect_says_what_will_not_work(histoseek: Callable, cohort_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.svs").write_text("Dear pathologist,")
    good = sorted(cohort_folder.glob("*.tif*"))[0]
    outcome = histoseek("inspect", good, tmp_path / "letter.svs", "--mpp", 1.0, "--tile", 64, "--json")
    assert outcome.code == 3
    by_id = {row["slide_id"]: row for row in json.loads(outcome.out)["slides"]}
    assert by_id["letter"]["problem"] and not by_id[good.stem]["problem"]
    assert by_id[good.stem]["tiles"] > 0


def test_pretrain_then_index_with_it(histoseek: Callable, cohort_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    tiny = [
        "max_steps=2", "batch=8", "tile_px=32", "mpp=2.0", "monitor.tiles=16", "method.view_px=32",
        "method.network.arguments.channels=[8,8,16,16]",
    ]  # fmt: skip
    manifest = ["--manifest", cohort_folder / "manifest.csv"]
    outcome = histoseek(
        "pretrain", "contrastive-small", *tiny, "--slides", cohort_folder, *manifest, "--out", run, "--json"
    )
    result = read(outcome)
    assert result["finished"] and result["step"] == 2
    again = read(
        histoseek("pretrain", "contrastive-small", *tiny, "--slides", cohort_folder, *manifest, "--out", run, "--json")
    )
    assert again["ran"] is False
    report = read(
        histoseek("index", cohort_folder, *manifest, "--store", tmp_path / "store", "--encoder", run, "--json")
    )
    assert report["indexed"] == 3


def test_encoders_names_forms_and_configs(histoseek: Callable) -> None:
    outcome = histoseek("encoders")
    assert "random:MODEL[@SEED]" in outcome.out and "contrastive-small" in outcome.out


def test_doctor_finds_nothing_broken(histoseek: Callable) -> None:
    outcome = histoseek("doctor", "--json")
    findings = {row["subject"]: row for row in json.loads(outcome.out)["findings"]}
    assert outcome.code == 0
    assert findings["slide reading"]["verdict"] == "PASS"
    assert findings["faiss"]["verdict"] == "PASS"


def test_an_empty_slide_says_why(histoseek: Callable, tiny_encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("path,mpp\nglass.png,1.0\n")
    Image.new("RGB", (300, 300), (244, 243, 245)).save(tmp_path / "glass.png")
    store = tmp_path / "store"
    outcome = histoseek(
        "index", tmp_path, "--manifest", tmp_path / "m.csv", "--store", store, "--encoder", tiny_encoder
    )
    assert outcome.code == 0, outcome.err
    (row,) = read(histoseek("status", "--store", store, "--json"))["empty"]
    assert row["slide_id"] == "glass" and sum(row["reasons"].values()) > 0
    assert "empty glass: " in histoseek("status", "--store", store).out


def test_sql_shows_every_column_and_only_what_json_can_hold(histoseek: Callable, tiny_store: Path) -> None:
    text = "SELECT 1 AS a, 2 AS a, 1.0 / 0 AS r, 'x'::BLOB AS b, DATE 'infinity' AS d, [1.5, 'nan'::DOUBLE] AS l"
    document = read(histoseek("sql", "--store", tiny_store, text, "--json"))
    assert document["columns"] == ["a", "a_1", "r", "b", "d", "l"]
    (row,) = document["rows"]
    assert (row["a"], row["a_1"], row["r"], row["b"], row["l"]) == (1, 2, None, "78", [1.5, None])
    assert histoseek("sql", "--store", tiny_store, "SELECT * FROM slides s JOIN tiles t USING (slide_id)").code == 0


def test_a_region_and_examples(histoseek: Callable, tiny_store: Path, some_tile: str) -> None:
    slide, _, place = some_tile.partition("@")
    x0, y0 = map(int, place.split(","))
    region = f"{x0 - 10},{y0 - 10},{x0 + 600},{y0 + 600}"
    by_region = read(
        histoseek("search", "--store", tiny_store, "--slide", slide, "--region", region, "-k", 4, "--json")
    )
    assert some_tile not in {hit["tile_key"] for hit in by_region["hits"]} and len(by_region["hits"]) == 4
    assert "a region of" in by_region["plan"]["query"]
    other = by_region["hits"][0]["tile_key"]
    like = read(histoseek("search", "--store", tiny_store, "--tile", some_tile, "--tile", other, "-k", 3, "--json"))
    assert like["plan"]["query"] == "2 examples"
    assert not {some_tile, other} & {hit["tile_key"] for hit in like["hits"]}
    unlike = read(histoseek("search", "--store", tiny_store, "--tile", some_tile, "--unlike", other, "-k", 3, "--json"))
    assert unlike["plan"]["query"] == "1 example less 1"
    assert all(0 <= hit["percentile"] <= 100 for hit in unlike["hits"])


def test_a_search_explains_itself(histoseek: Callable, tiny_store: Path, some_tile: str) -> None:
    text = histoseek("search", "--store", tiny_store, "--tile", some_tile, "-k", 2, "--per-patient", 1, "--explain").out
    for word in ("engine    resident exact", "because   ", "recall    1 (exact)", "time      load "):
        assert word in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--slide", "x", "--region", "1,2,3"], "is not X,Y,X,Y"),
        (["--slide", "x", "--region", "1,2,3,4", "--at", "1,2"], "one place"),
        (["--region", "1,2,3,4"], "a place needs its slide"),
        (["--unlike", "s@0,0"], "one query"),
        (["--tile", "{tile}", "--target-recall", "2"], "target_recall"),
        (["--tile", "{tile}", "--apart", "-1"], "apart"),
        (["--tile", "{tile}", "--where", "orgn = 1"], "no column 'orgn'"),
        (["--tile", "{tile}", "-k", "0"], "k is a whole number"),
    ],
)
def test_searches_that_are_refused(
    histoseek: Callable, tiny_store: Path, some_tile: str, arguments: list[str], says: str
) -> None:
    outcome = histoseek("search", "--store", tiny_store, *(item.format(tile=some_tile) for item in arguments))
    assert outcome.code == 2 and says in outcome.err and "Traceback" not in outcome.err


def test_build_refuses_a_small_store_and_maintain_keeps_it(
    histoseek: Callable, tiny_store: Path, some_tile: str, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(tiny_store, store)
    refused = histoseek("build", "--store", store)
    assert refused.code == 1 and "an index needs 1,000" in refused.err
    assert histoseek("build", "--store", store, "--kind", "hnsw").code == 2
    search = ("search", "--store", store, "--tile", some_tile, "-k", 8, "--json")
    before = read(histoseek(*search))["hits"]
    report = read(histoseek("maintain", "--store", store, "--keep-days", 0, "--json"))
    assert report["exit_code"] == 0 and report["failed"] == []
    assert read(histoseek(*search))["hits"] == before
    assert read(histoseek("status", "--store", store, "--json"))["indexes"] == []
    assert histoseek("verify", "--store", store, "--no-slides").code == 0
