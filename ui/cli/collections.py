"""The command about saved collections of tiles: list them, take one out of the store, delete one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ui.cli import options

if TYPE_CHECKING:
    from query.cohort import Cohort
    from query.tile_list import TileList

_TABLE_SUFFIXES, _OUTLINE_SUFFIXES = (".csv",), (".geojson", ".json", ".zip")


def collections(
    store: options.Store,
    show: Annotated[str | None, typer.Option(help="Name of the collection whose tiles are wanted.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write its tiles with all columns as CSV.")] = None,
    geojson: Annotated[
        Path | None,
        typer.Option(help="Write its outlines for QuPath; FILE.zip holds one file per slide, FILE.geojson all."),
    ] = None,
    sheet: Annotated[Path | None, typer.Option(help="Write a picture of its tiles.")] = None,
    delete: Annotated[str | None, typer.Option(help="Name of the collection to delete.")] = None,
    json_output: options.Json = False,
) -> None:
    """List the saved collections of tiles, take one out of the store, or delete one."""
    from encoder.errors import UsageError
    from query import open_cohort
    from query.collections import delete_collection
    from query.output_path import check_output_file
    from query.tile_list import SHEET_FORMATS
    from ui.cli.console import say, say_json

    files = ((csv, _TABLE_SUFFIXES), (geojson, _OUTLINE_SUFFIXES), (sheet, tuple(SHEET_FORMATS)))
    written = [path for path, _ in files if path is not None]
    if show is not None and delete is not None:
        raise UsageError("collections does one thing.", "Give --show NAME or --delete NAME.")
    if written and show is None:
        raise UsageError("--csv, --geojson and --sheet belong to --show.", "Give --show NAME too.")
    for path, suffixes in files:
        if path is not None:
            check_output_file(path, suffixes)  # before the work, not after it
    cohort = open_cohort(store)
    if delete is not None:
        delete_collection(cohort, delete)
        if json_output:
            say_json({"deleted": delete})
        else:
            say(f"deleted: {delete}")
    elif show is not None:
        _show(cohort, show, csv, geojson, sheet, json_output)
    else:
        _list(cohort, json_output)


def _list(cohort: Cohort, json_output: bool) -> None:
    from query.collections import collections as saved
    from ui.cli.console import say, say_json, say_table

    found = saved(cohort)
    if json_output:
        say_json({"collections": [asdict(info) for info in found]})
    elif not found:
        say("no collections yet: the explorer saves hits as one, and so does query.collections.save_collection")
    else:
        rows = [
            [info.name, info.tiles, info.slides, info.missing, info.author, info.at.isoformat()[:16], info.note]
            for info in found
        ]
        say_table(["name", "tiles", "slides", "missing", "by", "at", "note"], rows)


def _show(
    cohort: Cohort, name: str, csv: Path | None, geojson: Path | None, sheet: Path | None, json_output: bool
) -> None:
    from query.collections import collection_tiles, load_collection
    from ui.cli.console import say, say_json, say_table

    found = load_collection(cohort, name)
    tiles = collection_tiles(cohort, found)
    written = _write(tiles, csv, geojson, sheet)
    if json_output:
        document: dict[str, Any] = {**asdict(found.info), "tile_keys": found.tile_keys, "rows": tiles.to_json_rows()}
        say_json(document | {kind: str(path) for kind, path in written.items()})
        return
    columns = ["rank", "slide_id", "x0", "y0", "extent_px0", "tissue"]
    say_table(columns, [[row[column] for column in columns] for row in tiles.to_json_rows()])
    if found.info.note:
        say(f"note: {found.info.note}")
    if found.info.missing:
        say(f"note: {found.info.missing} of its {found.info.tiles} tiles are no longer in the store")
    if geojson is not None and geojson.suffix.lower() != ".zip" and len(tiles.slide_ids) > 1:
        say(f"note: {geojson} holds outlines of {len(tiles.slide_ids)} slides; FILE.zip holds one file per slide")
    for kind, path in written.items():
        say(f"{kind}: {path}")


def _write(tiles: TileList, csv: Path | None, geojson: Path | None, sheet: Path | None) -> dict[str, Path]:
    """Write what was asked for; the paths by what they hold."""
    import json

    from query.output_path import whole_file

    if csv is not None:
        with whole_file(csv) as part:
            part.write_bytes(tiles.to_csv())
    if geojson is not None:
        each = geojson.suffix.lower() == ".zip"
        content = tiles.to_geojson_zip() if each else json.dumps(tiles.to_geojson(), allow_nan=False).encode()
        with whole_file(geojson) as part:
            part.write_bytes(content)
    if sheet is not None:
        tiles.montage(sheet)
    return {kind: path for kind, path in (("csv", csv), ("geojson", geojson), ("sheet", sheet)) if path is not None}
