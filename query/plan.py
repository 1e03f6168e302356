"""What a search did: engine, rows, notes and time per step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Plan:
    """How a search was answered.

    Attributes:
        engine: what compared the vectors.
        encoder_id, grid_id: whose vectors were searched.
        query: the query in words.
        rows_total: searchable tiles.
        rows_matching: tiles left after `where` and `exclude`.
        rows_scanned: tiles whose distance was computed.
        excluded: slides left out by `exclude`.
        where: the filter as given, or None.
        notes: what the user should know about this answer.
        seconds: time per step.
    """

    engine: str
    encoder_id: str
    grid_id: str
    query: str
    rows_total: int
    rows_matching: int
    rows_scanned: int
    excluded: int
    where: str | None
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"query     {self.query}",
            f"vectors   {self.encoder_id} on {self.grid_id}",
            f"engine    {self.engine}; recall 1 (exact)",
            f"rows      {self.rows_total:,} searchable, {self.rows_matching:,} matching, {self.rows_scanned:,} scanned",
        ]
        if self.where is not None:
            lines.append(f"where     {self.where}")
        if self.excluded:
            lines.append(f"excluded  {self.excluded:,} slides")
        lines += [f"note      {note}" for note in self.notes]
        lines.append("time      " + ", ".join(f"{step} {1e3 * s:.1f} ms" for step, s in self.seconds.items()))
        return "\n".join(lines)
