"""What a store holds and how it stands, in numbers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from indexer.ann import IndexState, index_state
from indexer.store import Store
from query.choice import VectorTable

STATUSES = ("registered", "indexed", "empty", "quarantined")


def searchable_status(store: Store, slide_ids: Sequence[str]) -> list[str]:
    """Status of each slide for those who ask: `indexed` where it has vectors in any table.

    A slide that failed on one grid keeps the vectors that it has on another; the failure stays in
    `quarantine`.
    """
    states = store.slide_status()
    done = store.read("done", ["slide_id", "rows"])
    pairs = zip(done["slide_id"].to_pylist(), done["rows"].to_pylist(), strict=True)
    states.update(dict.fromkeys((slide_id for slide_id, rows in pairs if rows), "indexed"))
    return [states.get(slide_id, "registered") for slide_id in slide_ids]


def cohort_status(store: Store, slides: pa.Table, tables: Sequence[VectorTable]) -> dict[str, Any]:
    """Counts of slides per status, rows per table, vectors, indexes, why slides are empty, open failures, the last run.

    The result holds only what JSON can hold.
    """
    counts = Counter(slides["status"].to_pylist())
    failures = store.quarantine(open_only=True).select(["slide_id", "phase", "tile_key", "message"]).to_pylist()
    reasons = store.slide_reasons()
    runs = store.runs().to_pylist()
    names = store.tables()
    newest = {row["table_name"]: row for row in store.indexes().to_pylist() if row["table_name"] in names}
    newest = {name: row for name, row in newest.items() if row["card"] is not None}
    return {
        "store": store.uri,
        "slides": {status: counts.get(status, 0) for status in STATUSES},
        "rows": {name: store.count(name) for name in names},
        "vectors": [
            {
                "encoder_id": table.encoder_id,
                "encoder": table.encoder_name,
                "grid_id": table.grid_id,
                "rows": store.count(store.vectors_table_name(table.encoder_id, table.grid_id)),
            }
            for table in tables
        ],
        "indexes": [_index_row(row, index_state(store, row["table_name"])) for row in newest.values()],
        "empty": [
            {"slide_id": slide_id, "reasons": reasons.get(slide_id, {})}
            for slide_id, status in zip(slides["slide_id"].to_pylist(), slides["status"].to_pylist(), strict=True)
            if status == "empty"
        ],
        "quarantine": failures,
        "last_run": {key: str(runs[-1][key]) for key in ("run_id", "command", "status", "started_at")}
        if runs
        else None,
    }


def _index_row(row: dict[str, Any], state: IndexState | None) -> dict[str, Any]:
    """What was measured of an index, and how many rows have come since."""
    unfiltered = json.loads(row["card"])["lines"][0]
    return {
        "table": row["table_name"],
        "kind": row["kind"],
        "built": row["at"].isoformat(timespec="seconds"),
        "rows_indexed": 0 if state is None else state.rows_indexed,
        "rows_unindexed": None if state is None else state.rows_unindexed,
        "recall_at_10": unfiltered["recall_at_10"],
        "milliseconds": unfiltered["milliseconds"],
    }
