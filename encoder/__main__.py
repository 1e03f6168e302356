"""Training from the command line: `python -m encoder CONFIG --tiles DIR --out RUN [key=value ...]`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from encoder.config import load_config
from encoder.errors import HistoSeekError
from encoder.progress import PlainReporter
from encoder.tiles import open_for_training
from encoder.train import train

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the arguments say; returns the exit code.

    0: finished, now or before. 1: failed. 2: wrong usage. 130: interrupted, can go on.
    """
    parser = argparse.ArgumentParser(
        prog="python -m encoder", description="Train an encoder on folders of tiles, without labels."
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file, such as configs/encoder/contrastive.yaml")
    parser.add_argument("--tiles", metavar="DIR", action="append", required=True, help="tile folder; repeatable")
    parser.add_argument("--out", metavar="RUN", required=True, help="folder of the run; goes on where it stopped")
    parser.add_argument("--device", metavar="D", help="cpu, cuda or cuda:N; the default is CUDA where present")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="change the config, such as batch=64")
    given = parser.parse_intermixed_args(arguments)
    reporter = PlainReporter(sys.stderr, every_seconds=5.0)
    try:
        config = load_config(given.config, given.overrides)
        source = open_for_training(given.tiles, config.tile_px, config.mpp, reporter)
        result = train(config, source, given.out, reporter, given.device)
    except HistoSeekError as error:
        number = int(os.environ.get("RANK", "0"))
        sys.stderr.write(f"process {number}: error: {error}\n" if number else f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the last saved state is kept\n")
        return _INTERRUPTED
    return 0 if result.finished else _INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
