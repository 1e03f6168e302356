"""The vector index of a table: what it finds, beside what it does not know, under filters, and at the edges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from encoder.errors import StoreError
from indexer import ann, schema
from indexer.store import Store, create_store, open_store

NAME = "vectors_e_g"
KINDS: list[ann.Kind] = ["ivf-rq", "ivf-sq"]


def unit_vectors(rows: int, dim: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((20, dim))
    matrix = centres[rng.integers(20, size=rows)] + 0.4 * rng.standard_normal((rows, dim))
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


def write(store: Store, matrix: np.ndarray, first: int = 0, parts: int = 3) -> None:
    """Append vectors with ascending tile ids, ten to a slide, in some commits."""
    layout = schema.vectors_schema(matrix.shape[1], 1.0)
    store.lance.create(NAME, layout)
    for rows in np.array_split(np.arange(len(matrix)), parts):
        ids = rows + first
        columns = {
            "tile_id": ids,
            "slide_no": (ids // 10).astype(np.int32),
            "x0": np.zeros(len(ids), np.int32),
            "y0": np.zeros(len(ids), np.int32),
            "tissue": np.ones(len(ids), np.float32),
            "norm": np.ones(len(ids), np.float32),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(matrix[rows].ravel()), matrix.shape[1]),
        }
        store.lance.append("vectors", NAME, pa.table(columns).cast(layout))


def exact(matrix: np.ndarray, vector: np.ndarray, count: int, rows: np.ndarray | None = None) -> list[int]:
    among = np.arange(len(matrix)) if rows is None else rows
    return among[np.argsort(-(matrix[among] @ vector), kind="stable")[:count]].tolist()


@pytest.fixture(scope="module", params=KINDS)
def indexed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, np.ndarray]:
    """Three thousand vectors in an index of eight partitions, and twenty that came later."""
    store = create_store(str(tmp_path_factory.mktemp("ann") / "s"))
    matrix = unit_vectors(3020, 32, 0)
    write(store, matrix[:3000])
    points: list[str] = []
    ann.create_index(open_store(store.uri, on_commit=points.append), NAME, request.param, 8)
    assert set(points) == {"indexed"}
    write(store, matrix[3000:], 3000, parts=1)
    return store, matrix


def test_the_state_of_an_index(indexed: tuple[Store, np.ndarray]) -> None:
    store, _ = indexed
    state = ann.index_state(store, NAME)
    assert state is not None
    assert (state.rows_indexed, state.rows_unindexed, state.partitions) == (3000, 20, 8)
    codes = 3000 * 32 // (8 if state.kind == "ivf-rq" else 1)
    assert state.bytes is not None
    assert codes < state.bytes < 2 * codes + 100_000


def test_all_partitions_and_enough_refinement_are_exact_also_about_rows_that_came_later(
    indexed: tuple[Store, np.ndarray],
) -> None:
    store, matrix = indexed
    for row in (5, 1700, 3007):
        found = ann.nearest(store, NAME, matrix[row], 10, None, 30, None)
        assert set(found.tile_id.tolist()) == set(exact(matrix, matrix[row], 10))
        assert found.tile_id[0] == row
        assert found.vectors.dtype == np.float32
        np.testing.assert_array_equal(found.vectors, matrix[found.tile_id])


def test_few_partitions_find_most(indexed: tuple[Store, np.ndarray]) -> None:
    store, matrix = indexed
    queries = unit_vectors(30, 32, 7)
    hits = [
        len(set(ann.nearest(store, NAME, query, 10, 4, 20, None).tile_id.tolist()) & set(exact(matrix, query, 10)))
        for query in queries
    ]
    assert np.mean(hits) >= 9


@pytest.mark.parametrize("nprobes", [1, None])
def test_every_row_that_a_filter_leaves_is_found(indexed: tuple[Store, np.ndarray], nprobes: int | None) -> None:
    store, matrix = indexed
    rows = np.flatnonzero(np.isin(np.arange(len(matrix)) // 10, [3, 70, 301]))
    assert len(rows) == 30
    found = ann.nearest(store, NAME, matrix[0], 50, nprobes, 2, "slide_no IN (3, 70, 301)")
    assert sorted(found.tile_id.tolist()) == rows.tolist()
    few = ann.nearest(store, NAME, matrix[0], 5, None, 10, "slide_no IN (3, 70, 301)")
    assert set(few.tile_id.tolist()) == set(exact(matrix, matrix[0], 5, rows))
    none = ann.nearest(store, NAME, matrix[0], 5, nprobes, 2, "slide_no = 9999")
    assert none.vectors.shape == (0, 32)


def test_more_than_there_is_gives_all_there_is(indexed: tuple[Store, np.ndarray]) -> None:
    store, matrix = indexed
    found = ann.nearest(store, NAME, matrix[3], 5000, 1, 1, None)
    assert sorted(found.tile_id.tolist()) == list(range(3020))


def test_a_search_may_be_of_an_earlier_version(indexed: tuple[Store, np.ndarray]) -> None:
    store, matrix = indexed
    found = ann.nearest(store, NAME, matrix[3007], 5000, None, 1, None, store.table_version(NAME) - 1)
    assert sorted(found.tile_id.tolist()) == list(range(3000))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 10])
def test_small_tables_can_be_indexed(tmp_path: Path, kind: ann.Kind, rows: int) -> None:
    store, matrix = create_store(str(tmp_path / "s")), unit_vectors(rows, 16, 0)
    write(store, matrix, parts=1)
    assert ann.index_state(store, NAME) is None
    state = ann.create_index(store, NAME, kind, 50)
    assert state.rows_indexed == rows
    assert ann.nearest(store, NAME, matrix[0], 3, 5, 2, None).tile_id[0] == 0


def test_another_kind_replaces_an_index(tmp_path: Path) -> None:
    store = create_store(str(tmp_path / "s"))
    write(store, unit_vectors(200, 16, 0))
    assert ann.create_index(store, NAME, "ivf-sq").kind == "ivf-sq"
    assert ann.create_index(store, NAME, "ivf-rq").kind == "ivf-rq"
    kinds = sorted(index.index_type for index in store.lance.indices(NAME))
    assert kinds == ["BTree", "Bitmap", "IvfRq"]


def test_an_index_for_another_metric_counts_as_none_and_does_not_make_answers_wrong(tmp_path: Path) -> None:
    from lancedb.index import IvfSq

    store, matrix = create_store(str(tmp_path / "s")), unit_vectors(300, 16, 0)
    write(store, matrix)
    store.lance.create_index("other", NAME, "vector", IvfSq(distance_type="l2"))
    assert ann.index_state(store, NAME) is None
    assert ann.nearest(store, NAME, 3 * matrix[8], 10, 1, 1, None).tile_id.tolist() == exact(matrix, matrix[8], 10)


def test_what_cannot_be_indexed_says_why(tmp_path: Path) -> None:
    store = create_store(str(tmp_path / "s"))
    store.lance.create(NAME, schema.vectors_schema(12, 1.0))
    with pytest.raises(StoreError, match="has no rows to index"):
        ann.create_index(store, NAME, "ivf-sq")
    assert ann.nearest(store, NAME, np.ones(12, np.float32), 5, None, 1, None).vectors.shape == (0, 12)
    write(store, unit_vectors(30, 12, 0))
    with pytest.raises(StoreError, match=r"have 12\. Use ivf-sq"):
        ann.create_index(store, NAME, "ivf-rq")
    assert ann.create_index(store, NAME, "ivf-sq").rows_indexed == 30
    with pytest.raises(StoreError, match="opened for reading only"):
        ann.create_index(open_store(store.uri, read_only=True), NAME, "ivf-sq")


@pytest.mark.parametrize(
    ("rows", "kind", "memory", "disk", "seconds"),
    [
        (200_000, "ivf-rq", 0.209e9, 28.3e6, 5.8),
        (1_000_000, "ivf-rq", 0.534e9, 142.9e6, 61.6),
        (200_000, "ivf-sq", 0.359e9, 158.0e6, 10.7),
        (1_000_000, "ivf-sq", 0.708e9, 790.9e6, 34.4),
    ],
)
def test_an_estimate_lies_above_what_was_measured_and_not_far(
    rows: int, kind: ann.Kind, memory: float, disk: float, seconds: float
) -> None:
    found = ann.estimate(rows, 384, kind)
    assert memory <= found.memory_bytes <= 2.5 * memory
    assert disk <= found.disk_bytes <= 1.3 * disk
    assert seconds <= found.seconds <= 2 * seconds
