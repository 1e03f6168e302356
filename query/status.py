"""What a store holds and how it stands, in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

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
    """Counts of slides per status, rows per table, vectors, why slides are empty, open failures, the last run.

    The result holds only what JSON can hold.
    """
    counts = Counter(slides["status"].to_pylist())
    failures = store.quarantine(open_only=True).select(["slide_id", "phase", "tile_key", "message"]).to_pylist()
    reasons = store.slide_reasons()
    runs = store.runs().to_pylist()
    return {
        "store": store.uri,
        "slides": {status: counts.get(status, 0) for status in STATUSES},
        "rows": {name: store.count(name) for name in store.tables()},
        "vectors": [
            {
                "encoder_id": table.encoder_id,
                "encoder": table.encoder_name,
                "grid_id": table.grid_id,
                "rows": store.count(store.vectors_table_name(table.encoder_id, table.grid_id)),
            }
            for table in tables
        ],
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
