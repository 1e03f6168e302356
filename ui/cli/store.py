"""Commands about a store: what is in it, is it whole, ask it in SQL, take things out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ui.cli import options


def status(store: options.Store, json_output: options.Json = False) -> None:
    """Say what the store holds: slides by status, rows by table, runs, and what is in quarantine and why."""
    from query import open_cohort
    from ui.cli.console import say, say_json, say_table

    report = open_cohort(store).status()
    if json_output:
        say_json(report)
        return
    say_table(["slides", "count"], report["slides"].items())
    say("")
    say_table(["table", "rows"], report["rows"].items())
    for row in report["indexes"]:
        tail = "dropped since" if row["rows_unindexed"] is None else f"{row['rows_unindexed']:,} rows came since"
        say("")
        say(
            f"{row['kind']} index of {row['table']}, built {row['built'][:10]}: recall@10 {row['recall_at_10']:.3f}, "
            f"{row['milliseconds']:.1f} ms a query when it was measured; {tail}"
        )
    for row in report["empty"]:
        why = ", ".join(f"{count} tiles {reason}" for reason, count in row["reasons"].items())
        say(f"empty {row['slide_id']}: {why or 'no tile fits on it'}")
    failed = [row for row in report["quarantine"] if row["tile_key"] is None]
    if failed:
        say("")
    for row in failed:
        say(f"quarantined {row['slide_id']} ({row['phase']}): {row['message']}")
    if len(failed) < len(report["quarantine"]):
        say(f"{len(report['quarantine']) - len(failed)} single tiles could not be used; --json lists them")
    if report["last_run"]:
        say("")
        say("last run: {command}, {status}, started {started_at}".format(**report["last_run"]))


def verify(
    store: options.Store,
    slides: Annotated[
        bool,
        typer.Option("--slides/--no-slides", help="Also look at the slide files: present, and unchanged."),
    ] = True,
    json_output: options.Json = False,
) -> None:
    """Check the store against itself and its slides; exit code 1 where anything is wrong."""
    from indexer.verify import verify as verify_store
    from ui.cli.console import say, say_json

    report = verify_store(store, slides=slides)
    if json_output:
        say_json({**asdict(report), "ok": report.ok})
    else:
        for problem in report.problems:
            say(f"{problem.kind}: {problem.message}")
        rows = sum(report.rows.values())
        say(
            f"{rows} rows in {len(report.rows)} tables and {report.slides} slide files: {len(report.problems)} problems"
        )
    if not report.ok:
        raise typer.Exit(1)


def sql(
    store: options.Store,
    query: Annotated[
        str, typer.Argument(help="One SELECT over slides, tiles, annotations, runs, quarantine, indexes.")
    ],
    json_output: options.Json = False,
) -> None:
    """Ask the store's tables in SQL (read only)."""
    from query import open_cohort
    from ui.cli.console import say_json, say_table
    from ui.cli.plain_rows import plain_rows

    names, rows = plain_rows(open_cohort(store).sql(query))
    if json_output:
        say_json({"columns": names, "rows": [dict(zip(names, row, strict=True)) for row in rows]})
    else:
        say_table(names, rows)


def export(
    store: options.Store,
    tiles: Annotated[Path | None, typer.Option(help="Folder for tile pictures and their tiles.csv.")] = None,
    parquet: Annotated[Path | None, typer.Option(help="File for tiles, metadata and vectors.")] = None,
    where: options.Where = None,
    label: Annotated[str | None, typer.Option(help="Slide column to write as the tiles' label.")] = None,
    encoder: options.Encoder = None,
    grid: options.Grid = None,
    json_output: options.Json = False,
) -> None:
    """Take tiles or vectors out of the store."""
    from encoder.errors import UsageError
    from query import open_cohort
    from query.export import export_parquet, export_tiles
    from ui.cli.console import make_reporter, say, say_json

    if (tiles is None) == (parquet is None):
        raise UsageError("export writes one thing.", "Give --tiles DIR or --parquet FILE.")
    cohort = open_cohort(store)
    reporter = make_reporter()
    if tiles is not None:
        if encoder is not None:
            raise UsageError("--encoder belongs to --parquet.", "Tiles are the same for every encoder.")
        report = export_tiles(cohort, tiles, where=where, label=label, grid=grid, reporter=reporter)
    else:
        assert parquet is not None
        if label is not None:
            raise UsageError("--label belongs to --tiles.", "A Parquet file has all columns.")
        report = export_parquet(cohort, parquet, where=where, encoder=encoder, grid=grid, reporter=reporter)
    if json_output:
        say_json(asdict(report))
        return
    for name, reason in report.failures:
        say(f"left out: {name}: {reason}")
    say(f"{report.tiles} tiles of {report.slides} slides written to {report.path}")
