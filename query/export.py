"""Tiles and vectors out of a store: a tile folder, a Parquet file; whole or not at all."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from encoder.errors import HistoSeekError, QueryError, SlideError, UsageError
from encoder.progress import Reporter, SilentReporter
from indexer.grid import Grid
from indexer.schema import TILE_IMAGE_QUALITY
from query.cohort import Cohort
from query.exclusion import is_unknown
from query.filters import RowFilter
from query.guard import nearest_name
from query.output_path import check_output_file, check_output_folder, whole_file, whole_folder
from query.rows import finished_rows, finished_tiles, slide_codes
from query.slide_columns import slide_columns

_BATCH = 256
_TABLE_COLUMNS = ("file", "label", "patient_id", "slide_id", "x0", "y0", "extent_px0", "mpp", "site_id")


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path: file or folder.
        tiles: number written.
        slides: number of slides that gave at least one.
        failures: slide or tile, and why it is missing.
    """

    path: Path
    tiles: int
    slides: int
    failures: tuple[tuple[str, str], ...] = ()


def export_tiles(
    cohort: Cohort,
    folder: Path | str,
    where: str | None = None,
    label: str | None = None,
    grid: str | None = None,
    reporter: Reporter | None = None,
) -> ExportReport:
    """Write tiles as a tile folder: kept images as they are, others read from their slides.

    A slide or tile that cannot be read is reported and left out.

    Args:
        cohort: an open store.
        folder: must be absent or empty.
        where: expression over slide and tile columns.
        label: column of the slides that becomes the tiles' label.
        grid: id; needed where the store has several.
        reporter: receives progress.

    Raises:
        UsageError: the folder is in use or cannot be made.
        QueryError: the filter, label or grid is wrong, no tile matches, or none could be read.
    """
    target = check_output_folder(folder)
    slides, grid_id, reporter = cohort.slides, _choose_grid(cohort, grid), reporter or SilentReporter()
    if label is not None and label not in slides.column_names:
        raise QueryError(f"There is no slide column {label!r}.", nearest_name(label, slides.column_names))
    tiles = finished_tiles(cohort.store, grid_id)
    codes = slide_codes(slides)[tiles["slide_no"].to_numpy()]
    if where is not None:
        mask = RowFilter(slides, tiles, codes).mask(where)
        tiles, codes = tiles.filter(pa.array(mask)), codes[mask]
    if not tiles.num_rows:
        raise QueryError("No tile matches: nothing was written.", "Index slides, or widen where.")
    settings = next(row["settings"] for row in cohort.grids.to_pylist() if row["grid_id"] == grid_id)
    grid_settings = Grid.from_json(settings)
    written, sources = 0, 0
    failures: list[tuple[str, str]] = []
    reporter.start("export", tiles.num_rows, "tiles")
    with whole_folder(target) as part, (part / "tiles.csv").open("w", newline="", encoding="utf-8") as stream:
        columns = [name for name in _TABLE_COLUMNS if name != "label" or label is not None]
        table = csv.DictWriter(stream, columns, extrasaction="ignore")
        table.writeheader()
        for code in np.unique(codes):
            own = tiles.filter(pa.array(codes == code)).sort_by("tile_id")
            slide = slides.slice(int(code), 1).to_pylist()[0]
            cell = None if label is None or is_unknown(slide[label]) else slide[label]
            about = {name: slide[name] or "" for name in ("slide_id", "patient_id", "site_id")}
            about["label"] = "" if cell is None else f"{cell:.15g}" if isinstance(cell, float) else cell
            names = _file_names(int(slide["slide_no"]), own)
            count = 0
            for row, content in _contents(cohort, grid_settings, grid_id, slide, own, failures):
                file = part / "images" / names[row]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
                place = {name: own[name][row].as_py() for name in ("x0", "y0", "extent_px0")}
                mpp = place["extent_px0"] * slide["mpp"] / grid_settings.tile_px
                table.writerow(about | place | {"file": names[row], "mpp": f"{mpp:.5g}"})
                count += 1
                reporter.advance()
            written, sources = written + count, sources + (count > 0)
        if not written:
            raise QueryError(f"No tile could be read: {failures[0][0]}: {failures[0][1]}", "Nothing was written.")
    reporter.finish()
    return ExportReport(target, written, sources, tuple(failures))


def export_parquet(
    cohort: Cohort,
    file: Path | str,
    where: str | None = None,
    encoder: str | None = None,
    grid: str | None = None,
    reporter: Reporter | None = None,
) -> ExportReport:
    """Write vectors with what is known of their tiles and slides, streamed from the store.

    The encoder's spec and the grid's settings are in the file's metadata.

    Args:
        cohort: an open store.
        file: must not exist.
        where: expression over slide and tile columns.
        encoder, grid: needed where the store has several.
        reporter: receives progress.

    Raises:
        UsageError: the file exists or cannot be written.
        QueryError: the filter, encoder or grid is wrong, or no tile matches.
    """
    target = check_output_file(file)
    if target.exists():
        raise UsageError(f"{target} exists.", fix="Name a new file.")
    table, slides, reporter = cohort.choose(encoder, grid), cohort.slides, reporter or SilentReporter()
    store, name = cohort.store, cohort.store.vectors_table_name(table.encoder_id, table.grid_id)
    code_of = slide_codes(slides)
    finished, _ = finished_rows(store, name)
    tiles = finished_tiles(store, table.grid_id)
    kept = np.isin(tiles["slide_no"].to_numpy(), np.fromiter(finished, np.int64, len(finished)))
    if where is not None:
        kept = kept & RowFilter(slides, tiles, code_of[tiles["slide_no"].to_numpy()]).mask(where)
    tiles = tiles.filter(pa.array(kept)).sort_by("tile_id")
    if not tiles.num_rows:
        raise QueryError("No tile matches: nothing was written.", "Index slides, or widen where.")
    ids, extents = tiles["tile_id"].to_numpy(), tiles["extent_px0"].to_numpy()
    metadata = _provenance(cohort, table.encoder_id, table.grid_id)
    reporter.start("export", ids.size, "tiles")
    written, seen = 0, set()
    with whole_file(target) as part, ExitStack() as closing:
        writer = None
        for batch in store.scan(name, ["tile_id", "slide_no", "x0", "y0", "tissue", "vector"], batch_rows=16_384):
            at = np.minimum(np.searchsorted(ids, batch["tile_id"].to_numpy()), ids.size - 1)
            match = ids[at] == batch["tile_id"].to_numpy()
            if not match.any():
                continue
            rows = pa.Table.from_batches([batch]).filter(pa.array(match))
            codes = code_of[rows["slide_no"].to_numpy()]
            seen.update(codes.tolist())
            out = _parquet_rows(rows, extents[at[match]], slides.take(pa.array(codes)))
            if writer is None:
                schema = out.schema.with_metadata(metadata)
                writer = closing.enter_context(pq.ParquetWriter(part, schema, compression="zstd"))
            writer.write_table(out.replace_schema_metadata(metadata))
            written += out.num_rows
            reporter.advance(out.num_rows)
        if writer is None:
            raise QueryError("No tile matches: nothing was written.", "Index slides, or widen where.")
    reporter.finish()
    return ExportReport(target, written, len(seen))


def _parquet_rows(rows: pa.Table, extents: NDArray[np.int32], about: pa.Table) -> pa.Table:
    columns: dict[str, Any] = {
        "slide_id": about["slide_id"],
        "tile_id": rows["tile_id"],
        "x0": rows["x0"],
        "y0": rows["y0"],
        "extent_px0": extents,
        "tissue": rows["tissue"],
    }
    columns |= slide_columns(about, {*columns, "vector"})
    return pa.table(columns | {"vector": rows["vector"]})


def _provenance(cohort: Cohort, encoder_id: str, grid_id: str) -> dict[str, str]:
    spec = next(row["spec"] for row in cohort.encoders.to_pylist() if row["encoder_id"] == encoder_id)
    settings = next(row["settings"] for row in cohort.grids.to_pylist() if row["grid_id"] == grid_id)
    about = {"encoder_id": encoder_id, "encoder": json.loads(spec), "grid_id": grid_id, "grid": json.loads(settings)}
    return {"histoseek": json.dumps(about, sort_keys=True)}


def _contents(
    cohort: Cohort,
    grid: Grid,
    grid_id: str,
    slide: dict[str, Any],
    tiles: pa.Table,
    failures: list[tuple[str, str]],
) -> Iterator[tuple[int, bytes]]:
    """Row and JPEG of every tile that can be had; what cannot goes to `failures`."""
    ids = tiles["tile_id"].to_numpy()
    missing: list[int] = []
    for start in range(0, ids.size, _BATCH):
        kept = cohort.store.tile_images(grid_id, ids[start : start + _BATCH].tolist())
        for row in range(start, min(start + _BATCH, ids.size)):
            content = kept.get(int(ids[row]))
            if content is None:
                missing.append(row)
            else:
                yield row, content
    if missing:
        yield from _read_from_slide(slide, grid, ids, missing, failures)


def _read_from_slide(
    slide: dict[str, Any],
    grid: Grid,
    ids: NDArray[np.int64],
    rows: list[int],
    failures: list[tuple[str, str]],
) -> Iterator[tuple[int, bytes]]:
    from query.slide_tile import open_tiles  # OpenSlide: only where tiles were not kept

    try:
        with open_tiles(slide, grid, ids[rows]) as read, ThreadPoolExecutor() as pool:

            def encode(position: int) -> bytes | HistoSeekError:
                try:
                    buffer = io.BytesIO()
                    Image.fromarray(read(position)).save(buffer, "JPEG", quality=TILE_IMAGE_QUALITY)
                    return buffer.getvalue()
                except HistoSeekError as error:
                    return error

            for start in range(0, len(rows), _BATCH):
                positions = range(start, min(start + _BATCH, len(rows)))
                for position, content in zip(positions, pool.map(encode, positions), strict=True):
                    if isinstance(content, bytes):
                        yield rows[position], content
                    else:
                        failures.append((slide["slide_id"], str(content)))
    except SlideError as error:
        failures.append((slide["slide_id"], str(error)))


def _file_names(slide_no: int, tiles: pa.Table) -> list[str]:
    """Names that any file system takes: a slide's id may hold anything."""
    places = zip(tiles["x0"].to_pylist(), tiles["y0"].to_pylist(), strict=True)
    return [f"{slide_no:05d}/{x0}_{y0}.jpg" for x0, y0 in places]


def _choose_grid(cohort: Cohort, grid: str | None) -> str:
    grids = cohort.grids["grid_id"].to_pylist()
    if grid in grids or (grid is None and len(grids) == 1):
        return str(grid or grids[0])
    if not grids:
        raise QueryError("The store holds no tiles yet.", "`histoseek index` makes them.")
    said = f"The store has no grid {grid!r}." if grid else f"The store has {len(grids)} grids."
    raise QueryError(said, f"Choose one of: {', '.join(grids)}.")
