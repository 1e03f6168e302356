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
    slide: Annotated[str | None, typer.Option(help="Slide of the query; needs --at or --region.")] = None,
    at: Annotated[str | None, typer.Option(help="X,Y of the query point in level-0 pixels.")] = None,
    region: Annotated[
        str | None,
        typer.Option(help="X,Y,X,Y of opposite corners, or the corners of a polygon: all tiles in it are the query."),
    ] = None,
    image: Annotated[Path | None, typer.Option(help="Picture to search with.")] = None,
    image_mpp: Annotated[float | None, typer.Option(help="Micrometres per pixel of the picture.")] = None,
    tile: Annotated[
        list[str] | None, typer.Option(help="Key of an indexed tile: slide_id@x0,y0. Repeat it for several examples.")
    ] = None,
    unlike: Annotated[
        list[str] | None, typer.Option(help="Key of a tile that is not what is sought; may be repeated.")
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Number of hits.")] = 20,
    where: options.Where = None,
    exclude: Annotated[
        str | None, typer.Option(help="Leave out what shares these with the query: slide, patient, site.")
    ] = None,
    per_slide: Annotated[int | None, typer.Option(help="At most so many hits of one slide.")] = None,
    per_patient: Annotated[int | None, typer.Option(help="At most so many hits of one patient.")] = None,
    apart: Annotated[
        float, typer.Option(help="Least distance of two hits of one slide, in sides of a tile; 3 skips neighbours.")
    ] = 1.0,
    target_recall: Annotated[
        float, typer.Option(help="Share of the true answer that will do where an exact one takes long; 1 is exact.")
    ] = 0.95,
    encoder: options.Encoder = None,
    grid: options.Grid = None,
    montage: Annotated[Path | None, typer.Option(help="Write a picture of the query and its hits.")] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say which engine answered, why, and in what time.")
    ] = False,
    json_output: options.Json = False,
) -> None:
    """Find the tiles of the store that look most like a tile, a point or region of a slide, or a picture."""
    from query import open_cohort
    from query.output_path import check_output_file
    from query.tile_list import SHEET_FORMATS
    from ui.cli.console import say, say_json, say_table

    if montage is not None:
        check_output_file(montage, SHEET_FORMATS)  # before the work, not after it
    query = _query(slide, at, region, image, image_mpp, tile or [], unlike or [])
    cohort = open_cohort(store)
    results = cohort.search(
        query,
        k=k,
        where=where,
        exclude=tuple(part.strip() for part in exclude.split(",")) if exclude else (),
        per_slide=per_slide,
        encoder=encoder,
        grid=grid,
        per_patient=per_patient,
        apart=apart,
        target_recall=target_recall,
    )
    if montage is not None:
        results.montage(montage)
    if json_output:
        document: dict[str, Any] = {
            "hits": results.to_json_rows(),
            "nothing_close": results.nothing_close,
            "plan": asdict(results.plan),
        }
        if montage is not None:
            document["montage"] = str(montage)
        say_json(document)
        return
    columns = ["rank", "slide_id", "x0", "y0", "extent_px0", "distance", "percentile"]
    say_table(columns, [[row[name] for name in columns] for row in results.to_json_rows()])
    if explain:
        say(results.explain())
    else:
        for note in results.plan.notes:
            say(f"note: {note}")
    if montage is not None:
        say(f"montage: {montage}")


def _query(
    slide: str | None,
    at: str | None,
    region: str | None,
    image: Path | None,
    image_mpp: float | None,
    tiles: list[str],
    unlike: list[str],
) -> Query:
    from encoder.errors import UsageError
    from query.queries import PointQuery, RegionQuery, TileQuery, examples, read_picture

    if at is not None and region is not None:
        raise UsageError("search takes one place.", "Give --at X,Y or --region X,Y,X,Y.")
    given = [slide is not None or at is not None or region is not None, image is not None, bool(tiles)]
    if sum(given) != 1:
        raise UsageError(
            "search takes one query.",
            "Give --slide ID with --at X,Y or --region X,Y,X,Y, or --image FILE, or --tile KEY.",
        )
    if image_mpp is not None and image is None:
        raise UsageError("--image-mpp belongs to --image.", "Give --image FILE too, or leave --image-mpp out.")
    query: Query
    if tiles:
        query = TileQuery(tiles[0]) if len(tiles) == 1 else examples(map(TileQuery, tiles))
    elif image is not None:
        query = read_picture(image, image_mpp)
    elif slide is None or (at is None and region is None):
        raise UsageError("a place needs its slide.", "Give both --slide ID and --at X,Y, or --region X,Y,X,Y.")
    elif region is not None:
        query = RegionQuery(slide, options.parse_corners(region))
    else:
        assert at is not None
        query = PointQuery(slide, *options.parse_point(at))
    if unlike:
        like = map(TileQuery, tiles) if tiles else [query]
        query = examples(like, map(TileQuery, unlike))
    return query
