"""Options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Slides = Annotated[
    list[Path] | None,
    typer.Argument(help="Slide files, or folders that are searched for slides.", show_default=False),
]
Store = Annotated[str, typer.Option("--store", help="Folder or URI of the store.")]
Manifest = Annotated[
    Path | None,
    typer.Option(help="CSV with path or slide_id, and mpp, patient_id, site_id, mask, any columns of yours."),
]
CohortMpp = Annotated[
    float | None,
    typer.Option(help="Micrometres per pixel of slides that give none in any other way."),
]
Encoder = Annotated[str | None, typer.Option(help="Encoder id or name; implied where the store has one.")]
Grid = Annotated[str | None, typer.Option(help="Grid id; implied where the store has one.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, everything else on stderr.")]
Where = Annotated[
    str | None,
    typer.Option(help="SQL condition over slide and tile columns, such as \"organ = 'colon' AND tissue > 0.5\"."),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; the GPU where there is one.")]


def parse_point(text: str) -> tuple[int, int]:
    """Level-0 pixels written as X,Y.

    Raises:
        UsageError: it is written otherwise.
    """
    from encoder.errors import UsageError

    x0, _, y0 = text.partition(",")
    try:
        return round(float(x0)), round(float(y0))
    except (ValueError, OverflowError):
        raise UsageError(f"--at {text} is not X,Y.", "Give level-0 pixels, such as --at 12000,8400.") from None


def parse_corners(text: str) -> tuple[tuple[float, float], ...]:
    """Corners of a region written as X,Y,X,Y and so on, in level-0 pixels.

    Raises:
        UsageError: it is written otherwise.
    """
    from encoder.errors import UsageError

    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) < 4 or len(numbers) % 2:
        raise UsageError(
            f"--region {text} is not X,Y,X,Y.", "Give two opposite corners in level-0 pixels, or those of a polygon."
        )
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))
