"""Indexing runs: what they write, what they leave alone, and what they do with what is broken."""

from __future__ import annotations

import errno
import io
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from numpy.typing import NDArray

from encoder.checkpoint import encoder_from_files
from encoder.contract import NonFiniteVectorsError
from encoder.embed import TileEncoder
from encoder.errors import EncoderError, StoreError, TileError, UsageError
from encoder.progress import PlainReporter, SilentReporter
from encoder.registry import load_encoder
from indexer import flow, pipeline, slide_rows, writing
from indexer.grid import make_grid, parse_tile_key, plan_tiles
from indexer.index_request import IndexReport, IndexRequest
from indexer.manifest import SlideEntry, discover
from indexer.pixels import TileReader
from indexer.registration import in_shard
from indexer.schema import tiles_table_name, vectors_table_name
from indexer.slide import open_slide
from indexer.store import Store, open_store
from indexer.synthetic import draw_cohort
from indexer.verify import verify


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small synthetic slides with their manifest; not to be changed."""
    folder = tmp_path_factory.mktemp("slides")
    draw_cohort(folder, slides=3, seed=11, width0=768, height0=768)
    return folder


@pytest.fixture(scope="module")
def indexed(cohort: Path, tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three slides indexed; not to be changed."""
    store = tmp_path_factory.mktemp("store") / "s"
    _index(store, _entries(cohort), load_encoder(str(tiny_encoder), "cpu"))
    return store


@pytest.fixture
def own_store(indexed: Path, tmp_path: Path) -> Path:
    """A copy of the store, free to be changed."""
    return Path(shutil.copytree(indexed, tmp_path / "store"))


@pytest.fixture
def slides(cohort: Path, tmp_path: Path) -> Path:
    """Copies of the slides, free to be changed."""
    return Path(shutil.copytree(cohort, tmp_path / "slides"))


@pytest.fixture
def encoder(tiny_encoder: Path) -> TileEncoder:
    return load_encoder(str(tiny_encoder), "cpu")


class Moody(TileEncoder):
    """Fails for tiles that a rule picks, in the way a network with broken numbers does."""

    def __init__(self, encoder: TileEncoder, is_bad: Callable[[NDArray[np.uint8]], NDArray[np.bool_]]) -> None:
        super().__init__(encoder.module, encoder.spec, "cpu", encoder.record)
        self._is_bad = is_bad

    def embed(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        bad = np.flatnonzero(self._is_bad(tiles))
        if len(bad):
            raise NonFiniteVectorsError(self.spec.name, bad.tolist(), len(tiles))
        return super().embed(tiles)


def _other(encoder: TileEncoder, **changes: Any) -> TileEncoder:
    return TileEncoder(encoder.module, replace(encoder.spec, **changes), "cpu")


def _entries(folder: Path) -> list[SlideEntry]:
    return discover([folder], folder / "manifest.csv")


def _index(store: Path, entries: list[SlideEntry] | None, *encoders: TileEncoder, **options: Any) -> IndexReport:
    request = IndexRequest(encoders, entries, readers=2, **options)
    return pipeline.index(str(store), request, SilentReporter())


def _versions(store: Path) -> dict[str, int]:
    opened = open_store(str(store), read_only=True)
    return {name: opened.table_version(name) for name in opened.tables()}


def _tables(store: Path) -> tuple[Store, pa.Table, pa.Table]:
    """The store, its tiles and its vectors, both by tile id, where it has one vectors table."""
    opened = open_store(str(store), read_only=True)
    ((encoder_id, grid_id, _),) = opened.vector_tables()
    tiles = opened.read(tiles_table_name(grid_id)).sort_by("tile_id")
    return opened, tiles, opened.read(vectors_table_name(encoder_id, grid_id)).sort_by("tile_id")


def _matrix(vectors: pa.Table) -> NDArray[np.float32]:
    column = vectors["vector"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(vectors), -1)


def test_the_rows_are_those_of_a_plain_loop_over_tiles(
    cohort: Path, tiny_encoder: Path, indexed: Path, encoder: TileEncoder
) -> None:
    store, tiles, vectors = _tables(indexed)
    matrix = _matrix(vectors)
    ids: list[int] = []
    for number, entry in enumerate(_entries(cohort)):
        with open_slide(entry) as slide:
            plan = plan_tiles(slide, make_grid(1.0, 64))
            reader = TileReader(slide, plan)
            ids += [(number << 32) + (int(r) << 16) + int(c) for r, c in zip(plan.rows, plan.cols, strict=True)]
            raw = encoder.embed(np.stack([reader.read(index) for index in range(len(plan))]))
        own = vectors["slide_no"].to_numpy() == number
        lengths = np.linalg.norm(raw.astype(np.float64), axis=1)
        np.testing.assert_allclose(matrix[own], raw / lengths[:, None], atol=1e-6)
        np.testing.assert_allclose(vectors["norm"].to_numpy()[own], lengths, rtol=1e-6)
        np.testing.assert_array_equal(tiles["x0"].to_numpy()[own], plan.x0)
        np.testing.assert_array_equal(tiles["tissue"].to_numpy()[own], plan.tissue)
    assert tiles["tile_id"].to_pylist() == vectors["tile_id"].to_pylist() == sorted(ids)
    assert set(store.slide_status().values()) == {"indexed"}
    np.testing.assert_allclose(np.linalg.norm(matrix, axis=1), 1, atol=1e-6)


def test_the_store_holds_the_encoder_that_made_it(indexed: Path, encoder: TileEncoder) -> None:
    store = open_store(str(indexed))
    copy = encoder_from_files(store.load_encoder_files(encoder.spec.encoder_id), "cpu")
    pixels = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(copy.embed(pixels), encoder.embed(pixels))
    assert copy.spec == encoder.spec
    assert store.resize_ratio(*store.vector_tables()[0][:2]) == 1.0


def test_a_repeated_command_changes_no_table_but_runs(own_store: Path, cohort: Path, encoder: TileEncoder) -> None:
    before = _versions(own_store)
    report = _index(own_store, _entries(cohort), encoder)
    assert (report.already, report.indexed, report.tiles, report.exit_code) == (3, 0, 0, 0)
    assert {name for name, version in _versions(own_store).items() if version != before[name]} == {"runs"}


def test_what_is_done_is_not_opened_again(
    own_store: Path, cohort: Path, encoder: TileEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.planning.open_slide", lambda *_: pytest.fail("a slide was opened"))
    assert _index(own_store, _entries(cohort), encoder).already == 3
    assert _index(own_store, None, encoder).already == 3


def test_a_changed_slide_is_replaced(tmp_path: Path, slides: Path, encoder: TileEncoder) -> None:
    entries = _entries(slides)
    _index(tmp_path / "s", entries[:2], encoder)
    store, _, before = _tables(tmp_path / "s")
    names = [tiles_table_name(store.vector_tables()[0][1]), vectors_table_name(*store.vector_tables()[0][:2])]
    versions = [store.table_version(name) for name in names]

    entries[0].path.write_bytes(entries[2].path.read_bytes())
    report = _index(tmp_path / "s", entries[:2], encoder)
    assert (report.indexed, report.already) == (1, 1)
    _, tiles, vectors = _tables(tmp_path / "s")
    assert [store.table_version(name) for name in names] == [version + 2 for version in versions]  # delete, append
    assert len(store.done()) == 2 and verify(str(tmp_path / "s")).ok

    _index(tmp_path / "fresh", entries[:1], encoder)
    _, expected_tiles, expected = _tables(tmp_path / "fresh")
    own = vectors["slide_no"].to_numpy() == 0
    assert vectors.filter(pa.array(own)).equals(expected)
    assert tiles.filter(pa.array(own)).equals(expected_tiles)
    assert vectors.filter(pa.array(~own)).equals(before.filter(pa.array(before["slide_no"].to_numpy() == 1)))


def test_another_mpp_in_the_manifest_does_the_slide_again(tmp_path: Path, slides: Path, encoder: TileEncoder) -> None:
    entry = _entries(slides)[0]
    _index(tmp_path / "s", [entry], encoder)
    before = open_store(str(tmp_path / "s")).done().to_pylist()
    report = _index(tmp_path / "s", [replace(entry, mpp=0.25)], encoder)
    assert report.indexed == 1
    store, _, vectors = _tables(tmp_path / "s")
    (row,) = store.done().to_pylist()
    assert row["rows"] == len(vectors) != before[0]["rows"]
    assert store.slides()["mpp"].to_pylist() == [0.25]
    assert verify(str(tmp_path / "s")).ok


def test_other_manifest_columns_change_the_slides_row_only(own_store: Path, slides: Path, encoder: TileEncoder) -> None:
    before = _versions(own_store)
    entries = _entries(slides)
    entries[0] = replace(entries[0], patient_id="someone else", extra={**entries[0].extra, "grade": 2.0})
    report = _index(own_store, entries, encoder)
    assert report.already == 3
    after = _versions(own_store)
    assert {name for name in after if after[name] != before[name]} == {"runs", "slides"}
    row = open_store(str(own_store)).slides().to_pylist()[0]
    assert (row["patient_id"], row["grade"]) == ("someone else", 2.0)


def test_a_broken_slide_is_quarantined_and_the_others_go_on(tmp_path: Path, slides: Path, encoder: TileEncoder) -> None:
    entries = _entries(slides)
    whole = entries[1].path.read_bytes()
    entries[1].path.write_text("not a slide")
    report = _index(tmp_path / "s", entries, encoder)
    assert (report.indexed, report.exit_code) == (2, 3)
    ((slide_id, phase, message),) = [(f.slide_id, f.phase, f.message) for f in report.quarantined]
    assert (slide_id, phase) == (entries[1].slide_id, "open") and str(entries[1].path) in message
    store = open_store(str(tmp_path / "s"))
    assert store.slide_status()[slide_id] == "quarantined"
    assert store.slides()["width0"].to_pylist()[1] is None

    # Nothing changed: it is not tried again, and still reported.
    before = _versions(tmp_path / "s")
    report = _index(tmp_path / "s", entries, encoder)
    assert (report.already, report.exit_code) == (2, 3)
    assert report.quarantined[0].message == message
    after = _versions(tmp_path / "s")
    assert {name for name in after if after[name] != before[name]} == {"runs"}

    # `retry` tries again, a changed manifest row too, and both count.
    _index(tmp_path / "s", entries, encoder, retry=True)
    _index(tmp_path / "s", [entries[0], replace(entries[1], patient_id="p9"), entries[2]], encoder)
    (row,) = store.quarantine().to_pylist()
    assert (row["tries"], row["resolved_by"]) == (3, None)

    # A whole file is indexed, and the failure resolved.
    entries[1].path.write_bytes(whole)
    report = _index(tmp_path / "s", entries, encoder)
    assert (report.indexed, report.already, report.exit_code) == (1, 2, 0)
    (row,) = store.quarantine().to_pylist()
    assert row["resolved_by"] == report.run_id
    assert set(store.slide_status().values()) == {"indexed"}


def test_a_file_that_was_away_is_well_again_once_it_is_back(
    own_store: Path, slides: Path, encoder: TileEncoder
) -> None:
    entries = _entries(slides)
    _index(own_store, entries, encoder)
    away = entries[1].path.rename(slides / "away")
    assert _index(own_store, entries, encoder).exit_code == 3
    away.rename(entries[1].path)
    report = _index(own_store, entries, encoder)
    assert (report.already, report.exit_code) == (3, 0)
    store = open_store(str(own_store))
    assert store.quarantine()["resolved_by"].to_pylist() == [report.run_id]
    assert set(store.slide_status().values()) == {"indexed"}
    before = _versions(own_store)
    _index(own_store, entries, encoder)
    after = _versions(own_store)
    assert {name for name in after if after[name] != before[name]} == {"runs"}


def test_a_slide_without_mpp_waits_for_the_cohorts(tmp_path: Path, cohort: Path, encoder: TileEncoder) -> None:
    from PIL import Image

    with open_slide(_entries(cohort)[0]) as slide:
        Image.fromarray(slide.thumbnail(768)).save(tmp_path / "plain.png")
    entry = SlideEntry("plain", tmp_path / "plain.png")
    report = _index(tmp_path / "s", [entry], encoder)
    assert report.exit_code == 3 and "plain,MPP" in report.quarantined[0].message
    report = _index(tmp_path / "s", [entry], encoder, cohort_mpp=1.0)
    assert (report.indexed, report.exit_code) == (1, 0)
    assert _index(tmp_path / "s", [entry], encoder).already == 1
    assert _index(tmp_path / "s", [entry], encoder, cohort_mpp=1.0).already == 1
    assert _index(tmp_path / "s", [entry], encoder, cohort_mpp=0.8).indexed == 1
    store = open_store(str(tmp_path / "s"))
    assert store.slides()["mpp_source"].to_pylist() == ["cohort"]
    assert store.slides()["mpp"].to_pylist() == [0.8]
    assert verify(str(tmp_path / "s")).ok

    # What another grid was done at counts, not what the slide was opened at last.
    coarse = _other(encoder, name="coarse", tile_px=48, mpp=2.0)
    assert _index(tmp_path / "s", [entry], coarse, cohort_mpp=0.8).indexed == 1
    assert _index(tmp_path / "s", [entry], encoder, cohort_mpp=1.0).indexed == 1
    assert _index(tmp_path / "s", [entry], coarse, cohort_mpp=1.0).indexed == 1
    assert {row["mpp"] for row in store.done().to_pylist()} == {1.0}


def test_a_slide_of_glass_is_empty(tmp_path: Path, encoder: TileEncoder) -> None:
    from PIL import Image

    Image.new("RGB", (600, 400), "white").save(tmp_path / "glass.png")
    report = _index(tmp_path / "s", [SlideEntry("glass", tmp_path / "glass.png", mpp=1.0)], encoder)
    assert (report.empty, report.tiles, report.exit_code) == (1, 0, 0)
    store = open_store(str(tmp_path / "s"))
    assert store.slide_status() == {"glass": "empty"}
    assert sum(store.slide_reasons()["glass"].values()) > 0
    assert _index(tmp_path / "s", [SlideEntry("glass", tmp_path / "glass.png", mpp=1.0)], encoder).already == 1
    assert verify(str(tmp_path / "s")).ok


def test_several_encoders_are_fed_from_one_decode(
    tmp_path: Path, cohort: Path, encoder: TileEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = _entries(cohort)[0]
    second = _other(encoder, name="second", tile_px=48, mpp=64 / 48)
    reads: list[int] = []
    original = TileReader.read
    monkeypatch.setattr(TileReader, "read", lambda self, n: (reads.append(n), original(self, n))[1])
    _index(tmp_path / "both", [entry], encoder, second, mpp=1.0, tile_px=64)
    together = len(reads)
    _index(tmp_path / "one", [entry], encoder, mpp=1.0, tile_px=64)
    assert together == len(reads) - together
    report = _index(tmp_path / "one", [entry], second, mpp=1.0, tile_px=64)
    assert report.indexed == 1
    both, one = open_store(str(tmp_path / "both")), open_store(str(tmp_path / "one"))
    assert len(both.vector_tables()) == 2 and both.vector_tables() == one.vector_tables()
    for encoder_id, grid_id, _ in both.vector_tables():
        name = vectors_table_name(encoder_id, grid_id)
        assert both.read(name).sort_by("tile_id").equals(one.read(name).sort_by("tile_id"))
    tiles = tiles_table_name(grid_id)
    assert both.read(tiles).sort_by("tile_id").equals(one.read(tiles).sort_by("tile_id"))
    assert one.table_version(tiles) == both.table_version(tiles)  # the second encoder left the tiles alone
    assert verify(str(tmp_path / "both")).ok and verify(str(tmp_path / "one")).ok


def test_encoders_with_grids_of_their_own_get_a_pass_each(tmp_path: Path, cohort: Path, encoder: TileEncoder) -> None:
    entry = _entries(cohort)[0]
    coarse = _other(encoder, name="coarse", tile_px=48, mpp=2.0)
    report = _index(tmp_path / "s", [entry], encoder, coarse)
    store = open_store(str(tmp_path / "s"))
    assert report.indexed == 1 and len(store.grids()) == 2
    rows = {grid_id: count for _, grid_id, count in store.vector_tables()}
    assert report.tiles == sum(rows.values()) and min(rows.values()) > 0
    assert verify(str(tmp_path / "s")).ok


def test_when_a_slide_changes_the_vectors_of_encoders_not_asked_are_dropped(
    tmp_path: Path, slides: Path, encoder: TileEncoder
) -> None:
    entries = _entries(slides)
    second = _other(encoder, name="second")
    _index(tmp_path / "s", entries[:2], encoder, second)
    entries[0].path.write_bytes(entries[2].path.read_bytes())
    reporter = SilentReporter()
    pipeline.index(str(tmp_path / "s"), IndexRequest([encoder], entries[:2]), reporter)
    assert any("former vectors" in warning and "second" in warning for warning in reporter.warnings)
    store = open_store(str(tmp_path / "s"))
    grid_id = store.vector_tables()[0][1]
    left = store.rows_per_slide(vectors_table_name(second.spec.encoder_id, grid_id))
    assert set(left) == {1}
    assert verify(str(tmp_path / "s")).ok
    assert _index(tmp_path / "s", entries[:2], second).indexed == 1


def test_when_a_slide_changes_the_vectors_of_an_encoder_that_fails_are_dropped(
    tmp_path: Path, slides: Path, encoder: TileEncoder
) -> None:
    entries, second = _entries(slides), _other(encoder, name="second")
    _index(tmp_path / "s", entries[:1], encoder, second)
    entries[0].path.write_bytes(entries[2].path.read_bytes())
    hopeless = Moody(second, lambda batch: np.ones(len(batch), bool))
    assert _index(tmp_path / "s", entries[:1], encoder, hopeless).exit_code == 3
    store = open_store(str(tmp_path / "s"))
    assert {name for name, _, rows in store.vector_tables() if rows} == {encoder.spec.encoder_id}
    assert len(store.done()) == 1 and verify(str(tmp_path / "s")).ok


def test_few_bad_tiles_are_left_out_and_named(
    tmp_path: Path, cohort: Path, encoder: TileEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = _entries(cohort)
    monkeypatch.setattr(slide_rows, "MAX_BAD_SHARE", 0.1)  # the slides are too small for one per cent
    original = TileReader.read

    def read(self: TileReader, index: int) -> NDArray[np.uint8]:
        if index == 5:
            raise OSError("the disk says no")
        return original(self, index)

    monkeypatch.setattr(TileReader, "read", read)
    report = _index(tmp_path / "s", entries, encoder)
    assert (report.indexed, report.bad_tiles, report.exit_code) == (3, 3, 0)
    store, tiles, vectors = _tables(tmp_path / "s")
    assert [row["bad_tiles"] for row in store.done().to_pylist()] == [1, 1, 1]
    assert len(tiles) - 3 == len(vectors) == report.tiles
    blank = tiles.filter(pc.is_null(tiles["thumb"]))  # an unreadable tile is a tile, without pictures
    assert set(blank["tile_id"].to_pylist()) == set(tiles["tile_id"].to_pylist()) - set(vectors["tile_id"].to_pylist())
    failures = store.quarantine().to_pylist()
    assert {row["phase"] for row in failures} == {"read"} and "the disk says no" in failures[0]["message"]
    keys = {parse_tile_key(row["tile_key"])[0] for row in failures}
    assert keys == {entry.slide_id for entry in entries}
    assert set(store.slide_status().values()) == {"indexed"}
    assert verify(str(tmp_path / "s")).ok

    # They are tried again when that is asked for, and forgotten once they are well.
    monkeypatch.setattr(TileReader, "read", original)
    assert _index(tmp_path / "s", entries, encoder).already == 3
    report = _index(tmp_path / "s", entries, encoder, retry=True)
    assert (report.indexed, report.bad_tiles) == (3, 0)
    _, tiles, vectors = _tables(tmp_path / "s")
    assert tiles["tile_id"].equals(vectors["tile_id"]) and not tiles["thumb"].null_count
    assert len(store.quarantine(open_only=True)) == 0 and verify(str(tmp_path / "s")).ok
    assert _index(tmp_path / "s", entries, encoder, retry=True).already == 3


def test_a_tile_that_turns_bad_costs_other_encoders_nothing(
    tmp_path: Path, cohort: Path, encoder: TileEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slide_rows, "MAX_BAD_SHARE", 0.1)
    entries, second = _entries(cohort)[:1], _other(encoder, name="second")
    _index(tmp_path / "s", entries, encoder, second)
    store = open_store(str(tmp_path / "s"))
    name = vectors_table_name(second.spec.encoder_id, store.vector_tables()[0][1])
    before = store.read(name)
    original = TileReader.read

    def read(self: TileReader, index: int) -> NDArray[np.uint8]:
        if index == 5:
            raise OSError("the disk says no")
        return original(self, index)

    monkeypatch.setattr(TileReader, "read", read)
    report = _index(tmp_path / "s", entries, encoder, keep_images=True)
    assert (report.indexed, report.bad_tiles) == (1, 1)
    assert store.read(name).equals(before) and verify(str(tmp_path / "s")).ok


def test_a_tile_that_libvips_refuses_counts_once_for_openslide(
    tmp_path: Path, cohort: Path, encoder: TileEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slide_rows, "MAX_BAD_SHARE", 0.1)
    original = TileReader._by_openslide

    def refuse(self: TileReader, index: int, page: object) -> NDArray[np.uint8]:
        self._page = None
        raise TileError("libvips says no")

    def read(self: TileReader, index: int) -> NDArray[np.uint8]:
        if index == 5 and self.path == "vips":
            raise TileError("the disk says no")
        return original(self, index)

    monkeypatch.setattr(TileReader, "_sized", refuse)
    monkeypatch.setattr(TileReader, "_by_openslide", read)
    report = _index(tmp_path / "s", _entries(cohort)[:1], encoder)
    assert report.bad_tiles == 1
    assert {path: tiles for path, tiles in report.reader_tiles.items() if tiles} == {"openslide": report.tiles}


def test_many_bad_tiles_quarantine_the_slide(
    tmp_path: Path, cohort: Path, encoder: TileEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = _entries(cohort)
    original = TileReader.read

    def read(self: TileReader, index: int) -> NDArray[np.uint8]:
        if index in (5, 6, 9) and self._plan.slide.slide_id == entries[0].slide_id:
            raise OSError("the disk says no")
        return original(self, index)

    monkeypatch.setattr(TileReader, "read", read)
    report = _index(tmp_path / "s", entries, encoder)
    assert (report.indexed, report.exit_code) == (2, 3)
    assert report.quarantined[0].phase == "read" and "3 of" in report.quarantined[0].message
    _, tiles, vectors = _tables(tmp_path / "s")
    assert 0 not in tiles["slide_no"].to_pylist() and 0 not in vectors["slide_no"].to_pylist()
    monkeypatch.setattr(TileReader, "read", original)
    assert _index(tmp_path / "s", entries, encoder).exit_code == 3
    assert _index(tmp_path / "s", entries, encoder, retry=True).exit_code == 0
    assert verify(str(tmp_path / "s")).ok


def test_tiles_without_a_finite_vector_are_bad_for_that_encoder_only(
    tmp_path: Path, cohort: Path, encoder: TileEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slide_rows, "MAX_BAD_SHARE", 0.1)
    entry = _entries(cohort)[0]
    _index(tmp_path / "sound", [entry], encoder)
    _, _, vectors = _tables(tmp_path / "sound")
    with open_slide(entry) as slide:
        plan = plan_tiles(slide, make_grid(1.0, 64))
        victim = TileReader(slide, plan).read(7)
    moody = Moody(_other(encoder, name="moody"), lambda batch: (batch == victim).all(axis=(1, 2, 3)))
    report = _index(tmp_path / "s", [entry], encoder, moody)
    assert (report.indexed, report.bad_tiles) == (1, 1)
    store = open_store(str(tmp_path / "s"))
    grid_id = store.vector_tables()[0][1]
    well = store.read(vectors_table_name(encoder.spec.encoder_id, grid_id)).sort_by("tile_id")
    ill = store.read(vectors_table_name(moody.spec.encoder_id, grid_id)).sort_by("tile_id")
    assert well.equals(vectors)
    kept = np.delete(np.arange(len(vectors)), 7)
    np.testing.assert_allclose(_matrix(ill), _matrix(vectors)[kept], atol=1e-6)
    (row,) = store.quarantine().to_pylist()
    assert (row["phase"], row["encoder_id"]) == ("embed", moody.spec.encoder_id)
    assert verify(str(tmp_path / "s")).ok

    # All of them: the slide is quarantined for that encoder, the other one keeps it.
    hopeless = Moody(_other(encoder, name="hopeless"), lambda batch: np.ones(len(batch), bool))
    report = _index(tmp_path / "s", [entry], encoder, hopeless)
    assert (report.exit_code, report.quarantined[0].phase) == (3, "embed")
    assert verify(str(tmp_path / "s")).ok


def test_kept_images_feed_a_later_encoder_without_the_slides(
    tmp_path: Path, slides: Path, encoder: TileEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = _entries(slides)
    _index(tmp_path / "s", entries, encoder)
    report = _index(tmp_path / "s", entries, encoder, keep_images=True)
    assert report.indexed == 3  # images that are missing are work
    assert _index(tmp_path / "s", entries, encoder, keep_images=True).already == 3
    assert _index(tmp_path / "s", entries, encoder).already == 3
    entries[0].path.write_bytes(entries[2].path.read_bytes())
    assert _index(tmp_path / "s", entries, encoder).indexed == 1  # what had images keeps them
    expected = _matrix(_tables(tmp_path / "s")[2])
    shutil.rmtree(slides)
    second = _other(encoder, name="second")
    queries: list[int] = []
    original = Store.tile_images
    monkeypatch.setattr(
        Store, "tile_images", lambda self, grid, ids: (queries.append(len(ids)), original(self, grid, ids))[1]
    )
    report = _index(tmp_path / "s", None, encoder, second)
    assert sum(queries) == report.tiles and len(queries) < report.tiles / 8  # a query per chunk
    assert (report.indexed, report.exit_code, set(report.reader_tiles)) == (3, 0, {"store"})
    store = open_store(str(tmp_path / "s"))
    grid_id = store.vector_tables()[0][1]
    found = _matrix(store.read(vectors_table_name(second.spec.encoder_id, grid_id)).sort_by("tile_id"))
    assert (found * expected).sum(axis=1).min() > 0.99  # JPEG of quality 90
    assert verify(str(tmp_path / "s"), slides=False).ok


def test_shards_add_up_to_the_whole(tmp_path: Path, cohort: Path, encoder: TileEncoder) -> None:
    entries = _entries(cohort)
    parts = [_index(tmp_path / "s", entries, encoder, shard=(part, 2)) for part in (2, 1)]
    assert [part.slides for part in parts] == [
        sum(in_shard(entry.slide_id, (part, 2)) for entry in entries) for part in (2, 1)
    ]
    assert sum(part.indexed for part in parts) == 3
    assert _index(tmp_path / "s", entries, encoder).already == 3
    _index(tmp_path / "whole", entries, encoder)
    by_slide: list[dict[str, list[float]]] = []
    for name in ("s", "whole"):
        store, _, vectors = _tables(tmp_path / name)
        names = dict(zip(store.slides()["slide_no"].to_pylist(), store.slides()["slide_id"].to_pylist(), strict=True))
        sums: dict[str, list[float]] = {}
        for number, vector in zip(vectors["slide_no"].to_pylist(), vectors["vector"].to_pylist(), strict=True):
            sums.setdefault(names[number], []).extend(vector)
        by_slide.append(sums)
    assert by_slide[0] == by_slide[1]


def test_a_flush_takes_whole_slides_by_rows_or_age(
    tmp_path: Path, cohort: Path, encoder: TileEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def commits(name: str) -> int:
        points: list[str] = []
        request = IndexRequest([encoder], _entries(cohort))
        pipeline.index(str(tmp_path / name), request, SilentReporter(), points.append)
        return points.count("done")

    assert commits("all") == 1
    monkeypatch.setattr(writing, "FLUSH_ROWS", 1)
    assert commits("rows") == 3
    monkeypatch.setattr(writing, "FLUSH_ROWS", 1 << 16)
    monkeypatch.setattr(writing, "FLUSH_SECONDS", 0.0)
    assert commits("age") == 3


def test_a_large_slide_spools_to_disk_and_is_still_one_commit(
    tmp_path: Path, cohort: Path, encoder: TileEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = _entries(cohort)
    monkeypatch.setattr(pipeline, "_BATCH_CPU", 16)
    _index(tmp_path / "memory", entries, encoder)
    monkeypatch.setattr(slide_rows, "FLUSH_ROWS", 10)
    spooled: list[int] = []
    original = slide_rows.RowPile.spool
    monkeypatch.setattr(slide_rows.RowPile, "spool", lambda self: (spooled.append(1), original(self))[1])
    _index(tmp_path / "disk", entries, encoder)
    assert spooled
    _, tiles, vectors = _tables(tmp_path / "memory")
    store, disk_tiles, disk_vectors = _tables(tmp_path / "disk")
    assert disk_tiles.equals(tiles) and disk_vectors.equals(vectors)
    assert store.table_version(vectors_table_name(*store.vector_tables()[0][:2])) == 2


def test_the_first_interrupt_commits_what_is_whole(
    tmp_path: Path, cohort: Path, encoder: TileEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "FLUSH_ROWS", 1)
    entries = _entries(cohort)
    before = signal.getsignal(signal.SIGINT)

    def interrupt(point: str) -> None:
        if point == "tiles":
            os.kill(os.getpid(), signal.SIGINT)

    said = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        pipeline.index(str(tmp_path / "s"), IndexRequest([encoder], entries), PlainReporter(said), interrupt)
    assert said.getvalue().count("the slides that are whole are being written") == 1
    assert signal.getsignal(signal.SIGINT) is before
    store = open_store(str(tmp_path / "s"))
    assert store.runs()["status"].to_pylist() == ["interrupted"]
    done = len(store.done())
    assert 1 <= done < 3 and verify(str(tmp_path / "s")).ok
    report = _index(tmp_path / "s", entries, encoder)
    assert (report.already, report.indexed) == (done, 3 - done)


@pytest.mark.parametrize("moment", ["run-running", "tiles"])
def test_a_run_that_was_taken_for_dead_writes_nothing_more(
    tmp_path: Path, cohort: Path, encoder: TileEncoder, moment: str
) -> None:
    def declare_dead(point: str) -> None:
        if point == moment:
            store = open_store(str(tmp_path / "s"))
            row = pa.table({"run_id": store.runs()["run_id"], "status": ["died"]})
            store.lance.update_columns("x", "runs", "run_id", row)

    with pytest.raises(StoreError, match="has taken over"):
        request = IndexRequest([encoder], _entries(cohort)[:1])
        pipeline.index(str(tmp_path / "s"), request, SilentReporter(), declare_dead)
    store = open_store(str(tmp_path / "s"))
    assert not any(rows for _, _, rows in store.vector_tables()) and len(store.done()) == 0


def test_rows_that_find_no_room_on_disk_say_where(
    tmp_path: Path, cohort: Path, encoder: TileEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(slide_rows, "FLUSH_ROWS", 10)
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(StoreError, match=f"in {tempfile.gettempdir()}: No space left.*TMPDIR"):
        _index(tmp_path / "s", _entries(cohort)[:1], encoder)


def test_an_encoder_that_fails_as_a_whole_ends_the_run_and_loses_no_whole_slide(
    tmp_path: Path, cohort: Path, encoder: TileEncoder
) -> None:
    entries = _entries(cohort)
    with open_slide(entries[2]) as slide:
        plan = plan_tiles(slide, make_grid(1.0, 64))
        victim = TileReader(slide, plan).read(0)

    def fail(batch: NDArray[np.uint8]) -> NDArray[np.bool_]:
        if (batch[0] == victim).all():
            raise EncoderError("out of memory")
        return np.zeros(len(batch), bool)

    with pytest.raises(EncoderError, match="out of memory"):
        _index(tmp_path / "s", entries, Moody(encoder, fail))
    store = open_store(str(tmp_path / "s"))
    assert store.runs()["status"].to_pylist() == ["failed"]
    assert len(store.done()) == 2
    assert _index(tmp_path / "s", entries, encoder).already == 2


def test_requests_that_cannot_be_met_write_nothing(tmp_path: Path, cohort: Path, encoder: TileEncoder) -> None:
    entries = _entries(cohort)
    scaleless = _other(encoder, name="scaleless", mpp=None)
    with pytest.raises(UsageError, match="--mpp"):
        _index(tmp_path / "s", entries, scaleless)
    with pytest.raises(EncoderError, match="more than a factor of 2 apart"):
        _index(tmp_path / "s", entries, encoder, mpp=2.5)
    with pytest.raises(UsageError, match="named twice"):
        _index(tmp_path / "s", entries, encoder, encoder)
    with pytest.raises(UsageError, match="No slides"):
        _index(tmp_path / "s", [], encoder)
    with pytest.raises(UsageError, match="No encoder"):
        _index(tmp_path / "s", entries)
    with pytest.raises(UsageError, match="--shard"):
        _index(tmp_path / "s", entries, encoder, shard=(3, 2))
    assert not (tmp_path / "s").exists()


def test_a_ratio_within_two_is_taken_and_recorded(tmp_path: Path, cohort: Path, encoder: TileEncoder) -> None:
    _index(tmp_path / "s", _entries(cohort)[:1], encoder, mpp=2.0)
    store = open_store(str(tmp_path / "s"))
    assert store.resize_ratio(*store.vector_tables()[0][:2]) == 2.0


def test_the_report_says_where_the_time_went(tmp_path: Path, cohort: Path, encoder: TileEncoder) -> None:
    class Counting(SilentReporter):
        total = done = 0
        details: tuple[str, ...] = ()

        def grow(self, n: int) -> None:
            self.total += n

        def advance(self, n: int = 1, detail: str = "") -> None:
            self.done += n
            self.details += (detail,)

    reporter = Counting()
    report = pipeline.index(str(tmp_path / "s"), IndexRequest([encoder], _entries(cohort)), reporter)
    assert reporter.total == reporter.done == report.tiles > 0
    assert all("tiles/s" in detail and "of 3 slides" in detail for detail in reporter.details)
    assert set(report.stages) == {"plan", "read", "embed", "write"}
    assert all(time.seconds > 0 and 0 < time.share <= 1 for time in report.stages.values())
    assert report.limited_by == max(report.stages, key=lambda name: report.stages[name].share)
    assert sum(report.reader_tiles.values()) == report.tiles


def test_batches_are_bounded_in_bytes() -> None:
    assert flow.batch_sizes(64, 3 * 224**2) == (64, 16)
    assert flow.batch_sizes(64, 3 * 1024**2) == (16, 16)
    assert flow.batch_sizes(64, 3 * 8192**2) == (1, 1)
    assert flow.batch_sizes(40, 3 * 64**2) == (40, 8)


@pytest.mark.shared_data
def test_real_slides_index_and_odd_ones_say_what_to_do(tmp_path: Path, shared_data: Path) -> None:
    colour = load_encoder("colour", "cpu")
    scale = {"mpp": 2.0, "tile_px": 128}
    entries = _entries(shared_data / "slides")
    report = _index(tmp_path / "s", entries, colour, **scale)
    assert (report.indexed, report.exit_code, report.bad_tiles) == (len(entries), 0, 0)

    bare = [replace(entry, mpp=None) for entry in entries if "tcga" in entry.slide_id]
    report = _index(tmp_path / "bare", bare, colour, **scale)
    assert report.exit_code == 3 and f"`{bare[0].slide_id},MPP`" in report.quarantined[0].message

    odd = discover([shared_data.resolve() / "slides_odd"])
    report = _index(tmp_path / "s", odd, colour, **scale)
    assert report.indexed + report.empty + len(report.quarantined) == len(odd)
    paths = {entry.slide_id: str(entry.path) for entry in odd}
    for failure in report.quarantined:
        assert paths[failure.slide_id] in failure.message and failure.message.rstrip().endswith((".", ")"))
    assert any("264.58" in failure.message and "impossible" in failure.message for failure in report.quarantined)
    assert verify(str(tmp_path / "s")).ok
