"""Which vectors are meant: one encoder on one grid, by id or by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from encoder.errors import QueryError


@dataclass(frozen=True)
class VectorTable:
    """An encoder on a grid that the store has vectors of."""

    encoder_id: str
    encoder_name: str
    grid_id: str

    def __str__(self) -> str:
        return f"--encoder {self.encoder_id} --grid {self.grid_id} ({self.encoder_name})"


def choose(tables: Sequence[VectorTable], encoder: str | None, grid: str | None) -> VectorTable:
    """Choose the only table that fits.

    Args:
        encoder: id or readable name; None where there is one.
        grid: id; None where there is one.

    Raises:
        QueryError: none fits, or several do; lists them.
    """
    if not tables:
        raise QueryError("The store holds no vectors yet.", "`histoseek index` makes them.")
    fitting = [
        table
        for table in tables
        if encoder in (None, table.encoder_id, table.encoder_name) and grid in (None, table.grid_id)
    ]
    if len(fitting) == 1:
        return fitting[0]
    listed = "; ".join(str(table) for table in (fitting or tables))
    if fitting:
        raise QueryError(f"{len(fitting)} sets of vectors fit.", f"Choose one of: {listed}.")
    wanted = " ".join(
        part for part in (f"encoder {encoder!r}" if encoder else "", f"grid {grid!r}" if grid else "") if part
    )
    raise QueryError(f"The store holds no vectors of {wanted}.", f"It holds: {listed}.")
