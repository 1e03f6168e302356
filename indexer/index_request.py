"""What an indexing run is asked to do, the targets that follow from it, and what it reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from encoder.embed import TileEncoder
from encoder.errors import EncoderError, UsageError
from indexer.grid import Grid, make_grid
from indexer.manifest import SlideEntry
from indexer.schema import vectors_table_name

MAX_RESIZE = 2.0


@dataclass(frozen=True)
class IndexRequest:
    """What to index, with what, and how.

    Attributes:
        encoders: that embed the tiles; those with the same grid are fed from one decode.
        entries: slides; None for all that the store knows, from kept images where they exist.
        mpp: um per pixel of the tiles, in place of the encoder's own.
        tile_px: side of the tiles, in place of the encoder's own.
        stride_px: from tile to tile; None for the tile side.
        min_tissue: least share of tissue in a tile.
        allow_upsampling: whether slides more than twice too coarse are read too.
        keep_images: whether the tiles themselves are stored, as JPEG.
        readers: threads that read tiles; None for one per core.
        batch: tiles per embedding call; None for a number that suits the device.
        cohort_mpp: um per pixel of slides that do not say theirs.
        retry: whether to try quarantined slides again although nothing about them changed.
        shard: `(i, n)` with 1 <= i <= n: only the i-th of n parts of the slides.
        command: the words of the user, for the record.
    """

    encoders: Sequence[TileEncoder]
    entries: Sequence[SlideEntry] | None = None
    mpp: float | None = None
    tile_px: int | None = None
    stride_px: int | None = None
    min_tissue: float = 0.5
    allow_upsampling: bool = False
    keep_images: bool = False
    readers: int | None = None
    batch: int | None = None
    cohort_mpp: float | None = None
    retry: bool = False
    shard: tuple[int, int] | None = None
    command: str = "index"


@dataclass(frozen=True)
class Target:
    """One vectors table to be filled.

    Attributes:
        ratio: extent of the grid's tiles over the extent that the encoder was made for.
    """

    encoder: TileEncoder
    grid: Grid
    ratio: float

    @property
    def encoder_id(self) -> str:
        """Id of the encoder."""
        return self.encoder.spec.encoder_id

    @property
    def table_name(self) -> str:
        """Name of the vectors table."""
        return vectors_table_name(self.encoder_id, self.grid.grid_id)


@dataclass(frozen=True)
class StageTime:
    """How long a stage was busy.

    Attributes:
        seconds: summed over its threads.
        share: of the run's time that the stage's threads were busy, 0..1.
    """

    seconds: float
    share: float


@dataclass(frozen=True)
class SlideFailure:
    """A slide that the run could not index, now or still."""

    slide_id: str
    phase: str
    message: str


@dataclass(frozen=True)
class IndexReport:
    """What an indexing run did.

    Attributes:
        slides: that were asked for.
        indexed: slides that gained vectors.
        already: slides of which everything asked was there before.
        empty: slides that were found to hold no tile.
        quarantined: slides that failed, now or still.
        tiles: that were embedded; with several encoders each tile counts once.
        bad_tiles: that could not be read or embedded, of slides that were indexed.
        stages: `plan`, `read`, `embed`, `write`.
        limited_by: the stage that was busiest; None where nothing was read.
        reader_tiles: tiles by reader path.
        stain_left: for each encoder that normalises stains, the tiles that it took as they are, by reason.
    """

    run_id: str
    slides: int
    indexed: int
    already: int
    empty: int
    quarantined: tuple[SlideFailure, ...]
    tiles: int
    bad_tiles: int
    seconds: float
    stages: dict[str, StageTime]
    limited_by: str | None
    reader_tiles: dict[str, int] = field(default_factory=dict)
    stain_left: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 where every asked slide is indexed or empty, 3 where some are quarantined."""
        return 3 if self.quarantined else 0


def make_targets(request: IndexRequest) -> list[Target]:
    """Settle the grid of each encoder.

    Raises:
        UsageError: a grid's scale is unknown, a number is impossible, or nothing is asked.
        EncoderError: a grid's tiles are more than twice, or less than half, what an encoder was made for.
    """
    _check_numbers(request)
    targets = [_target(encoder, request) for encoder in request.encoders]
    names = [target.table_name for target in targets]
    if len(set(names)) != len(names):
        raise UsageError("The same encoder is named twice.", fix="Name each encoder once.")
    return targets


def describe(request: IndexRequest, targets: Sequence[Target]) -> dict[str, Any]:
    """The request as the `runs` table keeps it."""
    return {
        "slides": None if request.entries is None else len(request.entries),
        "tables": [target.table_name for target in targets],
        "encoders": [target.encoder.spec.name for target in targets],
        "keep_images": request.keep_images,
        "readers": request.readers,
        "batch": request.batch,
        "cohort_mpp": request.cohort_mpp,
        "retry": request.retry,
    }


def _target(encoder: TileEncoder, request: IndexRequest) -> Target:
    spec = encoder.spec
    mpp = request.mpp if request.mpp is not None else spec.mpp
    if mpp is None:
        raise UsageError(
            f"The encoder {spec.name} was made for no particular scale.",
            fix="Say the tiles' um per pixel with --mpp, such as --mpp 0.5.",
        )
    grid = make_grid(
        mpp,
        request.tile_px or spec.tile_px,
        request.stride_px,
        min_tissue=request.min_tissue,
        allow_upsampling=request.allow_upsampling,
    )
    own_extent = spec.tile_px * (spec.mpp if spec.mpp is not None else grid.mpp)
    ratio = grid.tile_px * grid.mpp / own_extent
    if not 1 / MAX_RESIZE - 1e-6 <= ratio <= MAX_RESIZE + 1e-6:
        raise EncoderError(
            f"The encoder {spec.name} was made for tiles of {own_extent:g} um, "
            f"those asked for are {grid.tile_px * grid.mpp:g} um wide ({grid.tile_px} px at {grid.mpp:g} um/px): "
            f"more than a factor of {MAX_RESIZE:g} apart.",
            fix="Choose --mpp and --tile nearer to the encoder's own.",
        )
    return Target(encoder, grid, ratio)


def _check_numbers(request: IndexRequest) -> None:
    if not request.encoders:
        raise UsageError("No encoder is named.", fix="Give --encoder.")
    given = {"--tile": request.tile_px, "--stride": request.stride_px, "--mpp": request.mpp}
    given |= {"--readers": request.readers, "--batch": request.batch, "--cohort-mpp": request.cohort_mpp}
    for option, value in given.items():
        if value is not None and not value > 0:
            raise UsageError(f"{option} is {value}; it must be above 0.")
    if request.shard is not None and not 1 <= request.shard[0] <= request.shard[1]:
        raise UsageError(f"--shard {request.shard[0]}/{request.shard[1]}: the part must lie between 1 and the number.")
