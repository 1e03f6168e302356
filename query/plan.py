"""What a search did: engine and why, rows, expected recall, notes and time per step."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import pyarrow as pa

from query.exclusion import EXCLUDABLE, is_unknown


@dataclass(frozen=True)
class Plan:
    """How a search was answered.

    Attributes:
        engine: what compared the vectors.
        why: it was chosen.
        exact: whether the answer is exact whatever the vectors are.
        recall: share of the true answer that is expected; 1 where it is exact.
        encoder_id, grid_id: whose vectors were searched.
        query: the query in words.
        rows_total: searchable tiles.
        rows_matching: tiles left after `where` and `exclude`.
        rows_scanned: tiles whose distance, or an estimate of it, was computed; of an index about.
        excluded: slides left out by `exclude`.
        where: the filter as given, or None.
        percentiles: what the hits' percentiles count, in words.
        notes: what the user should know about this answer.
        seconds: time per step.
    """

    engine: str
    why: str
    exact: bool
    recall: float
    encoder_id: str
    grid_id: str
    query: str
    rows_total: int
    rows_matching: int
    rows_scanned: int
    excluded: int
    where: str | None
    percentiles: str
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        recall = "1 (exact)" if self.exact else f"{self.recall:.3f} (measured when the index was made)"
        lines = [
            f"query     {self.query}",
            f"vectors   {self.encoder_id} on {self.grid_id}",
            f"engine    {self.engine}",
            f"because   {self.why}",
            f"recall    {recall}",
            f"rows      {self.rows_total:,} searchable, {self.rows_matching:,} matching, {self.rows_scanned:,} scanned",
        ]
        if self.where is not None:
            lines.append(f"where     {self.where}")
        if self.excluded:
            lines.append(f"excluded  {self.excluded:,} slides")
        lines.append(f"percent   of {self.percentiles}")
        lines += [f"note      {note}" for note in self.notes]
        lines.append("time      " + ", ".join(f"{step} {1e3 * s:.1f} ms" for step, s in self.seconds.items()))
        return "\n".join(lines)


class Stopwatch:
    """Seconds of each step, from the end of the step before."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = perf_counter()

    def lap(self, step: str) -> None:
        """End a step; time of a step that comes again is added."""
        now = perf_counter()
        self.seconds[step] = self.seconds.get(step, 0.0) + now - self._last
        self._last = now


def unknown_notes(exclude: Collection[str], codes: Sequence[int], slides: pa.Table) -> list[str]:
    """Say how many slides have no patient or site that an exclusion could compare.

    Args:
        exclude: of `slide`, `patient`, `site`.
        codes: the query's slides, as rows of `slides`.
        slides: the cohort's slides.
    """
    notes = []
    for name in exclude:
        values = slides[EXCLUDABLE[name]].to_pylist()
        unknown = sum(map(is_unknown, values))
        if unknown:
            own = ", the query's among them" if any(is_unknown(values[code]) for code in codes) else ""
            notes.append(f"{unknown} of {len(values)} slides have no known {name}{own}: each counts as one of its own.")
    return notes


def shortage_note(found: int, k: int, matching: int, total: int, limits: Sequence[str]) -> str:
    """Say why fewer than k tiles were found.

    Args:
        found: tiles found, fewer than `k`.
        matching: tiles left after the filters.
        total: searchable tiles.
        limits: what else kept tiles back, in words.
    """
    causes = ["after the filters"] if matching < total else []
    if found < matching:
        causes += [f"with {limit}" for limit in limits]
    return f"Only {found} of the {k} asked tiles exist {' and '.join(causes) or 'in these vectors'}."
