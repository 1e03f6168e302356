"""Work on the parts of a table in a thread each."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

Item = TypeVar("Item")

# Each part that is being read holds some tens of megabytes.
_MOST = 8


@cache
def cores() -> int:
    """Cores that this process may use; asked once, as each search needs the number."""
    return (os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count()) or 1


def parts_at_a_time() -> int:
    """Parts of a table to read side by side: one for each core, a few at most."""
    return min(_MOST, cores())


def side_by_side(work: Callable[[Iterator[Item]], None], parts: Sequence[Iterable[Item]]) -> None:
    """Do the same with each part, all at a time; what fails in one ends the others early and is raised.

    Args:
        work: takes the items of a part; safe to run in several threads.
        parts: what to work on.
    """
    if len(parts) == 1:
        work(iter(parts[0]))
        return
    ended = threading.Event()

    def items(part: Iterable[Item]) -> Iterator[Item]:
        for item in part:
            if ended.is_set():
                return
            yield item

    def run(part: Iterable[Item]) -> None:
        try:
            work(items(part))
        except BaseException:
            ended.set()
            raise

    with ThreadPoolExecutor(len(parts), thread_name_prefix="part") as pool:
        try:
            for done in [pool.submit(run, part) for part in parts]:
                done.result()
        finally:  # also where the wait was interrupted
            ended.set()
