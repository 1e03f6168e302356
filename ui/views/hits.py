"""Hits as cards: what of a result is worth a line below its picture, and how far away it is in plain words."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from query.results import Results
from ui.views.asked import Asked
from ui.views.component import data_uri, server_path
from ui.views.gallery import Card

_TOLD = ("organ", "label", "diagnosis", "grade", "stain")
_THUMB_PX = 128
_SHORT = 28  # letters of a value: what is longer is cut


def hit_cards(
    results: Results,
    slide_nos: Mapping[str, int],
    asked: Asked,
    kept: Collection[str] = (),
    chosen: str | None = None,
) -> list[Card]:
    """Cards of a search's hits, in their order.

    Args:
        results: of the search.
        slide_nos: by slide id.
        asked: the query, for its marks.
        kept: keys of the tiles that are kept for a collection.
        chosen: key of the tile that is shown in its slide.
    """
    rows = results.to_json_rows()
    told = told_columns(rows)
    cards = []
    for row, thumb in zip(rows, results.thumbnails(), strict=True):
        key = row["tile_key"]
        cards.append(
            Card(
                tile_key=key,
                title=f"{row['rank']} · {row['slide_id']}",
                lines=(*_about(row, told), nearness(row["distance"], row["percentile"])),
                image=picture_of(row, thumb, slide_nos),
                hint=f"Distance {row['distance']:.4f}. Show in its slide",
                mark="like" if key in asked.like else "unlike" if key in asked.unlike else None,
                kept=key in kept,
                chosen=key == chosen,
            )
        )
    return cards


def picture_of(row: Mapping[str, Any], thumb: bytes | None, slide_nos: Mapping[str, int]) -> str:
    """Address of a tile's picture: the store's thumbnail, or its place in the slide where the store has none."""
    if thumb:
        return data_uri(thumb)
    number = slide_nos.get(row["slide_id"])
    if number is None:
        return ""
    square = f"x0={row['x0']}&y0={row['y0']}&side_px0={row['extent_px0']}&px={_THUMB_PX}"
    return server_path(f"slides/{number}/region.jpg?{square}")


def nearness(distance: float, percentile: float | None) -> str:
    """A distance, and how many random pairs of tiles are farther apart."""
    if percentile is None:
        return f"{distance:.3f}"
    if percentile < 0.01:
        return f"{distance:.3f} · closer than 99.99 %"
    farther = 100 - percentile
    return f"{distance:.3f} · closer than {farther:.{2 if farther > 99.9 else 1}f} %"


def told_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """At most two of the slides' own columns that say something, the field's usual ones first."""
    own = {"rank", "tile_key", "slide_id", "x0", "y0", "extent_px0", "distance", "percentile", "tissue"}
    own |= {"width0", "height0", "mpp", "mpp_source", "manifest_mpp", "objective", "status", "reasons", "cohort"}
    own |= {"patient_id", "site_id", "thumbnail", "note", "notes", "comment"}
    filled = [
        name
        for name in (rows[0] if rows else {})
        if name not in own and any(row[name] not in (None, "") for row in rows)
    ]
    return sorted(filled, key=lambda name: _TOLD.index(name) if name in _TOLD else len(_TOLD))[:2]


def _about(row: Mapping[str, Any], names: Sequence[str]) -> tuple[str, ...]:
    values = [str(row[name]) for name in names if row[name] not in (None, "")]
    words = " · ".join(value if len(value) <= _SHORT else value[: _SHORT - 1] + "…" for value in values)
    return (words,) if words else ()
