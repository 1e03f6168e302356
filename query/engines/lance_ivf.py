"""The store's own vector index: inverted lists on disk, refined from the stored vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexer.ann import nearest
from indexer.store import Store
from indexer.tables import sql_in
from query.engines.contract import Ask, Hits, Places, Ranking, rank_exactly

# A list of slides in a filter; Lance answers such a list in milliseconds.
_MOST_SLIDES = 20_000
_WIDEN = 4
_SPARE = 1.5


@dataclass(frozen=True)
class LanceIvf:
    """Asks the index for more rows than are wanted and ranks them by their stored vectors.

    Rows that came after the index was made are found too. Where a filter leaves too few of the rows that
    the index gives, more are asked for, in the end from all lists: never fewer than exist.

    Attributes:
        store, table: where the index is.
        row_of: row numbers of tile ids, -1 for rows that may not be seen.
        slide_no: number of each row's slide, int32 [N].
        places: of the rows.
        probes: lists looked into; None for all.
        refine: rows whose stored vectors are compared, for each row wanted.
        lists: of the index.
        table_rows: of the table, also those that may not be seen.
        version: of the table; None for the latest.
    """

    store: Store
    table: str
    row_of: Callable[[NDArray[np.int64]], NDArray[np.int64]]
    slide_no: NDArray[np.int32]
    places: Places
    probes: int | None
    refine: int
    lists: int
    table_rows: int
    version: int | None = None

    @property
    def name(self) -> str:
        """In words."""
        lists = "all lists" if self.probes is None else f"{self.probes} lists"
        return f"LanceDB index on disk, {lists} probed, refined {self.refine} x, float64 ranking"

    def rank(self, asks: Sequence[Ask], allowed: NDArray[np.bool_] | None = None) -> Iterator[Ranking]:
        """See `Engine.rank`; rows that the probed lists do not hold are missed."""
        where, share = self.prefilter(allowed)
        for ask in asks:
            yield _LanceRanking(self, ask, allowed, where, share)

    def prefilter(self, allowed: NDArray[np.bool_] | None) -> tuple[str | None, float]:
        """A filter by slides that holds for all allowed rows, and the share of allowed rows among its rows."""
        if allowed is None:
            return None, 1.0
        matching = max(1, int(np.count_nonzero(allowed)))
        numbers = np.unique(self.slide_no[allowed])
        if not 0 < numbers.size <= _MOST_SLIDES:
            return None, matching / allowed.size
        rows = int(np.count_nonzero(np.isin(self.slide_no, numbers)))
        if rows == allowed.size:
            return None, matching / rows
        return sql_in("slide_no", numbers.tolist()), matching / rows


class _LanceRanking:
    def __init__(
        self, engine: LanceIvf, ask: Ask, allowed: NDArray[np.bool_] | None, where: str | None, share: float
    ) -> None:
        self._engine, self._ask, self._where, self._share = engine, ask, where, share
        self._allowed, self._owned = allowed, False
        self._struck = 0
        self._probes = engine.probes

    @property
    def scanned(self) -> int:
        """About as many rows as the probed lists hold."""
        engine = self._engine
        share = 1.0 if self._probes is None else min(1.0, self._probes / max(1, engine.lists))
        return round(share * engine.slide_no.size)

    def best(self, count: int) -> Hits:
        total = self._engine.slide_no.size
        if count < 1 or not total or (self._allowed is not None and not self._allowed.any()):
            return Hits.none()
        # With a filter the share of allowed rows near the query is not known, so some more are asked for.
        spare = _SPARE if self._share < 1 else 1.0
        wanted = min(self._engine.table_rows, int(np.ceil(spare * (count + self._struck) / self._share)))
        while True:
            rows, vectors, given = self._ask_index(wanted)
            all_lists = self._probes is None or self._probes >= self._engine.lists
            # All there are, from all lists: there are no more.
            if rows.size >= count or (all_lists and (given < wanted or wanted >= self._engine.table_rows)):
                break
            if given < wanted and not all_lists and self._probes is not None:
                self._probes *= _WIDEN
            elif wanted < self._engine.table_rows:
                wanted = min(self._engine.table_rows, wanted * _WIDEN)
            else:
                self._probes = None
        order = np.argsort(rows)
        rows, vectors = rows[order], vectors[order]
        return rank_exactly(
            self._ask, rows, lambda part: vectors[np.searchsorted(rows, part)], self._engine.places, count
        )

    def strike(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> None:
        if not self._owned:
            size = self._engine.slide_no.size
            self._allowed = np.ones(size, np.bool_) if self._allowed is None else self._allowed.copy()
            self._owned = True
        assert self._allowed is not None
        if rows.dtype == np.bool_:
            # Whole slides, mostly: a filter of its own, so that their rows are not asked for in vain.
            self._allowed[rows] = False
            self._where, self._share = self._engine.prefilter(self._allowed)
            self._struck = 0
        else:
            self._struck += int(np.count_nonzero(self._allowed[rows]))
            self._allowed[rows] = False

    def _ask_index(self, wanted: int) -> tuple[NDArray[np.int64], NDArray[np.float32], int]:
        engine = self._engine
        found = nearest(
            engine.store, engine.table, self._ask.unit.astype(np.float32), wanted,
            self._probes, engine.refine, self._where, engine.version,
        )  # fmt: skip
        rows = engine.row_of(found.tile_id)
        seen = rows >= 0
        if self._allowed is not None:
            seen &= self._allowed[rows]
        # A tile is in the table once; a run that is replacing a slide may show it twice for a moment.
        _, first = np.unique(rows[seen], return_index=True)
        picked = np.flatnonzero(seen)[first]
        return rows[picked], found.vectors[picked], len(found.tile_id)
