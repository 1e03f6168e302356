"""Slides entering the store: numbers, manifest values, shards."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from encoder.errors import StoreError, UsageError
from indexer.manifest import SlideEntry
from indexer.registration import check_entries, in_shard, register
from indexer.slide_files import fingerprint
from indexer.store import Store, create_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return create_store(str(tmp_path / "store"))


def _entry(slide_id: str, **values: object) -> SlideEntry:
    return SlideEntry(slide_id=slide_id, path=Path(f"/slides/{slide_id}.svs"), **values)  # type: ignore[arg-type]


def test_numbers_are_given_once(store: Store) -> None:
    register(store, [_entry("b"), _entry("a")], None)
    registered = register(store, [_entry("c"), _entry("a")], None)
    assert [(slide.slide_id, slide.slide_no) for slide in registered] == [("c", 2), ("a", 1)]
    assert store.slides()["slide_id"].to_pylist() == ["b", "a", "c"]
    assert set(store.slide_status().values()) == {"registered"}


def test_registering_the_same_again_makes_no_version(store: Store) -> None:
    entries = [_entry("a", mpp=0.5, patient_id="p1", extra={"organ": "colon", "age": 61.0})]
    register(store, entries, None)
    version = store.table_version("slides")
    register(store, entries, None)
    assert store.table_version("slides") == version


def test_a_changed_manifest_changes_the_slides_row_only_where_it_says_something(store: Store) -> None:
    register(store, [_entry("a", mpp=0.5, patient_id="p1", extra={"organ": "colon"}), _entry("b")], None)
    version = store.table_version("slides")
    (slide,) = register(store, [_entry("a", patient_id="p2", extra={"organ": None})], None)
    assert store.table_version("slides") == version + 1
    assert (slide.entry.patient_id, slide.entry.mpp, slide.entry.extra) == ("p2", 0.5, {"organ": "colon"})
    assert store.slides()["patient_id"].to_pylist() == ["p2", None]


def test_all_slides_of_the_store_come_with_what_was_said_of_them(store: Store) -> None:
    register(store, [_entry("a", mpp=0.5, mask=Path("/m/a.json")), _entry("b", site_id="s")], None)
    slides = register(store, None, None)
    assert [(s.slide_id, s.entry.mpp, s.entry.mask, s.entry.site_id) for s in slides] == [
        ("a", 0.5, Path("/m/a.json"), None),
        ("b", None, None, "s"),
    ]


def test_user_columns_keep_their_kind(store: Store) -> None:
    register(store, [_entry("a", extra={"age": 61.0, "stage": "II", "blank": None})], None)
    assert sorted(store.user_columns()) == ["age", "stage"]
    register(store, [_entry("b", extra={"stage": 3.0})], None)
    assert store.slides()["stage"].to_pylist() == ["II", "3"]
    with pytest.raises(StoreError, match=r"age holds numbers.*'old'"):
        check_entries(store, [_entry("c", extra={"age": "old"})])


@pytest.mark.parametrize(
    "name", ["status", "slide_no", "Vendor", "a.b", "a`b", "it's", "_RowID", "_row_created_at_version", "a\tb"]
)
def test_names_that_the_store_cannot_take_are_refused(store: Store, name: str) -> None:
    with pytest.raises(UsageError, match=re.escape(repr(name))):
        check_entries(store, [_entry("a", extra={name: "x"})])


def test_names_that_differ_by_case_only_are_refused(store: Store) -> None:
    register(store, [_entry("a", extra={"organ": "colon"})], None)
    with pytest.raises(UsageError, match=r"'Organ'.*'organ' differs"):
        check_entries(store, [_entry("b", extra={"Organ": "lung"})])
    with pytest.raises(UsageError, match=r"'Grade'.*'grade' differs"):
        check_entries(store, [_entry("b", extra={"grade": 1.0}), _entry("c", extra={"Grade": 2.0})])


def test_an_id_whose_file_cannot_be_read_is_left_to_the_plan_stage(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "old.svs", tmp_path / "new.svs"
    old.write_bytes(b"one")
    new.write_bytes(b"one")
    register(store, [SlideEntry("a", old)], None)
    rows = store.read("slides", ["slide_id", "fingerprint"])
    rows = rows.set_column(1, "fingerprint", [[fingerprint(old)]])
    store.lance.update_columns("slides", "slides", "slide_id", rows)

    def refuse(path: Path) -> str:
        raise PermissionError(path)

    monkeypatch.setattr("indexer.registration.fingerprint", refuse)
    check_entries(store, [SlideEntry("a", new)])


def test_no_slides_at_all_is_a_usage_error(store: Store) -> None:
    for entries in (None, []):
        with pytest.raises(UsageError, match="No slides are named"):
            check_entries(store, entries)


def test_an_id_that_belongs_to_another_file_is_refused(store: Store, tmp_path: Path) -> None:
    old, new, copy = (tmp_path / name / "a.svs" for name in ("old", "new", "copy"))
    for path, content in ((old, b"one"), (new, b"two"), (copy, b"one")):
        path.parent.mkdir()
        path.write_bytes(content)
    register(store, [SlideEntry("a", old)], None)
    rows = store.read("slides", ["slide_id", "fingerprint"])
    rows = rows.set_column(1, "fingerprint", [[fingerprint(old)]])
    store.lance.update_columns("slides", "slides", "slide_id", rows)
    with pytest.raises(UsageError, match=r"belongs to .*old.*new"):
        check_entries(store, [SlideEntry("a", new)])
    check_entries(store, [SlideEntry("a", copy)])
    old.unlink()
    check_entries(store, [SlideEntry("a", new)])


def test_shards_part_the_slides_and_their_numbers(store: Store) -> None:
    entries = [_entry(f"slide{n}") for n in range(40)]
    parts = [register(store, entries, (part, 3)) for part in (2, 1, 3)]
    ids = [slide.slide_id for part in parts for slide in part]
    numbers = [slide.slide_no for part in parts for slide in part]
    assert sorted(ids) == sorted(entry.slide_id for entry in entries)
    assert len(set(numbers)) == 40
    assert [{slide.slide_no % 3 for slide in part} for part in parts] == [{1}, {0}, {2}]
    assert all(in_shard(slide.slide_id, (2, 3)) for slide in parts[0])
    assert [slide.slide_id for slide in register(store, None, (2, 3))] == [slide.slide_id for slide in parts[0]]
