"""Commands that judge: kNN classification of a store, evaluation of encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    document = result.to_json()
    if json_output:
        say_json(document)
        return
    say_table(
        ["", "balanced accuracy", "chance"],
        [
            [f"{document['tiles']} tiles", str(result.balanced_accuracy), document["chance"]],
            *([["slides", str(result.slide_score), document["chance"]]] if result.slide_score is not None else []),
        ],
    )
    say(document["rule"])
    say_table(["class", "recall"], document["recalls"].items())
    _say_remarks(document)


def evaluate(
    encoder: Annotated[
        list[str] | None,
        typer.Option("--encoder", help="Encoder to judge; repeat it to compare several. All of the store by default."),
    ] = None,
    store: Annotated[str | None, typer.Option("--store", help="Judge on the labelled rows of a store.")] = None,
    tiles: Annotated[Path | None, typer.Option(help="Judge on a folder of labelled tiles.")] = None,
    label: Annotated[str | None, typer.Option(help="Label column; 'label' in a folder of tiles.")] = None,
    k: Annotated[int, typer.Option("-k", help="Neighbours that vote.")] = 20,
    leave_out: Annotated[
        str | None, typer.Option(help="slide, patient or site, for a store; the patient where any is known.")
    ] = None,
    where: options.Where = None,
    grid: options.Grid = None,
    report: Annotated[Path | None, typer.Option(help="Write a report page (HTML).")] = None,
    device: options.Device = None,
    json_output: options.Json = False,
) -> None:
    """Compare encoders by kNN on labelled tiles: which one suits these slides?"""
    from encoder.errors import UsageError
    from query.evaluate import evaluate_store, evaluate_tiles
    from query.output_path import check_output_file
    from query.report import write_report
    from ui.cli.console import make_reporter, say, say_json, say_table
    from ui.sources import resolve_encoder

    if (store is None) == (tiles is None):
        raise UsageError("evaluate looks at one place.", "Give --store S or --tiles DIR.")
    if report is not None:
        check_output_file(report)  # before the work, not after it
    if tiles is not None:
        if leave_out or where or grid:
            raise UsageError(
                "--leave-out, --where and --grid belong to --store.",
                "A tile folder's table says what belongs together.",
            )
        encoders = [resolve_encoder(name, None, device) for name in encoder or []]
        result = evaluate_tiles(tiles, encoders, label, k=k, reporter=make_reporter())
    else:
        assert store is not None
        if label is None:
            raise UsageError("--label is missing.", "Name a slide column or an annotation of the store.")
        if device is not None:
            raise UsageError("--device belongs to --tiles.", "The vectors of a store are there already.")
        result = evaluate_store(store, label, encoder or None, leave_out=leave_out, k=k, where=where, grid=grid)
    if report is not None:
        write_report(result, report)
    document = result.to_json()
    if json_output:
        say_json(document)
        return
    say_table(
        ["encoder", "balanced accuracy", "chance", "dim", "tiles", "tiles/s"],
        [
            [item.encoder, str(item.outcome.score), item.task.chance, item.dim, item.task.queries.size,
             None if item.tiles_per_second is None else round(item.tiles_per_second)]
            for item in result.encoders
        ],
    )  # fmt: skip
    say(document["encoders"][0]["rule"])
    for number, item in enumerate(document["encoders"]):
        for note in item["encoder_notes"]:
            say(f"note: {item['encoder']}: {note}")
        if number == 0:
            _say_remarks(item)
    if report is not None:
        say(f"report: {report}")


def _say_remarks(document: dict[str, Any]) -> None:
    from ui.cli.console import say

    for name, reason in document["left_out"].items():
        say(f"left out: {name}: {reason}")
    for text in document["notes"]:
        say(f"note: {text}")
    for text in document["warnings"]:
        say(f"warning: {text}")
