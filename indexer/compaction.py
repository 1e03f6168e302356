"""What joining a table's files would write, told before it is done."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_FULL_FRAGMENT_ROWS = 1 << 20  # Lance's own target, by which it takes a file for small


def compactions(dataset: Any) -> int:
    """Groups of files of a Lance dataset that a compaction would join."""
    from lance.optimize import Compaction  # here: no other command plans one

    return int(Compaction.plan(dataset, {}).num_tasks())


def bytes_to_write(dataset: Any, indices: Iterable[Any]) -> int:
    """Bytes that a compaction of a Lance dataset and its indexes with their tails write, rather over than under."""
    files = [file for fragment in dataset.get_fragments() if _may_be_joined(fragment) for file in fragment.data_files()]
    # Merged with its tail an index is new, and once more where the rows that it points at move.
    return sum(file.file_size_bytes or 0 for file in files) + 2 * sum(_grown(index) for index in indices)


def _may_be_joined(fragment: Any) -> bool:
    return bool(fragment.physical_rows < _FULL_FRAGMENT_ROWS or fragment.num_deletions)


def _grown(index: Any) -> int:
    """Bytes of an index once it knows all rows."""
    known, unknown = index.num_indexed_rows or 0, index.num_unindexed_rows or 0
    return int((index.size_bytes or 0) * (1 + unknown / max(known, 1)))
