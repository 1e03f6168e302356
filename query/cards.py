"""Recall cards: what an index of the store was measured to find, kept with it and shown with results."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from indexer.ann import IndexState, index_state
from indexer.store import Store
from query.background import Background
from query.recall import Step


@dataclass(frozen=True)
class CardLine:
    """What searches find at one selectivity of the filter.

    Attributes:
        share: of the rows that the filter allows; 1 for no filter.
        engine: what answered.
        recall_at_1, recall_at_10, recall_at_100: mean share of the true neighbours that were found.
        milliseconds: median time of a query.
    """

    share: float
    engine: str
    recall_at_1: float
    recall_at_10: float
    recall_at_100: float
    milliseconds: float


@dataclass(frozen=True)
class IndexCard:
    """One index and how right it is.

    Attributes:
        table: of the vectors.
        table_version: that the card was measured on.
        kind: of the index.
        rows: searchable when it was made.
        partitions: lists of the index.
        seconds: that making it took, measurements excluded.
        bytes: of the index on disk; None where the store does not tell.
        target_recall: that was asked for.
        queries: rows of the store that were asked for, each left out of its own answer.
        steps: recall@10 by setting, unfiltered.
        lines: recall by selectivity, with the setting that reaches the target.
        background: distances of random pairs.
        run_id: of the run that made it.
        at: when, ISO 8601.
    """

    table: str
    table_version: int
    kind: str
    rows: int
    partitions: int
    seconds: float
    bytes: int | None
    target_recall: float
    queries: int
    steps: tuple[Step, ...]
    lines: tuple[CardLine, ...]
    background: Background
    run_id: str
    at: str

    def to_row(self) -> dict[str, Any]:
        """As a row of `indexes`, less its time."""
        settings = {
            "partitions": self.partitions,
            "target_recall": self.target_recall,
            "steps": [asdict(step) for step in self.steps],
        }
        card = {"queries": self.queries, "lines": [asdict(line) for line in self.lines]}
        return {
            "table_name": self.table,
            "table_version": self.table_version,
            "kind": self.kind,
            "settings": json.dumps(settings),
            "rows": self.rows,
            "seconds": self.seconds,
            "bytes": self.bytes,
            "card": json.dumps(card),
            "distribution": self.background.to_json(),
            "run_id": self.run_id,
        }

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it, without the distribution."""
        values = {name: value for name, value in asdict(self).items() if name != "background"}
        return values | {"random_pairs": {"pairs": self.background.pairs, "basis": self.background.basis}}


def card_of_row(row: dict[str, Any], dim: int) -> IndexCard:
    """The card that a row of `indexes` holds."""
    settings, card = json.loads(row["settings"]), json.loads(row["card"])
    return IndexCard(
        table=row["table_name"],
        table_version=row["table_version"],
        kind=row["kind"],
        rows=row["rows"],
        partitions=settings["partitions"],
        seconds=row["seconds"],
        bytes=row["bytes"],
        target_recall=settings["target_recall"],
        queries=card["queries"],
        steps=tuple(Step(**step) for step in settings["steps"]),
        lines=tuple(CardLine(**line) for line in card["lines"]),
        background=Background.from_json(row["distribution"], dim),
        run_id=row["run_id"],
        at=row["at"].isoformat(),
    )


def read_card(store: Store, table: str, dim: int) -> IndexCard | None:
    """The card of a vectors table's index; None where it has no index, or one whose measurement did not end."""
    rows = [row for row in store.indexes().to_pylist() if row["table_name"] == table]
    if not rows or rows[-1]["card"] is None or index_state(store, table) is None:
        return None
    return card_of_row(rows[-1], dim)


def age_note(card: IndexCard, state: IndexState) -> str | None:
    """What to know of an index whose table has moved on; None where it has not."""
    if not state.rows_unindexed:
        return None
    return (
        f"{state.rows_unindexed:,} rows came after the index of {card.at[:10]} was made: each search compares "
        "them one by one. `histoseek maintain` adds them."
    )
