"""Searches that vectors in memory, on disk, or an index answer: the same hits, and what is said about them."""

from __future__ import annotations

import shutil
import threading
from types import SimpleNamespace

import lancedb
import numpy as np
import pyarrow as pa
import pytest

from encoder.errors import QueryError, StoreError
from encoder.progress import SilentReporter
from indexer.store import open_store
from query import open_cohort
from query.build import BuildRequest, build_index, check_room
from query.cards import read_card
from query.engines.contract import Places
from query.memory import MemoryBudget
from query.planner import Choice
from query.queries import RegionQuery, TileQuery, VectorQuery, examples
from query.shelf import Shelf

SIDE = 20  # tiles along a side of a slide
SLIDES = 8


@pytest.fixture(scope="module")
def written(tmp_path_factory, write_store):
    slides = [
        {"slide_id": f"s{n}", "patient_id": f"p{n // 2}", "site_id": "ab"[n % 2], "organ": ("liver", "colon")[n % 2]}
        for n in range(SLIDES)
    ]
    path = tmp_path_factory.mktemp("room") / "store"
    return write_store(path, slides, side=SIDE, extra={"organ": pa.string()}, unfinished=("s7",))


@pytest.fixture(scope="module")
def memory(written):
    return open_cohort(str(written.path))


@pytest.fixture(scope="module")
def disk(written):
    return open_cohort(str(written.path), memory_budget=1000)


def found(results):
    return results.table.select(["tile_key", "distance"]).to_pylist()


OPTIONS = [
    {},
    {"where": "organ = 'liver'"},
    {"where": "tissue > 0.99"},
    {"where": "organ = 'colon' AND x0 > 500", "exclude": ["slide"]},
    {"exclude": ["patient"], "per_slide": 2},
    {"per_patient": 1, "k": 9},
    {"apart": 3.0, "k": 40},
    {"per_slide": 3, "per_patient": 4, "apart": 2.0},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_what_stays_on_disk_is_found_as_in_memory(memory, disk, options):
    key = f"s2@{128 * 3},{128 * 5}"
    one, other = memory.search(key, **options), disk.search(key, **options)
    assert found(one) == found(other)
    assert one.plan.engine.startswith("resident") and other.plan.engine.startswith("streaming")
    assert "memory budget" in other.plan.why and other.plan.recall == 1
    np.testing.assert_array_equal(one.table["percentile"], other.table["percentile"])


@pytest.mark.parametrize("options", OPTIONS)
def test_a_batch_is_its_searches_one_by_one(memory, disk, options):
    keys = [f"s{n}@{128 * n},{128 * (n + 2)}" for n in range(5)]
    for cohort in (memory, disk):
        many = cohort.search_many(keys, **options)
        for key, results in zip(keys, many, strict=True):
            alone = memory.search(key, **options)
            assert found(results) == found(alone)
            assert results.plan.rows_matching == alone.plan.rows_matching
            assert results.plan.excluded == alone.plan.excluded


def test_an_empty_batch(memory):
    assert memory.search_many([]) == []


def test_per_patient_counts_all_slides_of_a_patient(memory):
    table = memory.search("s0@0,0", k=4, per_patient=1).table
    assert sorted(table["patient_id"].to_pylist()) == ["p0", "p1", "p2", "p3"]


def test_hits_stand_apart(memory):
    table = memory.search("s0@1280,1280", k=60, apart=3.0).table
    for slide in set(table["slide_id"].to_pylist()):
        places = [(r["x0"], r["y0"]) for r in table.to_pylist() if r["slide_id"] == slide]
        gaps = [max(abs(a[0] - b[0]), abs(a[1] - b[1])) for i, a in enumerate(places) for b in places[:i]]
        assert min(gaps, default=999) >= 3 * 128 - 2


def test_a_region_asks_for_the_nearest_of_its_tiles(written, memory, disk):
    region = RegionQuery("s1", ((100, 100), (600, 400)))
    inside = [
        row for row in range(len(written.matrix))
        if written.slide_ids[written.slide[row]] == "s1"
        and 100 < written.x0[row] + 64 < 600 and 100 < written.y0[row] + 64 < 400
    ]  # fmt: skip
    assert len(inside) == 8
    wide = written.matrix.astype(np.float64)
    distance = np.min([1 - wide @ wide[row] for row in inside], axis=0)
    order = [row for row in np.argsort(distance) if row not in inside][:10]
    for cohort in (memory, disk):
        results = cohort.search(region, k=10)
        assert results.table["tile_key"].to_pylist() == [written.key(row) for row in order]
        np.testing.assert_allclose(results.table["distance"], distance[order], atol=1e-6)
        assert "8 tiles" in results.plan.query and results.plan.rows_matching == len(written.matrix) - 8
        assert results.plan.percentiles == "random tiles and the query"
        np.testing.assert_array_equal(results.table["percentile"], memory.search(region, k=10).table["percentile"])
    assert "s1" not in cohort.search(region, k=10, exclude=["slide"]).table["slide_id"].to_pylist()


def test_a_store_named_from_here_is_found_from_elsewhere(written, monkeypatch):
    monkeypatch.chdir(written.path.parent)
    cohort = open_cohort("store")
    monkeypatch.chdir("/")
    assert len(cohort.search("s1@0,0", k=3)) == 3 and cohort.store.lance.mark("meta") != (0, 0)


def test_quick_searches_have_nothing_made_beside_them(written):
    cohort = open_cohort(str(written.path))
    for _ in range(4):
        cohort.search("s1@0,0")
    room = cohort.room(cohort.choose())
    if room._slow < 2:  # on a machine that is not overloaded
        assert not room.shelf._working and not room.shelf.failures and not room.shelf.has("half")


def test_what_is_faster_is_made_in_turn_and_no_search_waits_for_it(written, monkeypatch):
    monkeypatch.setattr("query.room.HALF_ROWS", 100)
    room = open_cohort(str(written.path)).room(open_cohort(str(written.path)).choose())
    asked, failures, held = [], {}, {}
    monkeypatch.setattr(room.shelf, "warm", lambda item, wait=False: asked.append(item) or item in held)
    monkeypatch.setattr(room.shelf, "get", held.get)
    monkeypatch.setattr(type(room.shelf), "failures", property(lambda _: failures))
    scan = Choice("resident", 1.0, "")
    for seconds in (0.2, 0.001, 0.2, 0.2):
        room.timed(scan, seconds, False, 1)
    assert asked == ["half", "half"]  # which finds the GPU; nothing else until it is there or has failed
    failures["half"] = "no bfloat16"
    room.timed(scan, 0.2, False, 1)
    assert asked[2:] == ["half", "faiss"]
    held["half"] = SimpleNamespace(on_gpu=True)
    room.timed(scan, 0.2, False, 1)
    assert asked[4:] == ["half", "faiss-gpu"]
    room.timed(scan, 0.2, True, 1)  # a filtered search says nothing of a whole scan
    assert len(asked) == 6


def test_a_polygon_holds_what_lies_in_it(memory):
    triangle = RegionQuery("s1", ((0, 0), (1000, 0), (0, 1000)))
    rectangle = RegionQuery("s1", ((0, 0), (1000, 1000)))
    assert int(memory.search(triangle).plan.query.split()[-2]) < int(memory.search(rectangle).plan.query.split()[-2])


@pytest.mark.parametrize(
    ("query", "says"),
    [
        (lambda: RegionQuery("s1", ((-500, -500), (-400, -400))), "centre of no indexed tile"),
        (lambda: RegionQuery("s7", ((0, 0), (900, 900))), "has no vectors here"),
        (lambda: RegionQuery("s9", ((0, 0), (900, 900))), "no slide 's9'"),
        (lambda: RegionQuery("s1", ((0, 0),)), "at least two corners"),
        (lambda: RegionQuery("s1", ((0, 0), (float("nan"), 5))), "at least two corners"),
        (lambda: RegionQuery("s1", ((0, 0), (5,))), "at least two corners"),
        (lambda: RegionQuery("s1", (("a", "b"), ("c", "d"))), "at least two corners"),
        (lambda: VectorQuery(np.array(["a"] * 16)), "is no vector"),
        (lambda: examples([]), "no example"),
        (lambda: examples(["s1@0,0"], ["s1@0,0", "s1@0,0"]), None),
        (lambda: examples([np.ones(16)], [np.ones(16) * 2]), None),
        (lambda: examples([examples(["s1@0,0"])]), "cannot hold examples"),
        (lambda: examples([np.ones(15)]), "16 numbers"),
    ],
)
def test_queries_that_cannot_be_answered(memory, query, says):
    if says is None:
        assert len(memory.search(query(), k=3)) == 3
        return
    with pytest.raises(QueryError, match=says):
        memory.search(query())


def test_examples_pull_and_push(written, memory):
    """What is like the second example comes nearer when it is added, and goes when it is a counter-example."""
    first, second = (int(np.flatnonzero(written.cluster == c)[0]) for c in (0, 1))
    keys = [written.key(first), written.key(second)]
    both = memory.search(examples(keys), k=200)
    less = memory.search(examples(keys[:1], keys[1:]), k=200)
    for results in (both, less):
        assert not set(keys) & set(results.table["tile_key"].to_pylist())

    def share(results, cluster):
        rows = [int(np.flatnonzero(written.tile_id == i)[0]) for i in results.tile_ids]
        return np.mean(written.cluster[rows] == cluster)

    alone = memory.search(examples(keys[:1]), k=200)
    assert share(both, 1) > share(alone, 1) + 0.05 and share(both, 0) > 0.2
    assert share(less, 1) <= share(alone, 1) and share(less, 0) > share(both, 0)
    wide = written.matrix.astype(np.float64)
    mean = wide[first] + wide[second]
    mean /= np.linalg.norm(mean)
    np.testing.assert_allclose(np.sort(both.table["distance"])[0], np.sort(1 - wide @ mean)[0], atol=1e-2)


def test_nothing_close_is_an_answer(written, memory):
    centre = written.matrix.astype(np.float64).mean(axis=0)
    far = memory.search(-centre, k=3)
    assert far.nothing_close and far.plan.notes[0].startswith("Nothing close: ")
    near = memory.search(written.key(0), k=3)
    assert not near.nothing_close and near.table["percentile"][0].as_py() == 0


def test_search_says_how_it_was_answered(memory):
    words = memory.search("s0@0,0", where="organ = 'liver'").explain()
    assert "engine    resident exact" in words and "because   a scan is quick" in words
    assert "recall    1 (exact)" in words and "time" in words and "random pairs of tiles of different patients" in words


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"per_patient": 0}, "per_patient is a whole number"),
        ({"apart": -1}, "apart is a number"),
        ({"apart": float("nan")}, "apart is a number"),
        ({"target_recall": 0}, "target_recall lies above 0"),
        ({"target_recall": 1.5}, "target_recall lies above 0"),
        ({"where": "orgn = 'x'"}, "Did you mean 'organ'"),
        ({"where": "organ = "}, "syntax"),
    ],
)
def test_bad_options(memory, options, says):
    with pytest.raises(QueryError, match=says):
        memory.search("s0@0,0", **options)


def test_the_in_memory_index_is_made_beside_searches_and_forgotten_with_its_table(written):
    cohort = open_cohort(str(written.path), device="cpu")
    cohort.warm(index=True)
    room = cohort.room(cohort.choose())
    room._scan_seconds = 10.0  # as on a table that takes long to scan
    results = cohort.search("s3@256,256", k=5, target_recall=0.5)
    assert results.plan.engine.startswith("FAISS IVF") and results.plan.recall >= 0.5
    assert "recall was measured" in results.plan.why
    assert room.shelf.warm("faiss") and room.shelf.faiss_steps[-1].recall >= 0.99
    truth = {row["tile_key"] for row in found(cohort.search("s3@256,256", k=5, target_recall=1))}
    assert len(truth & {row["tile_key"] for row in found(results)}) >= 2
    room.close()
    assert not room.shelf.has("faiss") and cohort._budget.held == 0


def test_a_half_precision_copy_answers_the_same(written, memory):
    cohort = open_cohort(str(written.path), device="cpu")
    room = cohort.room(cohort.choose())
    if not room.shelf.warm("half", wait=True):
        pytest.skip(room.shelf.failures["half"])
    for options in OPTIONS:
        results = cohort.search("s2@384,640", **options)
        assert found(results) == found(memory.search("s2@384,640", **options))
    assert "bfloat16" in cohort.search("s2@384,640").plan.engine


def test_what_is_only_faster_never_drops_the_vectors(written):
    cohort = open_cohort(str(written.path), memory_budget=7 * SIDE * SIDE * 4 * 16, device="cpu")
    room = cohort.room(cohort.choose())
    room.matrix()
    assert not room.shelf.warm("faiss", wait=True) and "memory budget" in room.shelf.failures["faiss"]
    assert room.shelf.has("vectors")
    with pytest.raises(QueryError, match="could not be made"):
        cohort.warm(index=True)


def test_the_budget_drops_what_was_used_longest_ago():
    budget, gone = MemoryBudget(100), []
    assert budget.reserve("a", 40, lambda: gone.append("a")) and budget.reserve("b", 40, lambda: gone.append("b"))
    budget.touch("a")
    assert not budget.reserve("c", 30, lambda: None, evict=False) and gone == []
    assert budget.reserve("c", 30, lambda: None) and gone == ["b"] and budget.held == 70
    assert not budget.reserve("d", 101, lambda: None) and budget.held == 70


def test_build_measures_what_an_independent_search_confirms(tmp_path, write_store):
    """The card's recall, computed again with nothing of ours: LanceDB asked directly, all distances in float64."""
    slides = [{"slide_id": f"s{n}", "patient_id": f"p{n}"} for n in range(6)]
    store = write_store(tmp_path / "store", slides, side=32, dim=32, spread=0.3)
    card = build_index(str(store.path), BuildRequest(target_recall=0.9, partitions=16), SilentReporter())
    assert card.rows == 6144 and card.partitions == 16 and card.queries == 100
    assert [line.share for line in card.lines] == [1.0, 0.1, 0.01, 0.001, 0.0001]
    assert all(line.recall_at_10 == 1 for line in card.lines[1:])
    assert card.lines[0].recall_at_10 >= 0.9
    own = np.sort(np.random.default_rng(7).choice(6144, 100, replace=False))
    wide = store.matrix.astype(np.float64)
    table = lancedb.connect(str(store.path)).open_table(card.table)
    for step in card.steps[:3]:
        shares = []
        for row in own:
            truth = set(store.tile_id[np.argsort(1 - wide @ wide[row])[1:11]].tolist())
            query = table.search(store.matrix[row]).distance_type("cosine").refine_factor(step.refine)
            query = query.nprobes(step.probes or 16).limit(11).select(["tile_id", "_distance"])
            got = [i for i in query.to_arrow()["tile_id"].to_pylist() if i != store.tile_id[row]][:10]
            shares.append(len(truth & set(got)) / 10)
        assert np.mean(shares) == pytest.approx(step.recall, abs=0.03)
    kept = read_card(open_store(str(store.path)), card.table, 32)
    assert kept is not None and kept.lines == card.lines and kept.steps == card.steps
    np.testing.assert_allclose(kept.background.quantiles, card.background.quantiles)


@pytest.fixture
def indexed(index_store, monkeypatch):
    """Three finished slides of 400 tiles with an index that answers wherever more than 50 rows match."""
    monkeypatch.setattr("query.planner.FETCH_ROWS", 50)
    return index_store


@pytest.fixture(scope="module")
def index_store(tmp_path_factory, write_store):
    slides = [{"slide_id": f"s{n}", "patient_id": f"p{n}"} for n in range(4)]
    store = write_store(tmp_path_factory.mktemp("index") / "store", slides, side=20, dim=32, unfinished=("s3",))
    build_index(str(store.path), BuildRequest(partitions=8), SilentReporter())
    return store


def test_an_index_answers_where_vectors_do_not_fit(indexed):
    store = indexed
    memory, disk = open_cohort(str(store.path)), open_cohort(str(store.path), memory_budget=1000)
    for options in ({}, {"where": "slide_id = 's1'"}, {"exclude": ["slide"]}, {"where": "tissue > 0.5", "k": 300}):
        truth, results = memory.search("s0@0,0", **options), disk.search("s0@0,0", **options)
        assert results.plan.engine.startswith("LanceDB index"), results.explain()
        assert len(results) == len(truth)
        shared = set(truth.table["tile_key"].to_pylist()) & set(results.table["tile_key"].to_pylist())
        assert len(shared) >= 0.9 * len(truth)
        exact = {row["tile_key"]: row["distance"] for row in found(truth)}
        for row in found(results):
            if row["tile_key"] in exact:
                assert row["distance"] == exact[row["tile_key"]]  # whatever the engine, distances are exact
        assert "s3" not in results.table["slide_id"].to_pylist()
    assert disk.search("s0@0,0", target_recall=1).plan.engine.startswith("streaming")
    everything = disk.search("s0@0,0", k=5000)
    assert len(everything) == 1200


def test_rows_that_came_after_the_index_are_found_and_named(tmp_path, write_store, monkeypatch):
    monkeypatch.setattr("query.planner.FETCH_ROWS", 50)
    slides = [{"slide_id": f"s{n}", "patient_id": f"p{n}"} for n in range(4)]
    store = write_store(tmp_path / "store", slides, side=20, dim=32, unfinished=("s3",))
    build_index(str(store.path), BuildRequest(partitions=8), SilentReporter())
    table = store.store.vectors_table_name(store.encoder_id, store.grid_id)
    rows = store.store.read(table, where="slide_no = 3")
    store.store.lance.delete("cleared", table, "slide_no = 3")
    store.store.lance.append("vectors", table, rows)
    done = store.store.read("done").slice(0, 1).to_pylist()[0] | {"slide_no": 3, "slide_id": "s3"}
    store.store.lance.append("done", "done", pa.Table.from_pylist([done], schema=store.store.table_schema("done")))
    disk = open_cohort(str(store.path), memory_budget=1000)
    results = disk.search("s3@0,0", k=20)
    assert results.table["tile_key"][0].as_py() == "s3@0,0" and results.plan.engine.startswith("LanceDB index")
    assert any("400 rows came after the index" in note for note in results.plan.notes)
    from indexer.upkeep import maintain

    maintain(str(store.path), keep_days=7)
    after = disk.search("s3@0,0", k=20)
    assert not any("came after the index" in note for note in after.plan.notes)
    assert after.table["tile_key"][0].as_py() == "s3@0,0"


@pytest.mark.parametrize("scale", [2.0**-1000, 2.0**-100, 2.0**100, 2.0**1000])
def test_a_vectors_length_does_not_matter(written, memory, scale):
    vector = written.matrix[5].astype(np.float64)
    assert found(memory.search(vector * scale, k=7)) == found(memory.search(vector, k=7))


def test_options_may_be_numpy_numbers(memory):
    assert len(memory.search("s1@0,0", k=np.int64(4), apart=np.int64(2), per_slide=np.int32(2))) == 4


def test_a_gpu_that_is_asked_for_and_is_not_there_is_an_error(written):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(QueryError, match=r"Device cuda cannot search: .*no CUDA device"):
        open_cohort(str(written.path), device="cuda").search("s1@0,0")


def test_a_batch_that_excludes_is_planned_as_filtered(tmp_path, indexed):
    disk = open_cohort(str(indexed.path), memory_budget=1000)
    keys = ["s0@0,0", "s1@128,128"]
    for results in disk.search_many(keys, k=5, exclude=["slide"]):
        assert results.plan.engine.startswith("LanceDB index on disk, all lists") and len(results) == 5
        assert results.plan.recall >= 0.99 and results.plan.rows_matching == 800


def test_more_hits_than_there_are_rows_from_an_index(indexed, monkeypatch):
    disk = open_cohort(str(indexed.path), memory_budget=1000)
    assert len(disk.search("s0@0,0", k=5000)) == 1200
    assert len(disk.search("s0@0,0", k=10**9)) == 1200
    assert len(disk.search("s0@0,0", where="x0 < 0")) == 0
    assert len(disk.search("s0@0,0", k=5000, per_slide=3)) == 9


def test_a_build_that_ended_early_leaves_no_card(tmp_path, indexed, monkeypatch):
    path = tmp_path / "store"
    shutil.copytree(indexed.path, path)
    cohort = open_cohort(str(path), memory_budget=1000)
    assert cohort.card() is not None and cohort.status()["indexes"][0]["recall_at_10"] > 0.9

    def fail(*_args, **_options):
        raise StoreError("the disk is full")

    monkeypatch.setattr("query.build._measure", fail)
    with pytest.raises(StoreError, match="the disk is full"):
        build_index(str(path), BuildRequest(kind="ivf-sq", partitions=4), SilentReporter())
    assert cohort.card() is None and cohort.status()["indexes"] == []
    assert cohort.search("s0@0,0").plan.engine.startswith("streaming")
    monkeypatch.undo()
    monkeypatch.setattr("query.planner.FETCH_ROWS", 50)
    card = build_index(str(path), BuildRequest(kind="ivf-sq", partitions=4), SilentReporter())
    assert cohort.card().lines == card.lines  # the open cohort sees it
    assert cohort.search("s0@0,0").plan.engine.startswith("LanceDB index")


@pytest.mark.parametrize("unfinished", [(), ("s1",), ("s0", "s3")])
def test_parts_of_the_vectors_are_all_of_them_under_their_numbers(tmp_path, write_store, unfinished, monkeypatch):
    monkeypatch.setattr("query.rows._BLOCK_BYTES", 7 * 4 * 16)
    monkeypatch.setattr("query.rows._PART_BLOCKS", 2)
    slides = [{"slide_id": f"s{n}"} for n in range(4)]
    store = write_store(tmp_path / "store", slides, unfinished=unfinished)
    cohort = open_cohort(str(store.path))
    room = cohort.room(cohort.choose())
    expected = store.matrix  # of finished slides
    for most in (1, 3, 5):
        parts = room.vectors.parts(most)
        assert len(parts) == most
        numbers = []
        for part in parts:
            for first, block in part:
                np.testing.assert_array_equal(block, expected[first : first + len(block)])
                numbers += range(first, first + len(block))
        assert numbers == list(range(len(expected)))
    np.testing.assert_array_equal(room.vectors.load(), expected)


def test_rows_of_unfinished_slides_are_no_reason_to_build(tmp_path, write_store):
    slides = [{"slide_id": f"s{n}"} for n in range(3)]
    store = write_store(tmp_path / "store", slides, side=20, unfinished=("s1", "s2"))
    with pytest.raises(StoreError, match="has 400 rows, an index needs 1,000"):
        build_index(str(store.path), BuildRequest(), SilentReporter())
    assert store.store.count("runs") == 0 and store.store.indexes().num_rows == 0


def test_searches_go_on_while_slides_come_and_go(tmp_path, write_store):
    """Rows of a slide that is being replaced are left out, never an error and never half of them."""
    slides = [{"slide_id": f"s{n}"} for n in range(4)]
    store = write_store(tmp_path / "store", slides, side=6)
    table = store.store.vectors_table_name(store.encoder_id, store.grid_id)
    rows = store.store.read(table, where="slide_no = 3")
    done = store.store.read("done", where="slide_no = 3")
    cohort, stop, problems, seen = open_cohort(str(store.path)), threading.Event(), [], set()

    def ask():
        while not stop.is_set():
            try:
                hits = cohort.search("s0@0,0", k=200).table["slide_id"].to_pylist()
                seen.add(hits.count("s3"))
            except Exception as error:  # noqa: BLE001
                problems.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(6):
        store.store.lance.delete("retracted", "done", "slide_no = 3")
        store.store.lance.delete("cleared", table, "slide_no = 3")
        store.store.lance.append("vectors", table, rows)
        store.store.lance.append("done", "done", done)
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == [] and seen <= {0, 36}
    assert cohort.search("s0@0,0", k=200).table.num_rows == 144


def test_a_shelf_that_loses_its_room_while_it_reads_keeps_nothing():
    budget = MemoryBudget(3000)
    matrix = np.eye(16, dtype=np.float32)
    places = Places(*(np.arange(16, dtype=np.int32) for _ in range(3)))

    def load():
        budget.reserve("other", 2500, lambda: None)  # comes in between and needs the room
        return matrix

    shelf = Shelf(places, 16, load, budget)
    assert shelf.resident().matrix is matrix  # the search that waited is served
    assert not shelf.has("vectors") and budget.held == 2500


def test_a_closed_shelf_makes_nothing_more():
    budget = MemoryBudget(10_000)
    places = Places(*(np.arange(16, dtype=np.int32) for _ in range(3)))
    shelf = Shelf(places, 16, lambda: np.eye(16, dtype=np.float32), budget)
    assert shelf.warm("vectors", wait=True) and budget.held == 1024
    shelf.close()
    assert budget.held == 0 and not shelf.warm("vectors", wait=True) and not shelf.has("vectors")


def test_two_tables_share_the_budget_and_the_one_used_last_stays():
    budget = MemoryBudget(1500)
    places = Places(*(np.arange(16, dtype=np.int32) for _ in range(3)))
    one, two = (Shelf(places, 16, lambda: np.eye(16, dtype=np.float32), budget) for _ in range(2))
    one.resident()
    two.resident()
    assert not one.has("vectors") and two.has("vectors") and budget.held == 1024


def test_a_new_slide_moves_the_vectors_that_are_there(tmp_path, write_store):
    slides = [{"slide_id": f"s{n}"} for n in range(3)]
    store = write_store(tmp_path / "store", slides, side=6)
    cohort = open_cohort(str(store.path))
    before = cohort.vectors().matrix
    row = store.store.slides().to_pylist()[0] | {"slide_id": "a-first", "slide_no": 3, "thumbnail": None}
    full = store.store.table_schema("slides")
    store.store.lance.append("slides", "slides", pa.Table.from_pylist([row], schema=full))
    assert cohort.search("s1@0,0", k=1).table["slide_id"][0].as_py() == "s1"
    assert np.shares_memory(cohort.vectors().matrix, before)


def test_build_refuses_what_there_is_no_room_for(written, monkeypatch):
    from indexer.ann import Estimate

    store = open_store(str(written.path))
    with pytest.raises(StoreError, match=r"needs about 1000000.0 GiB of memory, .* are free"):
        check_room(store, Estimate(10**6 << 30, 0, 1.0))
    with pytest.raises(StoreError, match=r"GiB of disk, .* are free"):
        check_room(store, Estimate(0, 10**9 << 30, 1.0))
    check_room(store, Estimate(1 << 20, 1 << 20, 1.0))


def test_build_refuses_a_store_of_few_rows_and_writes_nothing(small):
    before = open_store(str(small.path)).count("runs")
    with pytest.raises(StoreError, match="216 rows, an index needs 1,000"):
        build_index(str(small.path), BuildRequest(), SilentReporter())
    store = open_store(str(small.path))
    assert store.count("runs") == before and store.indexes().num_rows == 0
    assert open_cohort(str(small.path)).card() is None


def test_a_tile_is_still_its_own_first_hit(memory):
    assert memory.search(TileQuery("s4@128,256"), k=1).table["tile_key"][0].as_py() == "s4@128,256"
