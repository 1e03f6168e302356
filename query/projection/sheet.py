"""A map as a picture file: the points on white paper, and a legend beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from query.output_path import whole_file
from query.projection.colouring import Categories, Colouring, Numbers
from query.projection.drawing import draw_map
from query.projection.palette import MISSING, hex_of, ramp
from query.projection.tile_map import TileMap
from query.projection.window import whole_window

WIDTH_PX, HEIGHT_PX = 1400, 1000
_LEGEND_PX, _MARGIN, _LINE, _SWATCH = 320, 28, 26, 14
_INK, _FAINT, _PAPER = "#1d2129", "#6a7280", "#ffffff"

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def map_sheet(tile_map: TileMap, colours: Colouring | None) -> Image.Image:
    """Draw the whole map with its legend, 1400 x 1000 pixels."""
    width_px = WIDTH_PX - _LEGEND_PX
    window = whole_window(tile_map.extent, width_px, HEIGHT_PX)
    drawn = Image.fromarray(draw_map(tile_map, window, width_px, HEIGHT_PX, colours))
    sheet = Image.new("RGB", (WIDTH_PX, HEIGHT_PX), _PAPER)
    sheet.paste(drawn, (0, 0), drawn)
    pen = ImageDraw.Draw(sheet)
    plain, bold = ImageFont.load_default(size=14), ImageFont.load_default(size=16)
    slides = len(set(tile_map.rows.slide_no.tolist()))
    left, top = width_px, _MARGIN
    for text, font, ink in (
        (f"{tile_map.method.upper()} of {len(tile_map):,} tiles", bold, _INK),
        (f"of {slides:,} slides", plain, _FAINT),
        ("", plain, _INK),
        ("" if colours is None else _fitted(colours.column, bold), bold, _INK),
    ):
        pen.text((left, top), text, fill=ink, font=font)
        top += _LINE
    if isinstance(colours, Categories):
        for line in colours.legend:
            top = _line(pen, left, top, line.colour, line.name, line.count, plain)
    elif isinstance(colours, Numbers):
        top = _scale(pen, left, top, colours, plain)
    return sheet


def write_sheet(tile_map: TileMap, colours: Colouring | None, path: Path) -> None:
    """Write the sheet as PNG.

    Raises:
        UsageError: the file system refuses.
    """
    sheet = map_sheet(tile_map, colours)
    with whole_file(path) as part:
        sheet.save(part, "PNG")


def _line(pen: ImageDraw.ImageDraw, left: int, top: int, colour: str, name: str, count: int, font: Font) -> int:
    pen.ellipse((left, top + 2, left + _SWATCH, top + 2 + _SWATCH), fill=colour)
    number = f"{count:,}"
    right = WIDTH_PX - _MARGIN
    room = right - left - _SWATCH - 24 - font.getlength(number)
    pen.text((left + _SWATCH + 10, top), _fitted(name, font, room), fill=_INK, font=font)
    pen.text((right, top), number, fill=_FAINT, font=font, anchor="ra")
    return top + _LINE


def _scale(pen: ImageDraw.ImageDraw, left: int, top: int, numbers: Numbers, font: Font) -> int:
    right = WIDTH_PX - _MARGIN
    for x, colour in enumerate(ramp(np.linspace(0, 1, right - left)).round().astype(int).tolist(), start=left):
        pen.line((x, top, x, top + _SWATCH), fill=tuple(colour))
    top += _SWATCH + 6
    pen.text((left, top), f"{numbers.low:.4g}", fill=_INK, font=font)
    pen.text((right, top), f"{numbers.high:.4g}", fill=_INK, font=font, anchor="ra")
    top += _LINE
    return _line(pen, left, top, hex_of(MISSING), "none", numbers.missing, font) if numbers.missing else top


def _fitted(text: str, font: Font, width: float = _LEGEND_PX - _MARGIN) -> str:
    """Cut the end off a text that is too long."""
    kept = text
    while kept and font.getlength(kept + ("…" if kept != text else "")) > width:
        kept = kept[:-1]
    return kept if kept == text else f"{kept}…"
