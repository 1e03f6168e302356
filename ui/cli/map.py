"""The map command: the tiles of a store laid out in two dimensions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ui.cli import options

if TYPE_CHECKING:
    from query.projection.colouring import Colouring
    from query.projection.tile_map import TileMap


def map(
    store: options.Store,
    method: Annotated[
        str, typer.Option(help="pca: the plane in which the vectors spread most; umap: neighbours stay together.")
    ] = "pca",
    colour: Annotated[
        str | None, typer.Option(help="Column of slides or tiles, or name of an annotation, that colours the tiles.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="Write the map as a picture (PNG).")] = None,
    refit: Annotated[bool, typer.Option("--refit", help="Fit the map anew, though the store has one.")] = False,
    encoder: options.Encoder = None,
    grid: options.Grid = None,
    json_output: options.Json = False,
) -> None:
    """Lay the store's tiles out in two dimensions, like beside like; computed once and kept in the store."""
    from query import open_cohort
    from query.output_path import check_output_file
    from query.projection.colouring import colour_by
    from query.projection.making import unplaced_rows
    from query.projection.models import estimated_seconds
    from query.projection.sheet import write_sheet
    from ui.cli.console import make_reporter, say, say_json, say_table

    if picture is not None:
        check_output_file(picture, {".png"})  # before the work, not after it
    cohort = open_cohort(store)
    table = cohort.choose(encoder, grid)
    reporter = make_reporter()
    if method == "umap" and (refit or unplaced_rows(cohort, table, method) is None):
        rows = cohort.room(table).rows
        seconds = estimated_seconds(method, len(rows), rows.dim)
        reporter.note(f"UMAP of {len(rows):,} tiles takes about {max(1, round(seconds / 60))} min on two cores.")
    found = cohort.map(method, encoder, grid, reporter=reporter, refit=refit)
    colours = None if colour is None else colour_by(cohort.store, found, colour)
    if picture is not None:
        write_sheet(found, colours, picture)
    document = _document(found, colours, picture)
    if json_output:
        say_json(document)
        return
    say(f"{method} map of {document['tiles']:,} tiles of {document['slides']:,} slides")
    fitted = f"fitted on {found.fitted_on:,} tiles"
    say(f"{fitted}, {'in the store' if found.stored else 'not stored'}")
    if "variance" in document:
        say(f"its axes hold {' and '.join(f'{100 * share:.1f} %' for share in document['variance'])} of the variance")
    for note in found.notes:
        say(f"note: {note}")
    if colours is not None:
        say("")
        if "classes" in document["colour"]:
            say_table(
                [colours.column, "tiles", "colour"], [tuple(line.values()) for line in document["colour"]["classes"]]
            )
        else:
            say(f"{colours.column}: {document['colour']['low']:.4g} to {document['colour']['high']:.4g}")
    if picture is not None:
        say(f"picture: {picture}")


def _document(found: TileMap, colours: Colouring | None, picture: Path | None) -> dict[str, Any]:
    from dataclasses import asdict

    from query.projection.colouring import Categories

    document: dict[str, Any] = {
        "method": found.method,
        "encoder_id": found.rows.encoder_id,
        "grid_id": found.rows.grid_id,
        "tiles": len(found),
        "slides": len(set(found.rows.slide_no.tolist())),
        "fitted_on": found.fitted_on,
        "stored": found.stored,
        "extent": asdict(found.extent),
        "notes": list(found.notes),
    }
    if "shares" in found.settings:
        document["variance"] = found.settings["shares"]
    if isinstance(colours, Categories):
        document["colour"] = {"column": colours.column, "classes": [asdict(line) for line in colours.legend]}
    elif colours is not None:
        scale = {"low": colours.low, "high": colours.high, "missing": colours.missing}
        document["colour"] = {"column": colours.column} | scale
    if picture is not None:
        document["picture"] = str(picture)
    return document
