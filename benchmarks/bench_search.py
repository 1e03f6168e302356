"""Every engine against its bare counterpart in the same run: exact, streaming, FAISS, LanceDB; filters; the planner."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import torch
from harness import (
    Row,
    add_options,
    cores,
    describe_machine,
    interleave,
    median_ratio,
    memory_gib,
    peak_memory_gib,
    report,
)
from large_store import clustered, write_store
from numpy.typing import NDArray

from encoder.progress import SilentReporter
from query import open_cohort
from query.build import LEAST_ROWS, BuildRequest, build_index
from query.cohort import Cohort
from query.engines.contract import Ask, Engine
from query.engines.faiss_ivf import load_faiss
from query.engines.resident import ResidentExact
from query.engines.streaming import StreamingExact
from query.planner import HALF_ROWS, choose_engine
from query.recall import cheapest, held_out, mean_recall
from query.room import Room

K = 10
TARGET = 0.95
# Filters over the share of tissue, which large_store.py spreads evenly; {e} makes every filter a new one, {form} one of
# a form that was never asked before, which has to be parsed.
FILTERS = {
    "10 %": "tissue < 0.1 + {e}",
    "1 %": "tissue < 0.01 + {e}",
    "0.1 %": "tissue < 0.001 + {e}",
    "1 %, not comparisons alone": "abs(tissue) < 0.01 + {e}",
    "1 %, of a new form": "abs(tissue) < 0.01 + {e}{form}",
    "0.01 %": "tissue < 0.0005 + {e} AND slide_no % 10 = 0",
}


def best(engine: Engine, vector: NDArray[Any], k: int = K) -> NDArray[np.int64]:
    """Rows nearest to one vector."""
    return next(iter(engine.rank([Ask(vector)]))).best(k).rows


def truth(matrix: NDArray[np.float32], vector: NDArray[np.float32], allowed: NDArray[np.bool_] | None) -> NDArray:
    """The k nearest allowed rows by a plain product with all vectors."""
    scores = matrix.astype(np.float32) @ vector
    if allowed is not None:
        scores[~allowed] = -np.inf
    count = min(K, len(scores) if allowed is None else int(allowed.sum()))
    return np.argsort(-scores, kind="stable")[:count]


def ratio(times: Mapping[str, Sequence[float]], one: str, other: str) -> float:
    """Median over the rounds of one alternative's time over another's."""
    return median_ratio(times[one], times[other])


def less(times: Mapping[str, Sequence[float]], one: str, other: str) -> float:
    """Median over the rounds of one alternative's time less another's, milliseconds."""
    return 1e3 * statistics.median(a - b for a, b in zip(times[one], times[other], strict=True))


def settle() -> None:
    """Let the threads of the library that ran before go to sleep: some spin for a moment, on a core of the next one."""
    time.sleep(0.01)


def compile_scan(engine: ResidentExact | StreamingExact, queries: Iterator[Any]) -> None:
    """Search until the scan is compiled, where the table is large enough for that: the second search begins it."""
    for _ in range(2):
        best(engine, next(queries))
    if engine.loop.compiling is not None:
        engine.loop.compiling.result()


def exact_rows(room: Room, name: str, queries: Iterator[Any], repeats: int) -> list[Row]:
    """Exact search in memory and from disk against passes over the same bytes."""
    matrix, rows = room.matrix(), room.rows
    resident = ResidentExact(matrix, rows.places)
    compile_scan(resident, queries)
    whole = torch.from_numpy(matrix.copy())
    limits = np.zeros(len(rows), bool)
    limits[::2] = True
    times = interleave(
        {
            "query": lambda: best(resident, next(queries)),
            "pass": lambda: whole.sum(),
            "half": lambda: next(iter(resident.rank([Ask(next(queries))], limits))).best(K),
            "batch": lambda: [r.best(K) for r in resident.rank([Ask(next(queries)) for _ in range(32)])],
        },
        3 * repeats,
        settle,
    )
    ms = {key: 1e3 * statistics.median(values) for key, values in times.items()}
    rate = matrix.nbytes / 1e6 / ms["pass"]
    detail = f"query {ms['query']:.1f} ms, pass {ms['pass']:.1f} ms ({rate:.0f} GB/s)"
    out = [
        Row(
            f"{name}: exact query / pass over memory",
            ratio(times, "query", "pass"),
            "x",
            1.3,
            False,
            detail,
        ),
        Row(f"{name}: half the rows allowed", ms["half"], "ms"),
        Row(f"{name}: a query in a batch of 32", ms["batch"] / 32, "ms"),
    ]
    # Searches use half precision from so many rows on.
    if len(rows) >= HALF_ROWS and room.shelf.warm("half", wait=True):
        half = room.shelf.get("half")
        times = interleave(
            {"half": lambda: best(half, next(queries)), "pass": lambda: whole.sum()}, 3 * repeats, settle
        )
        out.append(Row(f"{name}: bfloat16 scan / pass over memory", ratio(times, "half", "pass"), "x"))
    streaming = StreamingExact(room.vectors, rows.places)
    compile_scan(streaming, queries)

    dataset = lancedb.connect(room.store.uri).open_table(room.table).to_lance()

    def bare() -> None:
        for _ in dataset.scanner(columns=["vector"], batch_size=4096).to_batches():
            pass

    times = interleave({"streaming": lambda: best(streaming, next(queries)), "pass": bare}, 2 * repeats, settle)
    detail = f"query {1e3 * statistics.median(times['streaming']):.0f} ms"
    return [
        *out,
        Row(
            f"{name}: streaming query / pass over the table", ratio(times, "streaming", "pass"), "x", 1.2, False, detail
        ),
    ]


def faiss_rows(cohort: Cohort, room: Room, name: str, own: NDArray[np.int64], repeats: int) -> list[Row]:
    """FAISS as searches use it against FAISS bare, at the setting that reaches the target."""
    if not room.shelf.warm("faiss", wait=True):
        return []
    matrix, index, steps = room.matrix(), room.shelf.get("faiss"), room.shelf.faiss_steps
    step = cheapest(steps, TARGET)
    if index is None or step is None or step.probes is None:
        return []
    engine = index.probing(step.probes)
    faiss = load_faiss()
    parameters = faiss.SearchParametersIVF(nprobe=step.probes)
    vectors = iter(matrix[np.tile(own, 40)])
    found = [best(engine, matrix[row], K + 1) for row in own]
    true = [truth(matrix, matrix[row], None) for row in own]
    room._scan_seconds = 10.0  # as if a scan were slow, so that FAISS answers at 200,000 rows too

    def bare() -> None:
        index.index.search(next(vectors)[None], K, params=parameters)

    times = interleave({"bare": bare, "ours": lambda: best(engine, next(vectors))}, 4 * repeats)
    # The same queries for both, and many: some lists are three times as long as others.
    asked, searched = iter(np.tile(own, 40)), iter(np.tile(own, 40))
    whole = interleave(
        {
            "engine": lambda: best(engine, matrix[next(asked)]),
            "search": lambda: cohort.search(matrix[next(searched)], k=K, target_recall=TARGET),
        },
        40 * repeats,
    )
    room._scan_seconds = None
    ms = {key: 1e3 * statistics.median(values) for key, values in times.items()}
    detail = f"ours {ms['ours']:.2f} ms with exact ranking, bare {ms['bare']:.2f} ms, {step.probes} lists probed"
    return [
        Row(f"{name}: FAISS recall@10 at target {TARGET}", mean_recall(found, true, K)[0], "", TARGET, True),
        Row(f"{name}: FAISS, ours / bare", ratio(times, "ours", "bare"), "x", detail=detail),
        Row(f"{name}: a whole search over FAISS less the engine", less(whole, "search", "engine"), "ms", 1.0, False),
    ]


def lance_rows(uri: str, name: str, own: NDArray[np.int64], matrix: NDArray[np.float32], repeats: int) -> list[Row]:
    """The store's index as searches use it where vectors do not fit memory, against LanceDB asked directly."""
    card = build_index(uri, BuildRequest(target_recall=TARGET), SilentReporter())
    cohort = open_cohort(uri, memory_budget=1, device="cpu")
    step = cheapest(card.steps, TARGET)
    if step is None:
        return [Row(f"{name}: best recall@10 of the index", max(s.recall for s in card.steps), "", TARGET, True)]
    table = lancedb.connect(uri).open_table(card.table)
    searched, asked = iter(np.tile(own, 40)), iter(np.tile(own, 40))

    def bare() -> None:
        query = table.search(matrix[next(asked)]).distance_type("cosine").refine_factor(step.refine)
        query = query.nprobes(step.probes or card.partitions)
        query.limit(K).select(["tile_id", "_distance"]).to_arrow()

    times = interleave(
        {"bare": bare, "ours": lambda: cohort.search(matrix[next(searched)], k=K, target_recall=TARGET)}, repeats
    )
    row_of = cohort.room(cohort.choose()).rows.row_of
    found = [row_of(cohort.search(matrix[row], k=K).tile_ids) for row in own]
    true = [truth(matrix, matrix[row], None) for row in own]
    ms = {key: 1e3 * statistics.median(values) for key, values in times.items()}
    detail = (
        f"ours {ms['ours']:.1f} ms with exact ranking and rows, bare {ms['bare']:.1f} ms; built in {card.seconds:.1f} s"
    )
    return [
        Row(f"{name}: index recall@10 at target {TARGET}", mean_recall(found, true, K)[0], "", TARGET, True),
        Row(f"{name}: index, ours / bare LanceDB", ratio(times, "ours", "bare"), "x", detail=detail),
    ]


def filter_rows(cohort: Cohort, room: Room, name: str, own: NDArray[np.int64], repeats: int) -> list[Row]:
    """Filtered searches, each filter new, against an exact search without one; recall against a plain product."""
    matrix = room.matrix()
    rows, count = [], 0

    def ask(row: int, where: str | None) -> Any:
        return cohort.search(matrix[row], k=K, where=where, target_recall=1.0 if where is None else TARGET)

    for share, text in FILTERS.items():
        searched = iter(np.tile(own, 40))

        def filtered(text: str = text, searched: Iterator[Any] = searched) -> Any:
            nonlocal count
            count += 1
            return ask(next(searched), text.format(e=count * 1e-9, form=" " * count))

        times = interleave({"filtered": filtered, "exact": lambda s=searched: ask(next(s), None)}, 2 * repeats)
        where = text.format(e=0, form="")
        allowed = room.filter.mask(where)
        found = [room.rows.row_of(ask(row, where).tile_ids) for row in own[:30]]
        true = [truth(matrix, matrix[row], allowed) for row in own[:30]]
        ms = 1e3 * statistics.median(times["filtered"])
        rows.append(
            Row(f"{name}: recall@10, filter that allows {share}", mean_recall(found, true, K)[0], "", 0.99, True)
        )
        rows.append(
            Row(
                f"{name}: new filter of {share} / exact",
                ratio(times, "filtered", "exact"),
                "x",
                2.0,
                False,
                f"{ms:.1f} ms",
            )
        )
    return rows


def planner_rows(cohort: Cohort, room: Room, name: str, own: NDArray[np.int64], repeats: int) -> list[Row]:
    """What a search costs beside its engine: freshness, planning, percentiles, rows of the answer."""
    matrix = room.matrix()
    asked, searched = iter(np.tile(own, 40)), iter(np.tile(own, 40))

    def bare() -> None:
        # The engine that the search will choose: half precision, where this processor has it.
        engine = room.engine(choose_engine(room.situation(K, len(room.rows), 1.0)))
        best(engine, matrix[next(asked)])

    times = interleave(
        {
            "engine": bare,
            "search": lambda: cohort.search(matrix[next(searched)], k=K, target_recall=1.0),
        },
        6 * repeats,
    )
    ms = {key: 1e3 * statistics.median(values) for key, values in times.items()}
    over = less(times, "search", "engine")
    detail = f"search {ms['search']:.1f} ms, engine {ms['engine']:.1f} ms"
    return [Row(f"{name}: a whole search less its engine", over, "ms", max(1.0, 0.1 * ms["engine"]), False, detail)]


def measure(uri: str, name: str, repeats: int, build: bool) -> list[Row]:
    """All comparisons on one store."""
    cohort = open_cohort(uri, device="cpu")
    room = cohort.room(cohort.choose())
    matrix = room.matrix()
    own = held_out(len(matrix), 100, seed=3)
    np.random.default_rng(3).shuffle(own)
    queries = iter(matrix[np.random.default_rng(1).integers(0, len(matrix), 600 * repeats + 500)])
    cohort.search(matrix[0], target_recall=1.0)
    rows = exact_rows(room, name, queries, repeats)
    rows += planner_rows(cohort, room, name, own, repeats)
    rows += filter_rows(cohort, room, name, own, repeats)
    rows += faiss_rows(cohort, room, name, own, repeats)
    kept = np.array(matrix)
    room.close()
    if build and len(kept) >= LEAST_ROWS:
        rows += lance_rows(uri, name, own, kept, repeats)
    return rows


def main() -> None:
    """Measure synthetic stores of 200,000 and 1,000,000 vectors, or a store of yours."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--rows", type=int, nargs="+", default=[200_000, 1_000_000])
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--store", help="measure this store instead; its index is built anew")
    options = parser.parse_args()
    machine = describe_machine()
    torch.set_num_threads(cores())
    rows: list[Row] = []
    if options.store is not None:
        rows += measure(options.store, Path(options.store).name, options.repeats, True)
    for count in options.rows if options.store is None else ():
        if count * options.dim * 4 / 2**30 > 0.25 * memory_gib():
            print(f"left out {count:,} rows: they do not fit a quarter of this machine's memory")
            continue
        with tempfile.TemporaryDirectory() as folder:
            uri = str(Path(folder) / "store")
            write_store(uri, clustered(count, options.dim, seed=count))
            rows += measure(uri, f"{count:,} x {options.dim}", options.repeats, True)
    if not rows:
        raise SystemExit("nothing was measured; give fewer --rows")
    rows.append(Row("peak memory of the process", peak_memory_gib(), "GiB"))
    report("search", rows, options.out, machine)


if __name__ == "__main__":
    main()
