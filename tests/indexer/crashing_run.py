"""Started by test_crash.py: indexes in children that are killed, forked from a process that is warm but idle.

Reads one JSON request per line on stdin, {"runs": [run, ...]}, and answers with the children's wait statuses.
A run: slides (folder), store, encoders (checkpoint folders), and optionally kill_at (name and count of a
commit), kill_after (seconds), pause_at (name of a commit, seconds), rows (per flush), mpp, shard, keep_images, says (a
file that receives the refusal, or the peak of the child's memory in bytes).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from encoder.errors import StoreError
from encoder.progress import SilentReporter
from encoder.registry import load_encoder
from indexer import pipeline, writing
from indexer.index_request import IndexRequest
from indexer.manifest import discover

REFUSED = 5


def run(request: dict[str, Any]) -> None:
    """Index as asked, and die where asked."""
    import torch

    torch.set_num_threads(1)
    writing.FLUSH_ROWS = request.get("rows", writing.FLUSH_ROWS)
    seen: Counter[str] = Counter()

    def on_commit(point: str) -> None:
        seen[point] += 1
        if request.get("kill_at") == [point, seen[point]]:
            os.kill(os.getpid(), signal.SIGKILL)
        if point == request.get("pause_at", [None])[0]:
            time.sleep(request["pause_at"][1])

    folder = Path(request["slides"])
    encoders = [load_encoder(name, "cpu") for name in request["encoders"]]
    entries = discover([folder], folder / "manifest.csv")
    shard = (request["shard"][0], request["shard"][1]) if "shard" in request else None
    keep_images = request.get("keep_images", False)
    asked = IndexRequest(encoders, entries, mpp=request.get("mpp"), readers=2, shard=shard, keep_images=keep_images)
    says = Path(request.get("says", os.devnull))
    try:
        pipeline.index(request["store"], asked, SilentReporter(), on_commit)
    except StoreError as error:
        says.write_text(str(error))
        os._exit(REFUSED)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    says.write_text(str(int(peak.split()[1]) * 1024))


def forked(request: dict[str, Any]) -> int:
    """Start a run in a child and return its number."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run(request)
            code = 0
        finally:
            os._exit(code)
    return child


def main() -> None:
    """Answer requests until stdin ends."""
    warnings.filterwarnings("ignore", message="lancedb fork support")  # this process has opened no table
    for line in sys.stdin:
        runs = json.loads(line)["runs"]
        children = [forked(request) for request in runs]
        for request, child in zip(runs, children, strict=True):
            if "kill_after" in request:
                time.sleep(request["kill_after"])
                os.kill(child, signal.SIGKILL)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(statuses), flush=True)


if __name__ == "__main__":
    main()
