"""The histoseek command: registers the command groups and turns errors into one line and an exit code."""

from __future__ import annotations

import os
import sys

import typer

from encoder.errors import HistoSeekError
from ui.cli import analyse, build, collections, demo, index, search, segment, store, system, train, upkeep
from ui.cli import map as tile_map

app = typer.Typer(
    name="histoseek",
    help="Find tissue that looks like this: embed whole-slide images, search them, evaluate encoders.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (
    demo.demo,
    system.doctor,
    index.inspect,
    train.pretrain,
    train.encoders,
    index.index,
    index.retry,
    build.build,
    search.search,
    collections.collections,
    tile_map.map,
    segment.segment,
    analyse.classify,
    analyse.evaluate,
    store.status,
    store.verify,
    upkeep.maintain,
    store.sql,
    store.export,
    system.ui,
):
    app.command()(command)


def run() -> None:
    """Entry point of the histoseek command."""
    # Native code of the store writes hints for its own developers to stderr.
    os.environ.setdefault("LANCEDB_LOG", "error")
    try:
        app()
    except HistoSeekError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    except OSError as error:  # a path that cannot be read or written, a full disk: nothing a traceback explains
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; what was finished is kept, the same command goes on from there\n")
        sys.exit(130)
