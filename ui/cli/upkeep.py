"""The command that keeps a store small and fast."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ui.cli import options

if TYPE_CHECKING:
    from indexer.upkeep import TableUpkeep, UpkeepReport


def maintain(
    store: options.Store,
    keep_days: Annotated[
        float, typer.Option(help="Remove versions of tables that are older; 0 leaves only the latest.")
    ] = 7.0,
    json_output: options.Json = False,
) -> None:
    """Join small files, bring indexes up to date, remove old versions; exit code 1 where a table failed."""
    from indexer.upkeep import maintain as maintain_store
    from ui.cli.console import make_reporter, say_json

    report = maintain_store(store, keep_days, make_reporter())
    if json_output:
        totals = {"changed": report.changed, "saved_bytes": report.saved_bytes, "failed": list(report.failed)}
        say_json({**asdict(report), **totals, "exit_code": report.exit_code})
    else:
        print_upkeep_report(report)
    if report.exit_code:
        raise typer.Exit(report.exit_code)


def print_upkeep_report(report: UpkeepReport) -> None:
    """Say what each table took before and takes now, and what failed and why."""
    from encoder.progress import format_seconds
    from ui.cli.console import say, say_table

    headers = ["table", "files", "versions", "MB", "rows indexed", "seconds"]
    say_table(headers, [_row(table) for table in report.tables])
    for table in report.tables:
        if table.problem is not None:
            say(f"not done: {table.table}: {table.problem}")
    if not report.changed and not report.failed:
        say("nothing to do")
        return
    saved = report.saved_bytes
    if saved is None:
        freed = "the store does not tell its size"
    elif saved >= 0:
        freed = f"{saved / 1e6:.1f} MB freed"
    else:
        freed = f"{-saved / 1e6:.1f} MB more until the versions of before are {report.keep_days:g} days old"
    say(f"{freed}; {len(report.tables)} tables in {format_seconds(report.seconds)}")


def _row(table: TableUpkeep) -> list[object]:
    before, after = table.before, table.after
    if before is None or after is None:
        return [table.table, None, None, None, None, round(table.seconds, 2)]
    sizes = [f"{before.fragments} -> {after.fragments}", f"{before.versions} -> {after.versions}"]
    if before.bytes is None or after.bytes is None:
        sizes.append("-")
    else:
        sizes.append(f"{before.bytes / 1e6:.1f} -> {after.bytes / 1e6:.1f}")
    return [table.table, *sizes, table.rows_indexed, round(table.seconds, 2)]
