"""Commands that judge: kNN classification of a store, evaluation of encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ui.cli import options


def classify(
    store: options.Store,
    label: Annotated[str, typer.Option(help="Slide column, or name of an annotation, to predict.")],
    k: Annotated[int, typer.Option("-k", help="Neighbours that vote.")] = 20,
    leave_out: Annotated[str, typer.Option(help="slide, patient or site: never its own neighbour.")] = "slide",
    where: options.Where = None,
    encoder: options.Encoder = None,
    grid: options.Grid = None,
    json_output: options.Json = False,
) -> None:
    """Classify every tile by its nearest neighbours in other slides, and say how often that is right."""
    from query import open_cohort
    from ui.cli.console import say, say_json, say_table

    result = open_cohort(store).classify(label, k=k, leave_out=leave_out, where=where, encoder=encoder, grid=grid)
    if json_output:
        say_json(result.to_dict())
        return
    low, high = result.interval
    say(
        f"balanced accuracy {result.balanced_accuracy:.3f} [{low:.3f}, {high:.3f}], chance {result.chance:.3f}, "
        f"{result.tiles} tiles, leave-one-{leave_out}-out, k {k}"
    )
    say_table(
        ["class", "tiles", "groups", "recall"],
        [[row.label, row.tiles, row.groups, row.recall] for row in result.classes],
    )
    for note in result.notes:
        say(f"note: {note}")


def evaluate(
    encoder: Annotated[list[str], typer.Option("--encoder", help="Encoder to judge; repeat it to compare several.")],
    store: Annotated[str | None, typer.Option("--store", help="Judge on the labelled rows of a store.")] = None,
    tiles: Annotated[Path | None, typer.Option(help="Judge on a folder of labelled tiles.")] = None,
    label: Annotated[str | None, typer.Option(help="Label column; 'label' in a folder of tiles.")] = None,
    k: Annotated[int, typer.Option("-k", help="Neighbours that vote.")] = 20,
    leave_out: Annotated[str, typer.Option(help="slide, patient or site, for a store.")] = "slide",
    report: Annotated[Path | None, typer.Option(help="Write a report page (HTML).")] = None,
    device: options.Device = None,
    json_output: options.Json = False,
) -> None:
    """Compare encoders by kNN on labelled tiles: which one suits these slides?"""
    from encoder.errors import UsageError
    from query.evaluate import evaluate_store, evaluate_tiles
    from query.report import write_report
    from ui.cli.console import make_reporter, say, say_json, say_table
    from ui.sources import resolve_encoder

    if (store is None) == (tiles is None):
        raise UsageError("evaluate looks at one place.", "Give --store S or --tiles DIR.")
    if tiles is not None:
        encoders = [resolve_encoder(name, None, device) for name in encoder]
        result = evaluate_tiles(tiles, encoders, label or "label", k=k, reporter=make_reporter())
    else:
        assert store is not None
        if label is None:
            raise UsageError("--label is missing.", "Name a slide column or an annotation of the store.")
        result = evaluate_store(store, encoder, label, k=k, leave_out=leave_out)
    if report is not None:
        write_report(result, report)
    if json_output:
        say_json(result.to_dict())
        return
    say_table(
        ["encoder", "balanced accuracy", "low", "high", "chance", "tiles"],
        [[s.encoder, s.balanced_accuracy, *s.interval, s.chance, s.tiles] for s in result.scores],
    )
    for note in result.notes:
        say(f"note: {note}")
    if report is not None:
        say(f"report: {report}")
