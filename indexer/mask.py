"""Tissue masks that people draw: GeoJSON polygons, as QuPath writes them, onto a map's pixels."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoder.errors import SlideError

_FIX = "Export the annotations from QuPath as GeoJSON, with polygons in level-0 pixels."


def read_mask(file: Path, x0: float, y0: float, pitch_px0: float, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Draw the polygons of a GeoJSON file: true inside a polygon and not in one of its holes.

    Args:
        file: a FeatureCollection, a Feature, a geometry, or a list of these; coordinates in level-0 pixels.
        x0, y0: level-0 pixels of the map's upper left corner.
        pitch_px0: level-0 pixels per pixel of the map.
        shape: (rows, columns) of the map.

    Raises:
        SlideError: the file is absent, no GeoJSON, or holds no polygon.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        polygons = [[_ring(ring) for ring in polygon] for polygon in _polygons(document)]
    except OSError as error:
        raise SlideError(f"The mask {file} cannot be read: {error}.", "Check the path in the manifest.") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SlideError(f"The mask {file} is no GeoJSON of polygons: {error}.", _FIX) from error
    if not polygons:
        raise SlideError(f"The mask {file} holds no polygon.", _FIX)
    inside = np.zeros(shape, dtype=np.bool_)
    for polygon in polygons:
        # Each on its own: the hole of one polygon does not erase another that fills it.
        inside |= _filled([(ring - (x0, y0)) / pitch_px0 for ring in polygon], shape)
    return inside


def _filled(rings: Sequence[NDArray[np.float64]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill rings by the even-odd rule: a pixel is in where its centre is.

    Args:
        rings: float64 [N, 2] each, in pixels of the result; the last point joins the first.
    """
    rows, cols = shape
    # How many edges cross each row between one pixel centre and the next; the sum from the left is in or out.
    crossings = np.zeros((rows, cols + 1), dtype=np.int32)
    for ring in rings:
        begin, end = ring, np.roll(ring, -1, axis=0)
        top, bottom = np.minimum(begin[:, 1], end[:, 1]), np.maximum(begin[:, 1], end[:, 1])
        first, stop = (np.clip(np.ceil(edge - 0.5), 0, rows).astype(np.int64) for edge in (top, bottom))
        edge = np.repeat(np.arange(len(ring)), stop - first)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(stop - first) - (stop - first), stop - first) + first[edge]
        slope = (end[edge, 0] - begin[edge, 0]) / (end[edge, 1] - begin[edge, 1])
        x = begin[edge, 0] + (row + 0.5 - begin[edge, 1]) * slope
        np.add.at(crossings, (row, np.clip(np.ceil(x - 0.5), 0, cols).astype(np.int64)), 1)
    return crossings.cumsum(axis=1)[:, :cols] % 2 == 1


def _ring(points: Any) -> NDArray[np.float64]:
    ring = np.asarray(points, dtype=np.float64)
    if ring.ndim != 2 or ring.shape[0] < 3 or ring.shape[1] < 2 or not np.isfinite(ring).all():
        raise ValueError("a polygon's ring needs at least three points [x, y]")
    return ring[:, :2]


def _polygons(node: Any) -> Iterator[list[Any]]:
    """Walk any nesting of GeoJSON and give each polygon's rings, the outer one first."""
    if isinstance(node, list):
        for item in node:
            yield from _polygons(item)
        return
    kind = node["type"]
    if kind == "FeatureCollection":
        yield from _polygons(node["features"])
    elif kind == "Feature":
        yield from _polygons(node["geometry"])
    elif kind == "GeometryCollection":
        yield from _polygons(node["geometries"])
    elif kind == "Polygon":
        yield node["coordinates"]
    elif kind == "MultiPolygon":
        yield from node["coordinates"]
    elif kind not in {"Point", "MultiPoint", "LineString", "MultiLineString"}:
        raise ValueError(f"unknown type {kind}")
