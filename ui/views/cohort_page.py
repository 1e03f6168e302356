"""The cohort page: what the store holds, what failed and why, how right its indexes are, what has run."""

from __future__ import annotations

import json
from typing import Any

import streamlit as st

from encoder.errors import HistoSeekError
from query.cohort import Cohort
from query.database import Limits
from ui.views.plain import plain

_SQL = "SELECT status, count(*) AS slides FROM slides GROUP BY status ORDER BY slides DESC"
_LIMITS = Limits(seconds=20, memory_mib=256)  # of each person, and only a page of the answer is shown
_MOST_ROWS = 2000


def show(cohort: Cohort) -> None:
    """Draw the page."""
    status = cohort.status()
    _counts(status)
    slides, failures, indexes, runs, sql = st.tabs(
        ["Slides", f"Quarantine ({len(status['quarantine'])})", "Indexes", "Runs", "SQL"]
    )
    with slides:
        _slides(cohort, status)
    with failures:
        _failures(status)
    with indexes:
        _indexes(cohort)
    with runs:
        _runs(cohort)
    with sql:
        _sql(cohort)


def _counts(status: dict[str, Any]) -> None:
    tiles = sum(rows for name, rows in status["rows"].items() if name.startswith("tiles_"))
    vectors = sum(row["rows"] for row in status["vectors"])
    shown = {
        **{name.capitalize(): count for name, count in status["slides"].items()},
        "Tiles": tiles,
        "Vectors": vectors,
    }
    for column, (name, count) in zip(st.columns(len(shown)), shown.items(), strict=True):
        column.metric(name, f"{count:,}")
    st.caption(f"Store: {plain(status['store'])}")
    if status["last_run"] and status["last_run"]["status"] == "running":
        st.info("A run was writing to this store when this page was opened. Reload to see what it has finished since.")


def _slides(cohort: Cohort, status: dict[str, Any]) -> None:
    table = cohort.slides
    hidden = {"fingerprint", "slide_no", "manifest_mpp", "thumbnail", "path"}
    names = [name for name in table.column_names if name not in hidden and table[name].null_count < table.num_rows]
    first = [name for name in ("slide_id", "status") if name in names]
    shown = table.select([*first, *(name for name in names if name not in first)])
    st.dataframe(shown.slice(0, _MOST_ROWS), hide_index=True, width="stretch")
    if table.num_rows > _MOST_ROWS:
        st.caption(f"The first {_MOST_ROWS:,} of {table.num_rows:,} slides; SQL shows any of them.")
    for row in status["empty"]:
        why = ", ".join(f"{count} tiles {reason}" for reason, count in row["reasons"].items())
        st.caption(plain(f"Empty: {row['slide_id']} ({why or 'no tile fits on it'})"))


def _failures(status: dict[str, Any]) -> None:
    rows = status["quarantine"]
    if not rows:
        st.success("Nothing is in quarantine.")
        return
    st.dataframe(
        [
            {"slide": row["slide_id"], "tile": row["tile_key"], "phase": row["phase"], "why": row["message"]}
            for row in rows[:_MOST_ROWS]
        ],
        hide_index=True,
        width="stretch",
        column_config={"why": st.column_config.TextColumn(width="large")},
    )
    st.caption("`histoseek retry --store S` tries them again after the cause is removed.")


def _indexes(cohort: Cohort) -> None:
    for table in cohort.vector_tables:
        card = cohort.card(table.encoder_id, table.grid_id)
        st.markdown(f"**{plain(table.encoder_name)}** · {plain(table.grid_id)}")
        if card is None:
            st.caption("No index: every search is exact. `histoseek build --store S` makes one for large stores.")
            continue
        st.dataframe(
            [
                {
                    "rows that pass the filter": f"{100 * line.share:g} %",
                    "recall@1": line.recall_at_1,
                    "recall@10": line.recall_at_10,
                    "recall@100": line.recall_at_100,
                    "milliseconds": round(line.milliseconds, 1),
                }
                for line in card.lines
            ],
            hide_index=True,
            width="content",
        )
        st.caption(f"{card.kind}, {card.rows:,} rows, built {card.at[:10]}. Recall against exact search.")


def _runs(cohort: Cohort) -> None:
    rows = cohort.store.runs().to_pylist()[::-1][:200]
    if not rows:
        st.caption("Nothing has run yet.")
        return
    st.dataframe([_run(row) for row in rows], hide_index=True, width="stretch")


def _run(row: dict[str, Any]) -> dict[str, Any]:
    ended = row["finished_at"]
    return {
        "started": row["started_at"],
        "command": row["command"],
        "status": row["status"],
        "seconds": None if ended is None else round((ended - row["started_at"]).total_seconds(), 1),
        "device": row["device"],
        "counts": _words(row["counts"]),
    }


def _words(text: str | None) -> str:
    try:
        counts = json.loads(text or "{}")
    except ValueError:
        return str(text)
    return ", ".join(f"{name}: {value}" for name, value in counts.items() if value) if isinstance(counts, dict) else ""


def _sql(cohort: Cohort) -> None:
    with st.form("sql", border=False):
        text = st.text_area(
            "One SELECT over slides, tiles, annotations, runs, quarantine, indexes", _SQL, key="sql_text"
        )
        sent = st.form_submit_button("Run", type="primary")
    if not sent:
        return
    try:
        answer = cohort.sql(text, _LIMITS)
    except HistoSeekError as error:
        st.error(plain(error))
        return
    st.dataframe(answer.slice(0, _MOST_ROWS), hide_index=True, width="stretch")
    st.caption(
        f"{answer.num_rows:,} rows" + (f", the first {_MOST_ROWS:,} shown" if answer.num_rows > _MOST_ROWS else "")
    )
