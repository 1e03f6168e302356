"""Maps: the fits against literal ones, and what the store keeps of them while slides come, change and go."""

from __future__ import annotations

import shutil
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encoder.errors import QueryError, StoreError
from indexer import schema
from indexer.projections import read_map
from indexer.store import open_store
from indexer.tables import Tables
from query import open_cohort
from query.cohort import Cohort
from query.projection.directions import principal_directions
from query.projection.making import unplaced_rows
from query.projection.models import NeighbourModel, PlaneModel
from query.projection.sample import spread_sample

PIECES = 7


def unit(rows: int, dim: int, seed: int = 0, groups: int = 4) -> np.ndarray:
    rng = np.random.default_rng(seed)
    made = rng.standard_normal((groups, dim))[rng.integers(groups, size=rows)] + 0.4 * rng.standard_normal((rows, dim))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


def blocks(matrix: np.ndarray, rows: int = PIECES) -> list[np.ndarray]:
    return [matrix[start : start + rows] for start in range(0, len(matrix), rows)]


# --- fits


def test_the_plane_is_that_of_a_literal_decomposition() -> None:
    matrix = unit(200, 12)
    wide = matrix.astype(np.float64) - matrix.mean(axis=0, dtype=np.float64)
    _, values, vectors = np.linalg.svd(wide, full_matrices=False)
    for row in vectors:
        row *= np.sign(row[np.abs(row).argmax()])
    found = principal_directions(blocks(matrix), 12, 3)
    np.testing.assert_allclose(found.components, vectors[:3], atol=1e-9)
    np.testing.assert_allclose(found.shares, values[:3] ** 2 / (values**2).sum(), atol=1e-9)
    np.testing.assert_allclose(found.mean, matrix.mean(axis=0, dtype=np.float64), atol=1e-12)
    np.testing.assert_allclose(PlaneModel.fit(blocks(matrix), 12).place(matrix), wide @ vectors[:2].T, atol=1e-6)
    assert found.rows == 200


def test_vectors_in_a_narrow_cone_lose_no_digits() -> None:
    rng = np.random.default_rng(1)
    made = np.concatenate([np.full((300, 1), 100.0), rng.standard_normal((300, 7)) * np.arange(7, 0, -1) / 10], axis=1)
    matrix = (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)
    wide = matrix.astype(np.float64) - matrix.mean(axis=0, dtype=np.float64)
    values = np.linalg.svd(wide, compute_uv=False)
    found = principal_directions(blocks(matrix), 8, 2)
    np.testing.assert_allclose(found.shares, values[:2] ** 2 / (values**2).sum(), rtol=1e-6)


@pytest.mark.parametrize(("rows", "dim"), [(1, 8), (2, 8), (3, 8), (14, 8), (5, 1), (5, 2)])
def test_few_rows_make_a_finite_plane(rows: int, dim: int) -> None:
    matrix = unit(rows, dim, seed=3)
    xy = PlaneModel.fit([matrix], dim).place(matrix)
    assert xy.shape == (rows, 2) and np.isfinite(xy).all()
    wide = matrix - matrix.mean(axis=0)
    if rows <= 3:  # a plane holds them as they are
        np.testing.assert_allclose(np.linalg.norm(xy, axis=1), np.linalg.norm(wide, axis=1), atol=1e-5)


def test_vectors_that_are_alike_lie_on_one_point() -> None:
    matrix = np.repeat(unit(1, 16), 50, axis=0)
    model = PlaneModel.fit(blocks(matrix), 16)
    np.testing.assert_allclose(model.place(matrix), 0, atol=1e-7)
    assert model.directions.shares.tolist() == [0, 0]
    with pytest.raises(QueryError, match="at least 16 different tiles, these vectors have 1"):
        NeighbourModel.fit(matrix, "cpu")


@pytest.mark.parametrize("rows", [1, 2, 3, 15])
def test_umap_of_too_few_tiles_is_one_sentence(rows: int) -> None:
    with pytest.raises(QueryError, match=f"these vectors have {rows}. Use the method pca"):
        NeighbourModel.fit(unit(rows, 8), "cpu")


@pytest.fixture(scope="module")
def laid_out() -> tuple[np.ndarray, NeighbourModel]:
    matrix = unit(160, 24, seed=5)
    matrix[100:120] = matrix[0]  # tiles of glass are all alike
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return matrix, NeighbourModel.fit(matrix, "cpu")


def test_umap_keeps_groups_together_and_places_its_sample_where_it_lies(
    laid_out: tuple[np.ndarray, NeighbourModel],
) -> None:
    matrix, model = laid_out
    different = np.unique(matrix, axis=0)
    np.testing.assert_allclose(model.place(different), model.places, atol=1e-4)
    assert np.isfinite(model.places).all() and len(different) == 140
    rng = np.random.default_rng(5)
    rng.standard_normal((4, 24))
    group = rng.integers(4, size=160)
    group[100:120] = group[0]
    xy = model.place(matrix).astype(np.float64)
    away = ((xy[:, None] - xy[None]) ** 2).sum(axis=2)
    np.fill_diagonal(away, np.inf)
    assert (group[away.argmin(axis=1)] == group).mean() > 0.95


def test_a_tile_lies_at_the_weighted_mean_of_its_nearest_sample_tiles(
    laid_out: tuple[np.ndarray, NeighbourModel],
) -> None:
    _, model = laid_out
    others = unit(30, 24, seed=9)
    found = model.place(others)
    for vector, place in zip(others, found, strict=True):
        point = (vector - model.directions.mean) @ model.directions.components.T
        squared = ((model.points.astype(np.float64) - point) ** 2).sum(axis=1)
        near = np.argsort(squared)[:5]
        weights = squared[near] ** -4.0
        expected = (weights[:, None] * model.places[near]).sum(axis=0) / weights.sum()
        np.testing.assert_allclose(place, expected, atol=2e-3)
        low, high = model.places[near].min(axis=0), model.places[near].max(axis=0)
        assert (place >= low - 1e-4).all() and (place <= high + 1e-4).all()


def test_a_sample_takes_as_many_of_each_slide_as_it_can() -> None:
    slides = np.repeat([5, 2, 9, 7], [100, 3, 40, 1])
    chosen = spread_sample(slides, 50, seed=1)
    assert chosen.size == 50 and (np.diff(chosen) > 0).all()
    taken = dict(zip(*np.unique(slides[chosen], return_counts=True), strict=True))
    assert taken == {2: 3, 7: 1, 5: 23, 9: 23}
    np.testing.assert_array_equal(chosen, spread_sample(slides, 50, seed=1))
    assert not np.array_equal(chosen, spread_sample(slides, 50, seed=2))
    mixed = np.random.default_rng(0).permutation(slides)
    assert np.unique(mixed[spread_sample(mixed, 50, 1)], return_counts=True)[1].tolist() == [3, 23, 1, 23]
    assert spread_sample(slides, 144, 1).tolist() == list(range(144))
    assert spread_sample(slides, 3, 1).size == 3


# --- maps of a store


@pytest.fixture
def copy(small: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small.path, tmp_path / "store"))


def plane_of(matrix: np.ndarray) -> np.ndarray:
    wide = matrix.astype(np.float64) - matrix.mean(axis=0, dtype=np.float64)
    vectors = np.linalg.svd(wide, full_matrices=False)[2][:2]
    return wide @ (vectors * np.sign(vectors[np.arange(2), np.abs(vectors).argmax(axis=1)])[:, None]).T


def name_of(cohort: Cohort) -> str:
    return cohort.room(cohort.choose()).table


class Counting:
    """A reporter that counts the tiles of each task."""

    def __init__(self) -> None:
        self.done: list[tuple[str, int]] = []

    def start(self, label: str, total: int | None, unit: str) -> None:
        self.done.append((label, 0))

    def advance(self, n: int = 1, detail: str = "") -> None:
        label, so_far = self.done[-1]
        self.done[-1] = (label, so_far + n)

    def grow(self, n: int) -> None: ...

    def note(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def finish(self) -> None: ...


def test_a_map_is_computed_once_and_shows_searchable_tiles_only(small: Any, copy: Path) -> None:
    cohort = open_cohort(str(copy))
    assert unplaced_rows(cohort, cohort.choose(), "pca") is None
    reporter = Counting()
    found = cohort.map("pca", reporter=reporter)
    finished = small.slide < 6
    np.testing.assert_array_equal(found.rows.tile_id, small.tile_id[finished])
    np.testing.assert_allclose(found.xy, plane_of(small.matrix[finished]), atol=1e-5)
    assert found.xy.dtype == np.float32 and not found.xy.flags.writeable
    assert found.stored and found.notes == () and found.fitted_on == 216
    assert reporter.done == [("fit", 216), ("place", 216)]
    again, fresh = Counting(), open_cohort(str(copy))
    second = fresh.map("pca", reporter=again)
    assert again.done == [] and second.stored
    np.testing.assert_array_equal(second.xy, found.xy)
    assert unplaced_rows(fresh, fresh.choose(), "pca") == 0
    assert (found.extent.left, found.extent.top) == (found.xy[:, 0].min(), found.xy[:, 1].max())


def test_it_is_the_same_from_memory_and_from_disk(copy: Path) -> None:
    lean, warm = open_cohort(str(copy), memory_budget=100), open_cohort(str(copy))
    warm.warm()
    np.testing.assert_allclose(lean.map(store=False).xy, warm.map(store=False).xy, atol=1e-6)
    assert "projections" not in open_store(str(copy)).tables() or not open_store(str(copy)).count("projections")


def index_again(path: Path, slide_no: int, matrix: np.ndarray | None) -> None:
    """As an indexing run does: take back, delete, write anew, finish; None only deletes."""
    store = open_store(str(path))
    (name,) = [name for name in store.tables() if name.startswith("vectors_")]
    rows = store.read(name, where=f"slide_no = {slide_no}")
    done = store.read("done", where=f"slide_no = {slide_no}").to_pylist()
    store.lance.delete("x", "done", f"slide_no = {slide_no}")
    store.lance.delete("x", name, f"slide_no = {slide_no}")
    if matrix is None:
        return
    import pyarrow as pa

    flat = pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), matrix.shape[1])
    column = rows.schema.get_field_index("vector")
    store.lance.append("x", name, rows.slice(0, len(matrix)).set_column(column, rows.schema.field("vector"), flat))
    row = done[0] | {"rows": len(matrix), "at": datetime.now(UTC)}
    store.lance.append("x", "done", pa.Table.from_pylist([row], schema=schema.DONE))


def test_slides_that_came_or_changed_are_placed_on_the_map_that_is(small: Any, copy: Path) -> None:
    cohort = open_cohort(str(copy))
    before = cohort.map()
    anew = unit(36, 16, seed=8)
    index_again(copy, 2, anew)
    assert unplaced_rows(cohort, cohort.choose(), "pca") == 36
    reporter = Counting()
    after = cohort.map(reporter=reporter)
    assert reporter.done == [("place", 36)]
    old = dict(zip(before.rows.tile_id.tolist(), before.xy.tolist(), strict=True))
    changed = after.rows.slide_no == 2
    assert changed.sum() == 36
    for tile, place in zip(after.rows.tile_id[~changed].tolist(), after.xy[~changed].tolist(), strict=True):
        assert old[tile] == place
    finished = small.matrix[small.slide < 6]
    wide = finished.astype(np.float64)
    vectors = np.linalg.svd(wide - wide.mean(axis=0), full_matrices=False)[2][:2]
    vectors *= np.sign(vectors[np.arange(2), np.abs(vectors).argmax(axis=1)])[:, None]
    np.testing.assert_allclose(after.xy[changed], (anew - wide.mean(axis=0)) @ vectors.T, atol=1e-5)
    assert after.notes == () and after.fitted_on == 216
    again = Counting()
    np.testing.assert_array_equal(open_cohort(str(copy)).map(reporter=again).xy, after.xy)
    assert again.done == []


def test_the_same_tiles_with_other_vectors_are_noticed(copy: Path) -> None:
    cohort = open_cohort(str(copy))
    first = cohort.map()
    index_again(copy, 0, unit(36, 16, seed=1))
    second = cohort.map()
    moved = (first.xy[np.argsort(first.rows.tile_id)] != second.xy[np.argsort(second.rows.tile_id)]).any(axis=1)
    assert moved.sum() == 36


def test_many_changes_are_said_until_the_map_is_fitted_anew(copy: Path) -> None:
    cohort = open_cohort(str(copy))
    cohort.map()
    index_again(copy, 0, unit(36, 16, seed=1))
    assert cohort.map().notes == ()
    index_again(copy, 1, unit(36, 16, seed=2))
    (note,) = cohort.map().notes
    assert "72 of 216 tiles came after" in note and "--refit" in note
    assert open_cohort(str(copy)).map().notes == (note,)
    refitted = cohort.map(refit=True)
    assert refitted.notes == () and refitted.fitted_on == 216
    np.testing.assert_allclose(refitted.xy, plane_of(cohort.vectors().matrix), atol=1e-5)
    assert open_cohort(str(copy)).map().notes == ()


def test_slides_that_are_gone_are_not_shown(copy: Path) -> None:
    cohort = open_cohort(str(copy))
    before = cohort.map()
    index_again(copy, 4, None)
    after = cohort.map()
    assert len(after) == 180 and unplaced_rows(cohort, cohort.choose(), "pca") == 0
    np.testing.assert_array_equal(after.xy, before.xy[before.rows.slide_no != 4])


def test_a_map_of_another_format_is_made_anew(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = open_cohort(str(copy))
    cohort.map()
    monkeypatch.setattr("query.projection.making._FORMAT", 2)
    assert unplaced_rows(cohort, cohort.choose(), "pca") is None
    reporter = Counting()
    assert cohort.map(reporter=reporter).settings["format"] == 2
    assert reporter.done == [("fit", 216), ("place", 216)]


def test_a_store_that_cannot_be_written_has_its_map_all_the_same(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = open_cohort(str(copy))

    def refuse(*_: object) -> None:
        raise StoreError("The table projections could not be written: read-only file system.")

    monkeypatch.setattr(Tables, "append", refuse)
    found = cohort.map()
    assert not found.stored and "not stored" in found.notes[0] and "read-only" in found.notes[0]
    assert len(found.xy) == 216
    assert read_map(open_store(str(copy)), name_of(cohort), "pca") is None


def test_umap_is_stored_with_what_places_later_slides(copy: Path) -> None:
    cohort = open_cohort(str(copy), device="cpu")
    first = cohort.map("umap")
    assert np.isfinite(first.xy).all() and first.fitted_on == 216 and first.notes == ()
    np.testing.assert_array_equal(open_cohort(str(copy)).map("umap").xy, first.xy)
    same = cohort.vectors().matrix[first.rows.slide_no == 3]
    index_again(copy, 3, same)  # the same vectors, computed again
    second = cohort.map("umap")
    order, other = np.argsort(first.rows.tile_id), np.argsort(second.rows.tile_id)
    np.testing.assert_allclose(second.xy[other], first.xy[order], atol=1e-4)
    settings = second.settings
    assert settings["rows"] == 216 and settings["seed"] == 7 and settings["placed_by"] == 5
    refitted = cohort.map("umap", refit=True, store=False)
    np.testing.assert_allclose(refitted.xy[other], first.xy[order], atol=0.5)  # the order of the rows is another


def test_what_cannot_be_mapped_is_said(copy: Path) -> None:
    cohort = open_cohort(str(copy))
    with pytest.raises(QueryError, match="Choose from: pca, umap"):
        cohort.map("tsne")
    with pytest.raises(QueryError, match="no vectors of encoder"):
        cohort.map(encoder="other")
    open_store(str(copy)).lance.delete("x", "done", "true")
    with pytest.raises(QueryError, match="no tile to map"):
        cohort.map()


@pytest.mark.parametrize("side", [1, 2])
def test_one_slide_of_few_tiles_has_a_map(write_store: Any, tmp_path: Path, side: int) -> None:
    write_store(tmp_path / "tiny", [{"slide_id": "a"}], side=side)
    cohort = open_cohort(str(tmp_path / "tiny"))
    found = cohort.map()
    assert np.isfinite(found.xy).all() and found.extent.width > 0 and found.extent.height > 0
    with pytest.raises(QueryError, match="UMAP needs at least 16"):
        cohort.map("umap")
