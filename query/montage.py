"""A contact sheet: the query in a frame at the left, or a heading; tiles in rows beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

_TILE = 160
_QUERY = 220
_GAP = 14
_MARGIN = 22
_TEXT = 14
_LINE = 18
_INK, _FAINT, _PAPER, _FRAME, _EMPTY = "#1d2129", "#6a7280", "#ffffff", "#c2410c", "#eceef1"

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


@dataclass(frozen=True)
class Entry:
    """One hit on the sheet: its picture and three lines below it."""

    image: Image.Image | None
    head: str
    line: str
    detail: str


def draw_montage(
    query: Image.Image | None,
    words: str,
    entries: Sequence[Entry],
    columns: int = 5,
    *,
    heading: str = "Query",
    framed: bool = True,
) -> Image.Image:
    """Draw the sheet.

    Args:
        query: its picture; None draws an empty frame.
        words: the query in words, below it.
        entries: the hits, nearest first.
        columns: hits per row.
        heading: above the words.
        framed: whether there is a query; without one the heading begins at the top.
    """
    columns = max(1, min(columns, len(entries) or 1))
    rows = max(1, -(-len(entries) // columns))
    cell_height = _TILE + 3 * _LINE + 6
    left = _MARGIN + _QUERY + 2 * _MARGIN
    width = left + columns * _TILE + (columns - 1) * _GAP + _MARGIN
    height = 2 * _MARGIN + max(rows * cell_height + (rows - 1) * _GAP, _QUERY + 5 * _LINE)
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    plain, bold = ImageFont.load_default(size=_TEXT), ImageFont.load_default(size=_TEXT + 2)
    top, lines = _MARGIN, 12
    if framed:
        _place(sheet, pen, query, _MARGIN, _MARGIN, _QUERY, plain)
        frame = (_MARGIN - 4, _MARGIN - 4, _MARGIN + _QUERY + 3, _MARGIN + _QUERY + 3)
        pen.rectangle(frame, outline=_FRAME, width=4)
        top, lines = _MARGIN + _QUERY + 12, 3
    pen.text((_MARGIN, top), _shorten(heading, bold, _QUERY), fill=_FRAME, font=bold)
    for number, line in enumerate(_wrap(words, plain, _QUERY)[:lines]):
        pen.text((_MARGIN, top + _LINE * (number + 1) + 4), line, fill=_INK, font=plain)
    if not entries:
        pen.text((left, _MARGIN), "No tile matches.", fill=_FAINT, font=bold)
    for number, entry in enumerate(entries):
        x = left + (number % columns) * (_TILE + _GAP)
        y = _MARGIN + (number // columns) * (cell_height + _GAP)
        _place(sheet, pen, entry.image, x, y, _TILE, plain)
        pen.text((x, y + _TILE + 5), _shorten(entry.head, bold, _TILE), fill=_INK, font=bold)
        pen.text((x, y + _TILE + 7 + _LINE), _shorten(entry.line, plain, _TILE), fill=_INK, font=plain)
        pen.text((x, y + _TILE + 7 + 2 * _LINE), _shorten(entry.detail, plain, _TILE), fill=_FAINT, font=plain)
    return sheet


def _place(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, image: Image.Image | None, x: int, y: int, side: int, font: Font
) -> None:
    if image is None:
        pen.rectangle((x, y, x + side - 1, y + side - 1), fill=_EMPTY)
        pen.text((x + side / 2, y + side / 2), "no picture", fill=_FAINT, font=font, anchor="mm")
        return
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    fitted = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    sheet.paste(fitted, (x + (side - size[0]) // 2, y + (side - size[1]) // 2))


def _shorten(text: str, font: Font, width: int) -> str:
    """Cut the middle out of a text that is too long: ids differ at both ends."""
    if font.getlength(text) <= width:
        return text
    kept = len(text)
    while kept > 2 and font.getlength(_middle_cut(text, kept)) > width:
        kept -= 1
    return _middle_cut(text, kept)


def _middle_cut(text: str, kept: int) -> str:
    return f"{text[: -(-kept // 2)]}…{text[len(text) - kept // 2 :]}"


def _wrap(text: str, font: Font, width: int) -> list[str]:
    """Break at spaces; a word that is wider than a line, as ids are, between its letters."""
    lines, line = [], ""
    for word in text.split():
        joined = f"{line} {word}" if line else word
        if font.getlength(joined) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        line = ""
        for letter in word:
            if line and font.getlength(line + letter) > width:
                lines.append(line)
                line = ""
            line += letter
    return [*lines, line] if line else lines
