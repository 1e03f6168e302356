"""What the benchmarks share: the machine in words, interleaved timing, one table and one JSON file each."""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

OUT = Path(__file__).resolve().parent.parent / "bench-out"


@dataclass(frozen=True)
class Row:
    """One line of a benchmark's table.

    Attributes:
        what: what was measured.
        value: the figure that the budget speaks of.
        unit: its unit, `x` for a ratio.
        budget: the bound; None where the row is for information.
        at_least: whether the value must reach the budget or stay below it.
        detail: the absolute figures behind it.
    """

    what: str
    value: float
    unit: str
    budget: float | None = None
    at_least: bool = True
    detail: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the budget is met; None without one."""
        if self.budget is None:
            return None
        return self.value >= self.budget if self.at_least else self.value <= self.budget


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_gib() -> float:
    """Memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def peak_memory_gib() -> float:
    """Most memory that this process has held so far."""
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def describe_machine() -> dict[str, Any]:
    """CPU model, cores, memory, load and system."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": cores(),
        "memory_gib": round(memory_gib(), 1),
        "load_before": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }


class Stopwatch:
    """Seconds on the wall, core-seconds of this process, and the cores that others left to it."""

    def __init__(self) -> None:
        self._wall, self._own, self._all = time.perf_counter(), time.process_time(), _busy_seconds()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._wall

    @property
    def core_seconds(self) -> float:
        """CPU time of all threads of this process since the start."""
        return time.process_time() - self._own

    @property
    def free_cores(self) -> float:
        """Cores less what other processes used since the start, on average; all of them where nobody counts."""
        busy = _busy_seconds()
        if busy is None or self._all is None:
            return float(cores())
        others = max(0.0, busy - self._all - self.core_seconds)
        return max(0.1, cores() - others / max(self.seconds, 1e-9))


def _busy_seconds() -> float | None:
    """CPU time that the whole machine has spent so far; None where the system does not tell."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    fields = [int(value) for value in stat.read_text().splitlines()[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def interleave(
    alternatives: Mapping[str, Callable[[], Any]],
    repeats: int,
    before: Callable[[], Any] | None = None,
) -> dict[str, list[float]]:
    """Time alternatives in turn, `repeats` rounds after a warm-up, so that a busy moment touches all of them.

    Each round has an order of its own: what ran before leaves caches and threads behind.

    Args:
        before: called before each call, outside the clock.

    Returns:
        seconds of each call, per alternative.
    """
    for run in alternatives.values():
        if before is not None:
            before()
        run()
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for turn in range(repeats):
        for name in random.Random(turn).sample(list(alternatives), len(alternatives)):
            if before is not None:
                before()
            started = time.perf_counter()
            alternatives[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median over the rounds of the ratio within one round."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Give a benchmark the options that all of them have."""
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the JSON results")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of each comparison")


def report(name: str, rows: Sequence[Row], out: Path, machine: Mapping[str, Any], **facts: Any) -> None:
    """Print the table and write it as JSON.

    Args:
        facts: more figures for the JSON file.
    """
    print(
        f"\n{name}: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"load {machine['load_before']} before, {machine['system']}"
    )
    widths = [max(len(r.what) for r in rows), 12, 12]
    print(f"{'':{widths[0]}}  {'measured':>{widths[1]}}  {'budget':>{widths[2]}}")
    for row in rows:
        bound = "" if row.budget is None else f"{'>=' if row.at_least else '<='} {row.budget:g} {row.unit}"
        verdict = {True: "met", False: "NOT MET", None: ""}[row.met]
        measured = f"{row.value:.4g} {row.unit}"
        print(
            f"{row.what:{widths[0]}}  {measured:>{widths[1]}}  {bound:>{widths[2]}}  {verdict:7}  {row.detail}".rstrip()
        )
    out.mkdir(parents=True, exist_ok=True)
    document = {
        "benchmark": name,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": dict(machine),
        "rows": [asdict(row) | {"met": row.met} for row in rows],
        **facts,
    }
    (out / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
