"""The search command: tissue in, similar tissue out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ui.cli import options

if TYPE_CHECKING:
    from query.queries import Query


def search(
    store: options.Store,
    slide: Annotated[str | None, typer.Option(help="Slide of the query point; needs --at.")] = None,
    at: Annotated[str | None, typer.Option(help="X,Y of the query point in level-0 pixels.")] = None,
    image: Annotated[Path | None, typer.Option(help="Picture to search with.")] = None,
    image_mpp: Annotated[float | None, typer.Option(help="Micrometres per pixel of the picture.")] = None,
    tile: Annotated[str | None, typer.Option(help="Key of an indexed tile: slide_id@x0,y0.")] = None,
    k: Annotated[int, typer.Option("-k", help="Number of hits.")] = 20,
    where: options.Where = None,
    exclude: Annotated[
        str | None, typer.Option(help="Leave out what shares these with the query: slide, patient, site.")
    ] = None,
    per_slide: Annotated[int | None, typer.Option(help="At most so many hits of one slide.")] = None,
    encoder: options.Encoder = None,
    grid: options.Grid = None,
    montage: Annotated[Path | None, typer.Option(help="Write a picture of the query and its hits.")] = None,
    json_output: options.Json = False,
) -> None:
    """Find the tiles of the store that look most like a tile, a point of a slide, or a picture."""
    from query import open_cohort
    from query.output_path import check_output_file
    from query.results import SHEET_FORMATS
    from ui.cli.console import say, say_json, say_table

    if montage is not None:
        check_output_file(montage, SHEET_FORMATS)  # before the work, not after it
    query = _query(slide, at, image, image_mpp, tile)
    cohort = open_cohort(store)
    results = cohort.search(
        query,
        k=k,
        where=where,
        exclude=tuple(part.strip() for part in exclude.split(",")) if exclude else (),
        per_slide=per_slide,
        encoder=encoder,
        grid=grid,
    )
    if montage is not None:
        results.montage(montage)
    if json_output:
        document: dict[str, Any] = {"hits": results.to_json_rows(), "plan": asdict(results.plan)}
        if montage is not None:
            document["montage"] = str(montage)
        say_json(document)
        return
    columns = ["rank", "slide_id", "x0", "y0", "extent_px0", "distance"]
    say_table(columns, [[row[name] for name in columns] for row in results.to_json_rows()])
    for note in results.plan.notes:
        say(f"note: {note}")
    if montage is not None:
        say(f"montage: {montage}")


def _query(slide: str | None, at: str | None, image: Path | None, image_mpp: float | None, tile: str | None) -> Query:
    from encoder.errors import UsageError
    from query.queries import PointQuery, TileQuery, read_picture

    given = [slide is not None or at is not None, image is not None, tile is not None]
    if sum(given) != 1:
        raise UsageError("search takes one query.", "Give --slide ID --at X,Y, or --image FILE, or --tile KEY.")
    if image_mpp is not None and image is None:
        raise UsageError("--image-mpp belongs to --image.", "Give --image FILE too, or leave --image-mpp out.")
    if tile is not None:
        return TileQuery(tile)
    if image is not None:
        return read_picture(image, image_mpp)
    if slide is None or at is None:
        raise UsageError("a point needs its slide and its place.", "Give both --slide ID and --at X,Y.")
    return PointQuery(slide, *options.parse_point(at))
