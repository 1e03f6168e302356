"""Building the store's vector index: estimate first, make it, then measure how right it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encoder.errors import QueryError, StoreError
from encoder.progress import Reporter
from indexer import schema
from indexer.ann import Estimate, IndexState, Kind, create_index, estimate
from indexer.run_lock import RunLock
from indexer.store import Store, open_store
from indexer.tables import is_local
from query.cards import CardLine, IndexCard
from query.choice import VectorTable
from query.cohort import Cohort
from query.engines.contract import Ask, Engine
from query.engines.streaming import StreamingExact
from query.memory import available_memory
from query.planner import Choice, Situation, choose_engine
from query.recall import Step, cheapest, held_out, mean_recall, neighbours
from query.room import Room

# Fewer rows give an index nothing to learn from.
LEAST_ROWS = 1000
# Fewer rows are compared one by one in less time than an index is asked.
_WORTHWHILE_ROWS = 20_000
_QUERIES = 100
_PROBES: tuple[int | None, ...] = (10, 20, 50, 100, 200, None)
_REFINES = (5, 10, 30)
_ENOUGH = 0.999
_SHARES = (1.0, 0.1, 0.01, 0.001, 0.0001)
_SEED = 7


@dataclass(frozen=True)
class BuildRequest:
    """What to build.

    Attributes:
        encoder, grid: whose vectors; needed where the store has several.
        kind: how the index compresses vectors: 1 bit a number (`ivf-rq`) or 8 (`ivf-sq`).
        target_recall: that searches shall reach.
        partitions: lists of the index; None for LanceDB's choice.
    """

    encoder: str | None = None
    grid: str | None = None
    kind: Kind = "ivf-rq"
    target_recall: float = 0.95
    partitions: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.target_recall <= 1:
            raise QueryError(
                f"target_recall lies above 0 and is at most 1, got {self.target_recall!r}.", "0.95 is usual."
            )
        if self.partitions is not None and self.partitions < 1:
            raise QueryError(f"partitions must be at least 1, got {self.partitions}.", "Leave it out.")


def build_index(
    store_uri: str,
    request: BuildRequest,
    reporter: Reporter,
    memory_budget: int | None = None,
    on_commit: Callable[[str], None] | None = None,
) -> IndexCard:
    """Make the index of one vectors table, measure its recall, and keep both in the store.

    Searches go on meanwhile; new rows are found before they are in the index.

    Args:
        store_uri: of a store with vectors.
        request: what to build.
        reporter: told about the estimate and the steps.
        memory_budget: most bytes of vectors that the measurement holds; None for half of what is free.
        on_commit: called with a commit's name after each commit.

    Raises:
        StoreError: memory or disk would not do, the table is too small, or another run holds the store.
        QueryError: no such vectors.
    """
    store = open_store(store_uri, on_commit=on_commit)
    cohort = Cohort(store, memory_budget, device="cpu")
    table = cohort.choose(request.encoder, request.grid)
    name = store.vectors_table_name(table.encoder_id, table.grid_id)
    # Rows of unfinished slides are in the table, but not to be found.
    rows = len(cohort.room(table).rows)
    if rows < LEAST_ROWS:
        raise StoreError(
            f"{name} has {rows:,} rows, an index needs {LEAST_ROWS:,}.",
            fix="Search without one: comparing so few rows takes less time.",
        )
    if rows < _WORTHWHILE_ROWS:
        reporter.note(f"{rows:,} rows are few: comparing all of them takes less time than asking an index.")
    dim = store.table_schema(name).field("vector").type.list_size
    needed = estimate(rows, dim, request.kind)
    reporter.note(f"{rows:,} vectors of {dim} numbers: {describe_estimate(needed)}")
    check_room(store, needed)
    config = {"encoder": table.encoder_id, "grid": table.grid_id, "kind": request.kind}
    with RunLock(store, "build", config, "cpu", None) as run:
        reporter.start("build", None, "steps")
        started = perf_counter()
        # From here on no older card speaks for the index; the row without one is followed by the one with it.
        store.lance.create("indexes", schema.INDEXES)
        _append(store, {"table_name": name, "kind": request.kind, "rows": rows, "run_id": run.run_id})
        state = create_index(store, name, request.kind, request.partitions)
        seconds = perf_counter() - started
        reporter.advance(1, "index made")
        card = _measure(store, cohort, table, request, state, seconds, run.run_id, reporter)
        run.check()
        _append(store, card.to_row())
        reporter.finish()
        run.finish("finished", {"rows": rows, "partitions": state.partitions}, {"seconds": perf_counter() - started})
    return card


def _append(store: Store, row: dict[str, Any]) -> None:
    full = dict.fromkeys(schema.INDEXES.names) | row | {"at": datetime.now(UTC)}
    store.lance.append("indexes", "indexes", pa.Table.from_pylist([full], schema=schema.INDEXES))


def describe_estimate(needed: Estimate) -> str:
    """An estimate in words."""
    return (
        f"about {needed.memory_bytes / 2**30:.1f} GiB of memory, {needed.disk_bytes / 2**30:.2f} GiB of disk "
        f"and {needed.seconds:,.0f} s on this kind of machine"
    )


def check_room(store: Store, needed: Estimate) -> None:
    """Refuse where memory or disk would not do.

    Raises:
        StoreError: with the numbers.
    """
    free = available_memory()
    if needed.memory_bytes > free:
        raise StoreError(
            f"Building needs about {needed.memory_bytes / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free.",
            fix="Close other programs or use a larger machine.",
        )
    if is_local(store.uri):
        left = shutil.disk_usage(Path(store.uri)).free
        if needed.disk_bytes > left:
            raise StoreError(
                f"Building needs about {needed.disk_bytes / 2**30:.2f} GiB of disk, "
                f"{left / 2**30:.2f} GiB are free at {store.uri}.",
                fix="Free some; `histoseek maintain` removes old versions.",
            )


def _measure(
    store: Store,
    cohort: Cohort,
    table: VectorTable,
    request: BuildRequest,
    state: IndexState,
    seconds: float,
    run_id: str,
    reporter: Reporter,
) -> IndexCard:
    """Ask rows of the store by index and exactly, and compare."""
    room = cohort.room(table)
    exact = room.exact()
    own = held_out(len(room.rows), _QUERIES, _SEED)
    asks = [Ask(vector) for vector in room.take(own)]
    truth, _ = neighbours(exact, asks, own, 100)
    reporter.advance(1, "exact answers")
    steps: list[Step] = []
    for step in _settings(state.partitions):
        engine = room.by_index(step.probes, step.refine, state.partitions)
        found, times = neighbours(engine, asks, own, 10)
        recall, error = mean_recall(found, truth, 10)
        steps.append(Step(step.probes, step.refine, recall, 1e3 * float(np.median(times)), error))
        reporter.advance(1, f"recall@10 {recall:.3f}")
        if recall >= _ENOUGH:
            break
    background = room.background
    lines = [
        _line(room, exact, asks, own, truth, share, steps, state.partitions, request.target_recall)
        for share in _SHARES
    ]  # fmt: skip
    return IndexCard(
        table=room.table,
        table_version=room.rows.version,
        kind=request.kind,
        rows=len(room.rows),
        partitions=state.partitions,
        seconds=seconds,
        bytes=state.bytes,
        target_recall=request.target_recall,
        queries=len(asks),
        steps=tuple(steps),
        lines=tuple(lines),
        background=background,
        run_id=run_id,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _settings(partitions: int) -> Iterator[Step]:
    """Settings from fast to thorough."""
    probes = [number for number in _PROBES if number is None or number < partitions]
    for refine in _REFINES:
        for number in probes if refine == _REFINES[1] else probes[-1:] if refine > _REFINES[1] else probes[:-1]:
            yield Step(number, refine, 0.0, 0.0)


def _line(
    room: Room,
    exact: Engine,
    asks: list[Ask],
    own: NDArray[np.int64],
    truth: list[NDArray[np.int64]],
    share: float,
    steps: list[Step],
    lists: int,
    target: float,
) -> CardLine:
    """Recall and time where a filter allows a random share of the rows, by the engine that a search would choose."""
    count = len(room.rows)
    allowed = None
    if share < 1:
        allowed = np.zeros(count, np.bool_)
        rng = np.random.default_rng(_SEED)
        allowed[rng.choice(count, max(1, round(share * count)), replace=False)] = True
        truth, _ = neighbours(exact, asks, own, 100, allowed)
    matching = count if allowed is None else int(np.count_nonzero(allowed))
    # As where the vectors do not fit memory: there the index is what answers.
    situation = Situation(count, matching, min(target, 0.9999), "too large", 0.0, 0.0, index=steps, index_exists=True)
    choice = choose_engine(situation)
    if choice.engine == "streaming" and matching == count:
        choice = Choice("index", 0.0, "", max(steps, key=lambda step: step.recall))
    engine: Engine = StreamingExact(room.vectors, room.rows.places)
    if choice.step is not None:
        engine = room.by_index(choice.step.probes, choice.step.refine, lists)
    # Reading thousands of rows a hundred times would take most of the build.
    few = slice(None) if choice.step is not None else slice(None, None, 10)
    found, times = neighbours(engine, asks[few], own[few], 100, allowed)
    true = truth[few]
    first, ten, hundred = (mean_recall(found, true, k)[0] for k in (1, 10, 100))
    return CardLine(share, engine.name, first, ten, hundred, 1e3 * float(np.median(times)))


def reached(card: IndexCard) -> Step | None:
    """The setting that reaches the card's target; None where none does."""
    return cheapest(card.steps, card.target_recall)
