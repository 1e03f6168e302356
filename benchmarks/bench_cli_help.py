"""How long `histoseek --help` takes, each time in a fresh process."""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from harness import Row, add_options, describe_machine, interleave, report


def find_command() -> str:
    """The installed command beside this Python, else on the path."""
    beside = Path(sys.executable).with_name("histoseek")
    found = str(beside) if beside.exists() else shutil.which("histoseek")
    if found is None:
        sys.exit("histoseek is not installed here; run `make bench`, or pip install -e . first.")
    return found


def main() -> None:
    """Time the command, and an empty Python for comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.set_defaults(repeats=9)
    options = parser.parse_args()
    machine, command = describe_machine(), find_command()

    def help_page() -> None:
        done = subprocess.run([command, "--help"], capture_output=True, text=True)
        if done.returncode or "search" not in done.stdout:
            sys.exit(f"histoseek --help failed ({done.returncode}): {done.stderr[-500:]}")

    def empty() -> None:
        subprocess.run([sys.executable, "-c", "pass"], check=True)

    seconds = interleave({"help": help_page, "python": empty}, options.repeats)
    helped, bare = (statistics.median(seconds[name]) for name in ("help", "python"))
    detail = f"median of {options.repeats}; an empty Python takes {bare:.3f} s"
    row = Row("histoseek --help, fresh process", helped, "s", 0.3, at_least=False, detail=detail)
    report("cli_help", [row], options.out, machine, seconds=seconds)


if __name__ == "__main__":
    main()
