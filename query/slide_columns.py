"""Which columns of slides are told with their tiles, and under which names."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pyarrow as pa

# Columns of `slides` that say nothing about a tile.
_BOOKKEEPING = frozenset({"slide_id", "slide_no", "path", "fingerprint", "vendor", "registered_at", "mask"})


def told_columns(slides: pa.Table) -> pa.Table:
    """The columns of slides that are told, and their ids."""
    return slides.select([name for name in slides.column_names if name == "slide_id" or name not in _BOOKKEEPING])


def slide_columns(about: pa.Table, taken: Collection[str]) -> dict[str, Any]:
    """Columns of slides that say something about a tile; `slide_<name>` where a name is taken."""
    columns = zip(about.column_names, about.columns, strict=True)
    return {f"slide_{name}" if name in taken else name: column for name, column in columns if name not in _BOOKKEEPING}
