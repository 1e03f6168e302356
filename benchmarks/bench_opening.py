"""How long `open_cohort` takes on a store of a million rows, each time in a fresh process, imports excluded."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import Row, add_options, describe_machine, report
from large_store import clustered, write_store

# What a fresh process runs: the import is timed apart, then the opening, then what every page asks for.
PROBE = """
import json, sys, time
started = time.perf_counter()
from query.cohort import open_cohort
imported = time.perf_counter()
cohort = open_cohort(sys.argv[1])
opened = time.perf_counter()
slides, tables = cohort.slides.num_rows, len(cohort.vector_tables)
used = time.perf_counter()
heavy = [name for name in ("torch", "openslide", "pyvips") if name in sys.modules]
seconds = {"import": imported - started, "open": opened - imported, "slides": used - opened}
print(json.dumps({"seconds": seconds, "slides": slides, "tables": tables, "heavy": heavy}))
"""


def main() -> None:
    """Write a store as an indexing run would, one commit per slide and table, and open it."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.set_defaults(repeats=7)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=384)
    options = parser.parse_args()
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as folder:
        uri = str(Path(folder) / "store")
        started = time.perf_counter()
        slides = write_store(uri, clustered(options.rows, options.dim, seed=0))
        written = time.perf_counter() - started
        size = sum(f.stat().st_size for f in Path(uri).rglob("*") if f.is_file()) / 2**30
        found = [probe(uri) for _ in range(options.repeats + 1)][1:]
    first = found[0]
    if first["slides"] != slides or first["tables"] != 1:
        sys.exit(f"the store was not read as written: {first}")
    middle = {name: statistics.median(f["seconds"][name] for f in found) for name in first["seconds"]}
    what = f"open_cohort, {options.rows:,} rows of {options.dim}, {slides} slides"
    heavy = ", ".join(first["heavy"]) or "neither torch nor OpenSlide"
    rows = [
        Row(what, middle["open"], "s", 0.3, at_least=False, detail=f"{size:.2f} GiB, median of {options.repeats}"),
        Row("its imports", middle["import"], "s", detail=f"load {heavy}"),
        Row("then .slides and .vector_tables", middle["slides"], "s"),
        Row("writing that store", written, "s", detail=f"{2 * slides} commits of tiles and vectors"),
    ]
    report("opening", rows, options.out, machine, processes=found)


def probe(uri: str) -> dict[str, Any]:
    """Open the store in a fresh process."""
    done = subprocess.run([sys.executable, "-c", PROBE, uri], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"opening failed:\n{done.stderr[-1000:]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
