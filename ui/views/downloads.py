"""Hits or a collection to take away: a table, a picture, outlines for QuPath."""

from __future__ import annotations

import json

import streamlit as st

from query.results import Results
from query.tile_list import MAX_SHEET_TILES, TileList

_UNSAFE = '\\/:*?"<>|'


def download_row(found: Results | TileList, stem: str) -> None:
    """Draw three buttons in a row; what is behind one is made when it is pressed.

    Args:
        found: what is taken away.
        stem: of the files' names.
    """
    tiles = found.listed if isinstance(found, Results) else found
    name = "".join("-" if letter in _UNSAFE else letter for letter in stem)
    several = len(tiles.slide_ids) > 1
    too_many = len(tiles) > MAX_SHEET_TILES
    table, sheet, outlines = st.columns(3)
    with table:
        st.download_button(
            "Table",
            tiles.to_csv,
            f"{name}.csv",
            "text/csv",
            key="download_csv",
            icon=":material/table:",
            help="All columns, as CSV for a spreadsheet",
            on_click="ignore",
            disabled=not len(tiles),
            width="stretch",
        )
    with sheet:
        st.download_button(
            "Picture",
            tiles.to_png,
            f"{name}.png",
            "image/png",
            key="download_png",
            icon=":material/image:",
            help=f"A sheet shows at most {MAX_SHEET_TILES} tiles" if too_many else "All tiles on one sheet, as PNG",
            on_click="ignore",
            disabled=too_many or not len(tiles),
            width="stretch",
        )
    with outlines:
        st.download_button(
            "Outlines",
            tiles.to_geojson_zip if several else lambda: json.dumps(tiles.to_geojson(), allow_nan=False),
            f"{name}.zip" if several else f"{name}.geojson",
            "application/zip" if several else "application/geo+json",
            key="download_geojson",
            icon=":material/polyline:",
            help="GeoJSON for QuPath" + (", one file per slide" if several else ""),
            on_click="ignore",
            disabled=not len(tiles),
            width="stretch",
        )
