"""An Arrow table as rows that JSON and a terminal can show: every column, no NaN, no bytes."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa


def plain_rows(table: pa.Table) -> tuple[list[str], list[list[Any]]]:
    """Take a table apart into column names, made unique, and rows of plain values.

    Numbers that are not finite become None, bytes become hexadecimal text, times become text as Arrow writes it.
    """
    columns = [_values(column) for column in table.columns]
    return _unique(table.column_names), [list(row) for row in zip(*columns, strict=True)]


def _values(column: pa.ChunkedArray) -> list[Any]:
    import pyarrow as pa

    if pa.types.is_temporal(column.type):
        column = column.cast(pa.string())  # Python has no infinite date and no year 10,000
    return [_plain(value) for value in column.to_pylist()]


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _unique(names: list[str]) -> list[str]:
    taken, seen, result = set(names), Counter[str](), []
    for name in names:
        fresh = name
        while seen[name] and fresh in taken:
            fresh = f"{name}_{seen[name]}"
            seen[name] += 1
        seen[name] += 1
        taken.add(fresh)
        result.append(fresh)
    return result
