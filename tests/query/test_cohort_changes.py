"""A cohort whose store changes under it: made anew, slides registered, one grid failing."""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow as pa

from query import open_cohort


def append(store, name, row):
    schema = store.table_schema(name)
    store.lance.append("x", name, pa.Table.from_pylist([dict.fromkeys(schema.names) | row], schema=schema))


def test_a_store_made_anew_at_the_same_place_is_another_one(tmp_path, write_store):
    path, slides = tmp_path / "store", [{"slide_id": "a"}, {"slide_id": "b"}]
    old = write_store(path, slides, side=3, seed=1)
    cohort = open_cohort(str(path))
    np.testing.assert_array_equal(cohort.vectors().matrix, old.matrix)
    versions = {name: old.store.table_version(name) for name in old.store.tables()}
    shutil.rmtree(path)
    new = write_store(path, slides, side=3, seed=2)
    assert {name: new.store.table_version(name) for name in new.store.tables()} == versions
    np.testing.assert_array_equal(cohort.vectors().matrix, new.matrix)
    nearest = cohort.search("b@0,128", k=4)
    assert (
        nearest.table["distance"].to_pylist()
        == open_cohort(str(path)).search("b@0,128", k=4).table["distance"].to_pylist()
    )
    assert all(image is not None for image in nearest.images())


def test_a_slide_registered_while_the_slides_are_read_is_no_error(tmp_path, write_store, monkeypatch):
    small = write_store(tmp_path / "store", [{"slide_id": "a"}], side=3)
    cohort = open_cohort(str(small.path))
    status = type(small.store).slide_status

    def registering(store):
        states = status(store)
        if not store.count("slides", "slide_id = 'late'"):
            append(small.store, "slides", {"slide_id": "late", "slide_no": 1, "path": "x"})
        return states

    monkeypatch.setattr(type(small.store), "slide_status", registering)
    append(small.store, "quarantine", {"slide_id": "a", "phase": "read", "tile_key": "a@0,0"})
    assert cohort.slides["slide_id"].to_pylist() in (["a"], ["a", "late"])
    rows = cohort.slides.to_pylist()
    assert [(row["slide_id"], row["status"]) for row in rows] == [("a", "indexed"), ("late", "registered")]


def test_a_slide_that_another_grid_quarantined_stays_searchable(tmp_path, write_store):
    slides = [{"slide_id": "b"}, {"slide_id": "a"}, {"slide_id": "bad"}, {"slide_id": "half"}]
    small = write_store(tmp_path / "store", slides, side=3, unfinished=("bad", "half"))
    for slide_id in ("a", "bad"):
        append(small.store, "quarantine", {"slide_id": slide_id, "phase": "plan", "message": "too coarse"})
    cohort = open_cohort(str(small.path))
    states = dict(zip(cohort.slides["slide_id"].to_pylist(), cohort.slides["status"].to_pylist(), strict=True))
    assert states == {"a": "indexed", "b": "indexed", "bad": "quarantined", "half": "registered"}
    found = cohort.search("b@0,0", k=100, where="status = 'indexed'")
    assert set(found.table["slide_id"].to_pylist()) == {"a", "b"}
    assert cohort.searchable_slides() == ["a", "b"]
    assert {row["slide_id"] for row in cohort.status()["quarantine"]} == {"a", "bad"}


def test_searchable_slides_are_those_of_the_chosen_vectors(tmp_path, write_store):
    slides = [{"slide_id": "a"}, {"slide_id": "b"}]
    write_store(tmp_path / "store", slides, side=3)
    write_store(tmp_path / "store", slides, side=3, unfinished=("a",), encoder_id="second-00000000")
    cohort = open_cohort(str(tmp_path / "store"))
    assert cohort.searchable_slides("toy-12345678") == ["a", "b"]
    assert cohort.searchable_slides(encoder="second") == ["b"]
