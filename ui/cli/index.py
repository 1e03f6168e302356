"""Commands that bring slides in: look at them first, index them, try the quarantined ones again."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ui.cli import options

if TYPE_CHECKING:
    from indexer.index_request import IndexReport

EncoderNames = Annotated[
    list[str] | None,
    typer.Option(
        "--encoder",
        help="Checkpoint folder, timm:MODEL[@FILE], random:MODEL[@SEED], colour, or an encoder of the store; "
        "repeat it to fill several tables from one decode.",
    ),
]
Mpp = Annotated[float | None, typer.Option(help="Micrometres per pixel of the grid; the encoder's by default.")]
Tile = Annotated[int | None, typer.Option(help="Side of a tile in pixels; the encoder's by default.")]
Upsampling = Annotated[
    bool, typer.Option("--allow-upsampling", help="Also index slides that need more than 2 x upsampling.")
]
MinTissue = Annotated[float, typer.Option(help="Least share of tissue in a tile.")]
Stride = Annotated[int | None, typer.Option(help="Pixels between tiles; the tile's side by default.")]


def inspect(
    slides: options.Slides,
    manifest: options.Manifest = None,
    cohort_mpp: options.CohortMpp = None,
    mpp: Annotated[float, typer.Option(help="Micrometres per pixel of the grid to count tiles at.")] = 0.5,
    tile: Annotated[int, typer.Option(help="Side of a tile in pixels.")] = 224,
    json_output: options.Json = False,
) -> None:
    """Look at slides before indexing: size, mpp and where it comes from, tissue, what is wrong."""
    from indexer.grid import make_grid
    from indexer.inspect import inspect as inspect_slides
    from indexer.manifest import discover
    from ui.cli.console import say, say_json, say_table

    reports = inspect_slides(discover(slides or [], manifest), cohort_mpp, make_grid(mpp, tile))
    if json_output:
        say_json({"slides": [report.to_dict() for report in reports]})
    else:
        say_table(
            ["slide", "vendor", "width0", "height0", "mpp", "from", "reader", "tissue", "tiles"],
            [
                [
                    r.slide_id,
                    r.vendor,
                    r.width0,
                    r.height0,
                    r.mpp,
                    r.mpp_source,
                    r.reader,
                    r.tissue_share,
                    r.tiles,
                ]
                for r in reports
            ],
        )
        for report in reports:
            for text in (*report.warnings, *([report.problem] if report.problem else [])):
                say(f"{report.slide_id}: {text}")
    if any(report.problem for report in reports):
        raise typer.Exit(3)


def index(
    store: options.Store,
    slides: options.Slides = None,
    encoder: EncoderNames = None,
    manifest: options.Manifest = None,
    mpp: Mpp = None,
    tile: Tile = None,
    stride: Stride = None,
    keep_images: Annotated[bool, typer.Option("--keep-images", help="Keep each tile as JPEG in the store.")] = False,
    cohort_mpp: options.CohortMpp = None,
    allow_upsampling: Upsampling = False,
    min_tissue: MinTissue = 0.5,
    shard: Annotated[str | None, typer.Option(help="i/n: only the i-th of n parts of the slides.")] = None,
    batch: Annotated[int | None, typer.Option(help="Tiles per batch; a number that suits the device.")] = None,
    readers: Annotated[int | None, typer.Option(help="Reading threads; the machine's cores by default.")] = None,
    device: options.Device = None,
    json_output: options.Json = False,
) -> None:
    """Embed every tile of the slides into the store; a repeated command does only what is missing."""
    _index(
        store=store,
        slides=slides,
        encoder=encoder,
        manifest=manifest,
        mpp=mpp,
        tile_px=tile,
        stride_px=stride,
        keep_images=keep_images,
        cohort_mpp=cohort_mpp,
        allow_upsampling=allow_upsampling,
        min_tissue=min_tissue,
        shard=shard,
        batch=batch,
        readers=readers,
        device=device,
        json_output=json_output,
    )


def retry(
    store: options.Store,
    slides: options.Slides = None,
    encoder: EncoderNames = None,
    manifest: options.Manifest = None,
    mpp: Mpp = None,
    tile: Tile = None,
    stride: Stride = None,
    cohort_mpp: options.CohortMpp = None,
    allow_upsampling: Upsampling = False,
    min_tissue: MinTissue = 0.5,
    device: options.Device = None,
    json_output: options.Json = False,
) -> None:
    """Index as `index` does, and try quarantined slides again though nothing about them changed."""
    _index(
        store=store,
        slides=slides,
        encoder=encoder,
        manifest=manifest,
        mpp=mpp,
        tile_px=tile,
        stride_px=stride,
        cohort_mpp=cohort_mpp,
        allow_upsampling=allow_upsampling,
        min_tissue=min_tissue,
        device=device,
        json_output=json_output,
        retry=True,
    )


def _index(
    *,
    store: str,
    slides: list[Path] | None,
    encoder: list[str] | None,
    manifest: Path | None,
    device: str | None,
    json_output: bool,
    shard: str | None = None,
    **request: Any,
) -> None:
    from encoder.errors import StoreError, UsageError
    from indexer.index_request import IndexRequest
    from indexer.manifest import discover
    from indexer.pipeline import index as run_index
    from indexer.store import open_store
    from ui.cli.console import make_reporter, say_json
    from ui.sources import resolve_encoder, store_encoders

    if manifest is not None and not slides:
        raise UsageError("--manifest describes slides, and none are named.", "Name the slides too.")
    entries = discover(slides, manifest) if slides else None
    part = _parse_shard(shard)
    if not encoder:
        try:
            open_store(store, read_only=True)
        except StoreError as error:
            raise UsageError(f"{error.message} A new store needs an encoder.", "Name one with --encoder.") from error
    encoders = [resolve_encoder(name, store, device) for name in encoder or []] or store_encoders(store, device)
    words = " ".join(sys.argv[1:])
    asked = IndexRequest(entries=entries, encoders=encoders, shard=part, command=words, **request)
    report = run_index(store, asked, make_reporter())
    if json_output:
        say_json({**asdict(report), "exit_code": report.exit_code})
    else:
        print_index_report(report)
    if report.exit_code:
        raise typer.Exit(report.exit_code)


def print_index_report(report: IndexReport) -> None:
    """Say what a run did, where its time went, and what is in quarantine and why."""
    from encoder.progress import format_seconds
    from ui.cli.console import say, say_table

    say(
        f"indexed {report.indexed}, already {report.already}, empty {report.empty}, "
        f"quarantined {len(report.quarantined)}; {report.tiles} tiles in {format_seconds(report.seconds)}"
    )
    if report.tiles:
        say_table(
            ["stage", "seconds", "share"],
            [[name, round(stage.seconds, 1), f"{stage.share:.0%}"] for name, stage in report.stages.items()],
        )
        paths = ", ".join(f"{count} by {path}" for path, count in sorted(report.reader_tiles.items()) if count)
        say(f"tiles read: {paths}; limited by: {report.limited_by}")
    for encoder_id, reasons in report.stain_left.items():
        left = "; ".join(f"{count}: {reason}" for reason, count in reasons.items())
        say(f"{encoder_id} took these tiles without stain normalisation: {left}")
    for failure in report.quarantined:
        say(f"quarantined {failure.slide_id} ({failure.phase}): {failure.message}")


def _parse_shard(text: str | None) -> tuple[int, int] | None:
    from encoder.errors import UsageError

    if text is None:
        return None
    left, slash, right = text.partition("/")
    if slash and left.isdigit() and right.isdigit() and 1 <= int(left) <= int(right):
        return int(left), int(right)
    raise UsageError(f"--shard {text} is not i/n with 1 <= i <= n.", "The first of four parts is 1/4.")
