"""What a map's points are coloured by: a column of slides or tiles, or an annotation, with its legend."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from encoder.errors import QueryError
from indexer.schema import RESERVED_SLIDE_COLUMNS
from indexer.store import Store
from query.exclusion import is_unknown
from query.guard import nearest_name
from query.projection.palette import CATEGORIES, MISSING, OTHERS, hex_of
from query.projection.tile_map import TileMap

# Whole numbers of so few values are names of classes, such as grades.
_MOST_CLASSES = len(CATEGORIES)
# Some values far away must not take all the colours.
_LOW, _HIGH = 0.01, 0.99
_OF_TILES = ("tissue", "x0", "y0", "extent_px0")
_TOLD_ELSEWHERE = frozenset(
    {"slide_no", "path", "fingerprint", "thumbnail", "registered_at", "mask", "manifest_mpp", "status", "reasons"}
)


@dataclass(frozen=True)
class Category:
    """One line of a legend: a name, the tiles that have it, and its colour as HTML writes it."""

    name: str
    count: int
    colour: str


@dataclass(frozen=True)
class Categories:
    """Points coloured by classes: the most frequent ones, then the others together, then those without any.

    Attributes:
        column: that was asked for.
        codes: of each point, its line of the legend, int16 [N].
        legend: classes by falling number of tiles; `others` and `none` at its end, where there are such.
        colours: of the lines, uint8 [L, 3].
    """

    column: str
    codes: NDArray[np.int16] = field(repr=False)
    legend: tuple[Category, ...]
    colours: NDArray[np.uint8] = field(repr=False)


@dataclass(frozen=True)
class Numbers:
    """Points coloured by a number.

    Attributes:
        column: that was asked for.
        values: of each point, float32 [N]; NaN for none.
        low, high: what the scale's ends stand for; some values may lie beyond.
        missing: points without a number.
    """

    column: str
    values: NDArray[np.float32] = field(repr=False)
    low: float
    high: float
    missing: int


Colouring = Categories | Numbers


def colour_columns(store: Store, tile_map: TileMap) -> list[str]:
    """Columns that say something about the map's tiles: the manifest's own, of slides, of tiles, then annotations."""
    slides = tile_map.slides
    present = pa.array(np.unique(tile_map.rows.slide_code))
    names = []
    for name in slides.column_names:
        told = name not in _TOLD_ELSEWHERE and _is_plain(slides.schema.field(name).type)
        if told and any(not is_unknown(value) for value in pc.unique(slides[name].take(present)).to_pylist()):
            names.append(name)
    names.sort(key=lambda name: (name != "slide_id", name in RESERVED_SLIDE_COLUMNS))
    names += [name for name in _OF_TILES if name not in names]
    given = store.read("annotations", ["name", "grid_id"])
    own = pc.or_(pc.is_null(given["grid_id"]), pc.equal(given["grid_id"], tile_map.rows.grid_id))
    annotated = pc.unique(given["name"].filter(pc.fill_null(own, True))).to_pylist()
    return names + [name for name in sorted(annotated) if name not in names]


def colour_by(store: Store, tile_map: TileMap, column: str) -> Colouring:
    """Colour points by a column.

    Text and truth values are classes, and so are whole numbers of slides or annotations of at most ten different
    values; other numbers are a scale.

    Args:
        store: that the map is of; read for annotations only.
        tile_map: the points.
        column: of slides or tiles, or the name of an annotation, whose newest value of a tile counts, else that
            of its slide.

    Raises:
        QueryError: there is no such column, or it cannot be shown as a colour.
    """
    rows, slides = tile_map.rows, tile_map.slides
    if column in slides.column_names and column not in _OF_TILES:
        return _coloured(column, slides[column].combine_chunks(), rows.slide_code)
    if column in rows.tiles.column_names:
        return _numbers(column, rows.tiles[column].combine_chunks(), np.arange(len(rows)))
    values, codes = _annotated(store, tile_map, column)
    return _coloured(column, values, codes)


def _annotated(store: Store, tile_map: TileMap, name: str) -> tuple[pa.Array, NDArray[np.int64]]:
    """Different values of an annotation, and the number of each point's; -1 for none."""
    table = store.annotations(name).sort_by("at")
    if not table.num_rows:
        known = [*tile_map.slides.column_names, *_OF_TILES, *store.annotations()["name"].unique().to_pylist()]
        raise QueryError(f"There is no column or annotation {name!r}.", nearest_name(name, known))
    numeric = table["number"].null_count == table["value"].null_count
    encoded = (table["number"] if numeric else table["value"]).combine_chunks().dictionary_encode()
    codes = np.asarray(encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False), np.int64)
    rows = tile_map.rows
    of_slide = np.asarray(pc.is_null(table["tile_id"]).to_numpy(), np.bool_)
    result = np.full(len(rows), -1, np.int64)
    numbers = table["slide_no"].to_numpy(zero_copy_only=False)[of_slide].astype(np.int64)
    by_slide = np.full(int(max(numbers.max(initial=0), rows.slide_no.max(initial=0))) + 1, -1, np.int64)
    by_slide[numbers] = codes[of_slide]
    result[:] = by_slide[rows.slide_no]
    own = ~of_slide & np.asarray(pc.fill_null(pc.equal(table["grid_id"], rows.grid_id), False).to_numpy(), np.bool_)
    at = rows.row_of(np.asarray(table["tile_id"].fill_null(-1).to_numpy(), np.int64)[own])
    result[at[at >= 0]] = codes[own][at >= 0]  # the newest comes last, and stays
    return encoded.dictionary, result


def _coloured(column: str, values: pa.Array, places: NDArray[np.integer]) -> Colouring:
    """Colour points whose values are `values[places]`, those at a place below 0 as missing."""
    kind = values.type
    if not _is_plain(kind):
        raise QueryError(f"The column {column!r} of {kind} cannot be shown as a colour.", "Choose text or numbers.")
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind)):
        return _categories(column, values, places)
    numbers = values.cast(pa.float64(), safe=False)
    different = pc.unique(numbers.filter(pc.is_finite(numbers))).to_numpy(zero_copy_only=False)
    if different.size > _MOST_CLASSES or (different != np.round(different)).any():
        return _numbers(column, numbers, places)
    whole = pc.if_else(pc.is_finite(numbers), numbers, None).cast(pa.int64())
    return _categories(column, whole, places)


def _numbers(column: str, values: pa.Array, places: NDArray[np.integer]) -> Numbers:
    given = np.asarray(values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), np.float64)
    given = np.append(given, np.nan)  # where a place of -1 leads
    found = np.where(np.isfinite(given), given, np.nan)[places]
    known = found[~np.isnan(found)]
    if not known.size:
        return Numbers(column, found.astype(np.float32), 0.0, 0.0, found.size)
    low, high = np.quantile(known, [_LOW, _HIGH])
    if low == high:
        low, high = known.min(), known.max()
    return Numbers(column, found.astype(np.float32), float(low), float(high), int(found.size - known.size))


def _categories(column: str, values: pa.Array, places: NDArray[np.integer]) -> Categories:
    encoded = (values if pa.types.is_string(values.type) else values.cast(pa.string())).dictionary_encode()
    names = [str(name) for name in encoded.dictionary.to_pylist()]
    of_value = np.asarray(encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False), np.int64)
    of_value = np.append(of_value, -1)  # where a place of -1 leads
    blank = np.array([name == "" for name in names] + [True], np.bool_)
    found = of_value[places]
    counts = np.bincount(found[~blank[found]], minlength=len(names))
    # The most frequent first; names that are as frequent in their order.
    order = sorted((code for code in range(len(names)) if counts[code]), key=lambda code: (-counts[code], names[code]))
    shown, rest = order[:_MOST_CLASSES], order[_MOST_CLASSES:]
    line_of = np.zeros(len(names) + 1, np.int16)
    legend, colours = [], []
    for line, code in enumerate(shown):
        line_of[code] = line
        legend.append(Category(names[code], int(counts[code]), hex_of(CATEGORIES[line])))
        colours.append(CATEGORIES[line])
    if rest:
        line_of[rest] = len(legend)
        legend.append(
            Category("1 other" if len(rest) == 1 else f"{len(rest)} others", int(counts[rest].sum()), hex_of(OTHERS))
        )
        colours.append(OTHERS)
    missing = int(found.size - counts.sum())
    line_of[blank] = len(legend)
    if missing:
        legend.append(Category("none", missing, hex_of(MISSING)))
        colours.append(MISSING)
    return Categories(column, line_of[found], tuple(legend), np.asarray(colours, np.uint8).reshape(-1, 3))


def _is_plain(kind: pa.DataType) -> bool:
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_temporal(kind)
    )
