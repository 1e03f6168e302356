"""Collections: what was saved comes back, nothing is lost when several save at once, and what leaves the store."""

from __future__ import annotations

import csv
import io
import json
import shutil
import threading
import unicodedata
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageFont

from encoder.errors import QueryError, StoreError, UsageError
from encoder.progress import SilentReporter
from encoder.registry import load_encoder
from indexer.index_request import IndexRequest
from indexer.pipeline import index
from indexer.store import open_store
from indexer.tables import Tables
from query import open_cohort
from query.collection_log import PREFIX
from query.collections import (
    MOST_TILES,
    add_tiles,
    collection_tiles,
    collections,
    delete_collection,
    load_collection,
    remove_tiles,
    rename_collection,
    save_collection,
)
from query.facets import facets
from query.montage import _wrap
from query.results import Results
from query.tile_list import TileList, file_names


@pytest.fixture
def copied(small, tmp_path):
    """A cohort on a copy of the small store, and the store's truth."""
    path = shutil.copytree(small.path, tmp_path / "store")
    return open_cohort(str(path)), replace(small, path=path)


def keys(small, *rows):
    return [small.key(row) for row in rows]


def test_what_was_saved_comes_back_in_its_order(copied):
    cohort, small = copied
    wanted = keys(small, 100, 3, 77, 3, 0)
    saved = save_collection(cohort, "  Mitoses, grade 3 ", wanted, author="Ada", note=" for the study\n")
    assert saved.tile_keys == tuple(keys(small, 100, 3, 77, 0)) and saved.name == "Mitoses, grade 3"
    np.testing.assert_array_equal(saved.tile_ids, small.tile_id[[100, 3, 77, 0]])
    info = saved.info
    assert (info.tiles, info.slides, info.author, info.note, info.missing) == (
        4,
        2 + (100 // 36 != 77 // 36),
        "Ada",
        "for the study",
        0,
    )
    assert info.grid_id == small.grid_id and info.versions and info.at.tzinfo is not None
    other = open_cohort(str(small.path))
    again = load_collection(other, "mitoses, GRADE 3")
    assert again.info == info and again.tile_keys == saved.tile_keys
    assert collections(other) == (info,)
    found = cohort.search(small.key(5), k=10, among=again.tile_ids)
    assert set(found.table["tile_key"].to_pylist()) == set(saved.tile_keys)


def test_names_are_one_whatever_their_case(copied):
    cohort, small = copied
    save_collection(cohort, "Straße", keys(small, 1, 2))
    save_collection(cohort, "STRASSE", keys(small, 3))
    save_collection(cohort, "e\u0301tude", keys(small, 4))  # an accent of its own
    save_collection(cohort, "\u00c9TUDE", keys(small, 5))
    save_collection(cohort, "100% o'hare \U0001f52c", keys(small, 6))
    listed = collections(cohort)
    assert [info.name for info in listed] == ["100% o'hare \U0001f52c", "STRASSE", "\u00c9TUDE"]
    assert load_collection(cohort, "straße").tile_keys == (small.key(3),)
    assert [len(info.versions) for info in listed] == [1, 2, 2]
    first = load_collection(cohort, "strasse", listed[1].versions[0])
    assert first.name == "Straße" and first.tile_keys == tuple(keys(small, 1, 2))
    with pytest.raises(QueryError, match="no version 'x'"):
        load_collection(cohort, "strasse", "x")


@pytest.mark.parametrize(
    ("name", "says"),
    [("", "has 0"), (" \t ", "has 0"), ("x" * 81, "has 81"), ("a\nb", "control character"), ("a\x00", "control"),
     ("a\u2028b", "control")],
)  # fmt: skip
def test_names_that_will_not_do(copied, name, says):
    cohort, small = copied
    with pytest.raises(QueryError, match=says):
        save_collection(cohort, name, keys(small, 1))
    assert collections(cohort) == ()


def test_what_cannot_be_saved_is_a_sentence(copied, monkeypatch):
    cohort, small = copied
    for wanted, says in [
        ([], "would have no tile"),
        (["s0@1,2"], r"has no tile s0@1,2 \(1 of 1 are not there\)"),
        ([small.key(0), "nowhere@0,0"], "no slide 'nowhere'"),
        (["crashed@0,0"], "has no tile crashed@0,0"),
        (["s0"], "no tile key"),
        ("s0@0,0", "not a list"),
    ]:
        with pytest.raises(QueryError, match=says):
            save_collection(cohort, "x", wanted)
    with pytest.raises(QueryError, match="no vectors on grid 'other'"):
        save_collection(cohort, "x", keys(small, 1), grid="other")
    with pytest.raises(QueryError, match="at most 2,000 characters"):
        save_collection(cohort, "x", keys(small, 1), note="n" * 2001)
    monkeypatch.setattr("query.collections.MOST_TILES", 1)
    with pytest.raises(QueryError, match="at most 1 tiles, these are 2"):
        save_collection(cohort, "x", keys(small, 1, 2))
    assert MOST_TILES == 100_000 and collections(cohort) == ()
    with pytest.raises(QueryError, match=r"no collection 'x'\. There is none"):
        load_collection(cohort, "x")


def test_a_store_that_cannot_be_written_says_so(copied, monkeypatch):
    cohort, small = copied

    def refuse(self, point, name, rows):
        with self._writing(name):
            raise OSError("Read-only file system")

    monkeypatch.setattr(Tables, "append", refuse)
    with pytest.raises(StoreError, match="could not be written: Read-only file system Check that"):
        save_collection(cohort, "x", keys(small, 1))


def test_adding_and_removing_keep_the_order(copied):
    cohort, small = copied
    save_collection(cohort, "x", keys(small, 5, 1), author="Ada", note="why")
    after = add_tiles(cohort, "X", keys(small, 1, 9, 2), author="Bob")
    assert after.tile_keys == tuple(keys(small, 5, 1, 9, 2))
    assert (after.name, after.info.author, after.info.note) == ("x", "Bob", "why")
    after = remove_tiles(cohort, "x", keys(small, 1, 2))
    assert after.tile_keys == tuple(keys(small, 5, 9)) and after.info.author == "Bob"
    with pytest.raises(QueryError, match="does not have the tile"):
        remove_tiles(cohort, "x", keys(small, 1))
    with pytest.raises(QueryError, match="has no tile"):
        add_tiles(cohort, "x", ["s0@5,5"])
    empty = remove_tiles(cohort, "x", keys(small, 5, 9))
    assert empty.tile_keys == () and collections(cohort)[0].tiles == 0
    assert len(collection_tiles(cohort, empty)) == 0
    sizes = [len(load_collection(cohort, "x", version).tile_keys) for version in empty.info.versions]
    assert sizes == [2, 4, 2, 0]


def test_deleting_leaves_the_versions(copied):
    cohort, small = copied
    saved = save_collection(cohort, "x", keys(small, 5, 1))
    save_collection(cohort, "y", keys(small, 6))
    delete_collection(cohort, "X", author="Bob")
    assert [info.name for info in collections(cohort)] == ["y"]
    with pytest.raises(QueryError, match="no collection 'x'"):
        load_collection(cohort, "x")
    with pytest.raises(QueryError, match="no collection 'x'"):
        delete_collection(cohort, "x")
    assert load_collection(cohort, "x", saved.info.versions[0]).tile_keys == saved.tile_keys
    anew = save_collection(cohort, "x", keys(small, 7))
    assert anew.tile_keys == (small.key(7),) and len(anew.info.versions) == 2


def test_renaming_takes_all_along(copied):
    cohort, small = copied
    save_collection(cohort, "x", keys(small, 5, 1), author="Ada", note="why")
    save_collection(cohort, "y", keys(small, 6))
    with pytest.raises(QueryError, match="a collection 'Y' already"):
        rename_collection(cohort, "x", "Y")
    renamed = rename_collection(cohort, "x", "z")
    assert (renamed.name, renamed.info.author, renamed.info.note) == ("z", "Ada", "why")
    assert renamed.tile_keys == tuple(keys(small, 5, 1))
    assert [info.name for info in collections(cohort)] == ["y", "z"]
    assert rename_collection(cohort, "z", "Z").name == "Z"
    assert [info.name for info in collections(cohort)] == ["y", "Z"]


def test_two_who_save_at_once_lose_nothing(copied):
    cohort, small = copied
    save_collection(cohort, "x", keys(small, 0))

    def work(number):
        own = open_cohort(str(small.path))
        add_tiles(own, "x", keys(small, 10 + number))
        save_collection(own, "same", keys(small, 20 + number), author=f"n{number}")

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(work, range(5)))
    assert set(load_collection(cohort, "x").tile_keys) == set(keys(small, 0, *range(10, 15)))
    same = load_collection(cohort, "same")
    states = [load_collection(cohort, "same", version) for version in same.info.versions]
    assert {state.tile_keys for state in states} == {(small.key(20 + number),) for number in range(5)}
    assert same.tile_keys == states[-1].tile_keys and same.info.author == states[-1].info.author
    assert load_collection(open_cohort(str(small.path)), "same").info == same.info


def test_it_is_saved_while_slides_are_indexed(store_copy, tiny_encoder):
    cohort = open_cohort(str(store_copy))
    tiles = cohort.vectors(columns=["tile_key"]).table["tile_key"].to_pylist()
    grid = cohort.vector_tables[0].grid_id
    saved, stop = [], threading.Event()

    def save():
        while not stop.is_set():
            saved.append(save_collection(cohort, f"n{len(saved)}", tiles[:3], grid=grid).name)

    saving = threading.Thread(target=save)
    saving.start()
    request = IndexRequest([load_encoder(str(tiny_encoder))], mpp=2.0, tile_px=48)
    report = index(str(store_copy), request, SilentReporter())
    stop.set()
    saving.join()
    assert report.exit_code == 0 and len(saved) > 1
    assert {info.name for info in collections(open_cohort(str(store_copy)))} == set(saved)
    assert len(cohort.vector_tables) == 2
    coarse = next(table.grid_id for table in cohort.vector_tables if table.grid_id != grid)
    there = set(cohort.vectors(columns=["tile_key"], grid=coarse).table["tile_key"].to_pylist())
    both, fine = [key for key in tiles if key in there], [key for key in tiles if key not in there]
    assert both and fine
    with pytest.raises(QueryError, match="Tiles of 2 grids have these keys"):
        save_collection(cohort, "x", both[:1])
    assert save_collection(cohort, "x", both[:1], grid=coarse).grid_id == coarse
    assert save_collection(cohort, "y", [*both[:1], *fine[:1]]).grid_id == grid
    with pytest.raises(QueryError, match="All tiles of a collection are of one grid"):
        add_tiles(cohort, "x", fine[:1])


def test_tiles_that_the_store_lost_are_counted(copied):
    cohort, small = copied
    saved = save_collection(cohort, "x", keys(small, 40, 5, 80))
    store = open_store(str(small.path))
    for name in (f"tiles_{small.grid_id}", f"vectors_{small.encoder_id}_{small.grid_id}"):
        store.lance.delete("gone", name, "slide_no = 1")
    again = load_collection(cohort, "x")
    assert again.info.missing == 1 == collections(cohort)[0].missing
    assert again.tile_keys == saved.tile_keys
    listed = collection_tiles(cohort, again)
    assert listed.table["tile_key"].to_pylist() == keys(small, 5, 80)
    assert remove_tiles(cohort, "x", keys(small, 40)).info.missing == 0


def test_labels_and_collections_do_not_meet(copied):
    cohort, small = copied
    save_collection(cohort, "tumour", keys(small, 1))
    store = open_store(str(small.path))
    store.annotate("tumour", ["yes", "no"], [0, 1])
    store.annotate(f"{PREFIX}by hand", ["1"], [0])
    assert [info.name for info in collections(cohort)] == ["tumour"]
    assert cohort.classify("tumour", k=1).label == "tumour"
    for label in (f"{PREFIX}tumour", "collection"):
        with pytest.raises(QueryError, match=r"no slide column or annotation") as told:
            cohort.classify(label)
        assert PREFIX + "tumour'" not in str(told.value).replace(repr(label), "")
    assert not any(PREFIX in facet.column for facet in facets(cohort))


def test_hits_and_collections_leave_by_one_path(copied, tmp_path):
    cohort, small = copied
    hits = cohort.search(small.key(0), k=6)
    saved = save_collection(cohort, "mine", hits.table["tile_key"].to_pylist(), note="a note")
    listed = collection_tiles(cohort, saved)
    assert isinstance(hits.listed, TileList) and isinstance(hits, Results)
    np.testing.assert_array_equal(listed.tile_ids, hits.tile_ids)
    assert listed.thumbnails() == hits.thumbnails()
    shared = [name for name in hits.table.column_names if name not in ("distance", "percentile")]
    assert listed.table.column_names == shared
    assert listed.table.to_pylist() == hits.table.select(shared).to_pylist()
    features = listed.to_geojson()["features"]
    assert [item["geometry"] for item in features] == [item["geometry"] for item in hits.to_geojson()["features"]]
    assert features[0]["properties"]["name"] == "mine 1" and "distance" not in features[0]["properties"]
    sheet = Image.open(io.BytesIO(listed.to_png()))
    assert sheet.size == listed.montage(tmp_path / "sheet.png").size == Image.open(tmp_path / "sheet.png").size
    with zipfile.ZipFile(io.BytesIO(listed.to_geojson_zip())) as archive:
        for slide_id in listed.slide_ids:
            assert json.loads(archive.read(f"{slide_id}.geojson")) == listed.to_geojson(slide_id)
        assert len(archive.namelist()) == len(listed.slide_ids)
    with pytest.raises(UsageError, match="does not end in"):
        listed.montage(tmp_path / "sheet.gif")


def test_files_of_slides_differ_also_where_capitals_do_not():
    slides = ["S1", "s1", "a/b", "a_b", "a_b (2)", "caf\u00e9", "CAFE\u0301"]
    names = file_names(slides)
    assert names[:4] == ["S1", "s1 (2)", "a_b", "a_b (2)"] and len(names) == len(slides)
    assert len({unicodedata.normalize("NFC", name).casefold() for name in names}) == len(slides)


def test_a_sheet_without_a_query_has_its_words_at_the_top(copied):
    cohort, small = copied
    save = save_collection(cohort, "mine", keys(small, 0, 1))
    pixels = np.asarray(collection_tiles(cohort, save).montage())
    assert (pixels[22:44, 22:120] != 255).any()  # the heading
    assert not (pixels == np.array([236, 238, 241])).all(axis=-1).any()  # no empty frame


def test_words_on_a_sheet_break_at_spaces():
    font = ImageFont.load_default(size=14)
    lines = _wrap("Seen in the first\nround; compare  with the oral slide. " + "x" * 60, font, 220)
    assert all(font.getlength(line) <= 220 for line in lines)
    assert " ".join(lines[:3]).startswith("Seen in the first round; compare with the oral slide.")
    assert all(line[0] != " " and line[-1] != " " for line in lines) and lines[-1].strip("x") == ""
    assert sum(line.count("x") for line in lines) == 60


def test_csv_holds_all_columns_and_runs_nothing(copied):
    cohort, _ = copied
    hits = cohort.search(np.ones(16), k=3)
    texts = ["=1+1", "+1", "-x", "@SUM", "\tx", "\rx", 'a "b", c\nd', "é", None, "", "plain"]
    numbers = [-1.5, 0.1, float("nan"), None, 1e-300, -0.0, 1 / 3, 2.0, 3.0, 4.0, 5.0]
    table = pa.table({"=name": texts, "number": numbers, "flag": [True, False, None] + [True] * 8, "n": range(11)})
    content = replace(hits.listed, table=table).to_csv()
    assert content.startswith(b"\xef\xbb\xbf")
    rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    assert rows[0] == ["'=name", "number", "flag", "n"]
    assert [row[0] for row in rows[1:]] == [
        "'=1+1", "'+1", "'-x", "'@SUM", "'\tx", "'\rx", 'a "b", c\nd', "é", "", "", "plain"
    ]  # fmt: skip
    read = [None if row[1] == "" else float(row[1]) for row in rows[1:]]
    assert read == [None if value is None or value != value else value for value in numbers]
    assert [row[2] for row in rows[1:4]] == ["True", "False", ""]
    own = list(csv.DictReader(io.StringIO(hits.to_csv().decode("utf-8-sig"))))
    assert list(own[0]) == hits.table.column_names and {"organ", "age", "patient_id"} <= set(own[0])
    assert [float(row["distance"]) for row in own] == hits.table["distance"].to_pylist()
    assert [row["tile_key"] for row in own] == hits.table["tile_key"].to_pylist()
