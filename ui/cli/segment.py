"""The command that finds nuclei."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ui.cli import options

if TYPE_CHECKING:
    from query.nuclei import SegmentReport


def segment(
    encoder: Annotated[str, typer.Option(help="Checkpoint or run of an encoder that segments: patch_contrast.")],
    out: Annotated[Path, typer.Option(help="New folder for tables and pictures.")],
    tiles: Annotated[Path | None, typer.Option(help="Folder of pictures, of any size.")] = None,
    mpp: Annotated[float | None, typer.Option(help="Micrometres per pixel of pictures whose table has none.")] = None,
    masks: Annotated[
        Path | None, typer.Option(help="Folder of drawn nuclei, numbered PNGs of the same names, to measure against.")
    ] = None,
    slide: Annotated[Path | None, typer.Option(help="Slide file; needs --at.")] = None,
    at: Annotated[str | None, typer.Option(help="X,Y of the field's centre in level-0 pixels.")] = None,
    field_um: Annotated[float, typer.Option(min=20, max=1000, help="Side of the slide's field.")] = 250.0,
    manifest: options.Manifest = None,
    cohort_mpp: options.CohortMpp = None,
    device: options.Device = None,
    json_output: options.Json = False,
) -> None:
    """Find nuclei in pictures, or in a field of a slide, and draw them."""
    from encoder.errors import UsageError
    from encoder.registry import load_encoder
    from encoder.segment import check_segmenter
    from query.fields import folder_fields, slide_field
    from query.nuclei import report_document, segment_fields
    from query.output_path import check_output_folder
    from ui.cli.console import say_json
    from ui.cli.options import parse_point

    if (tiles is None) == (slide is None):
        raise UsageError("segment takes its fields from one kind of place.", "Give --tiles, or --slide and --at.")
    check_output_folder(out)
    loaded = load_encoder(encoder, device)
    check_segmenter(loaded)
    if tiles is not None:
        report = segment_fields(loaded, folder_fields(tiles, mpp), out, masks)
    else:
        if at is None or slide is None:
            raise UsageError("A slide's field needs its place.", "Give --at X,Y.")
        x0, y0 = parse_point(at)
        scale = loaded.spec.mpp or 0.5
        report = segment_fields(loaded, [slide_field(slide, manifest, cohort_mpp, x0, y0, field_um, scale)], out, masks)
    if json_output:
        say_json(report_document(report))
    else:
        _print(report, out)
    raise typer.Exit(report.exit_code)


def _print(report: SegmentReport, out: Path) -> None:
    from ui.cli.console import say, say_table

    means = report.means
    headers = ["field", "nuclei", "coverage"] + (["Dice", "AJI", "PQ", "Dice of Otsu"] if means else [])
    rows = []
    for field in report.fields:
        row = [field.name, field.nuclei, f"{field.coverage:.0%}"]
        if field.agreement is not None and field.classical is not None:
            own = field.agreement
            row += [f"{value:.3f}" for value in (own.dice, own.aji, own.panoptic, field.classical.dice)]
        rows.append(row + [""] * (len(headers) - len(row)))
    say_table(headers, rows)
    if means:
        say(
            f"mean Dice {means['dice']:.3f} ({means['mask_dice']:.3f} before cleaning); Otsu's threshold on "
            f"haematoxylin {means['classical_dice']:.3f} ({means['classical_mask_dice']:.3f})"
        )
    for name, reason in report.failed:
        say(f"not segmented: {name}: {reason}")
    say(f"tables and pictures: {out}")
