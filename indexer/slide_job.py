"""What the stages of an indexing run hand to each other about one slide."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from indexer.grid import Grid, tile_key
from indexer.index_request import Target
from indexer.registration import RegisteredSlide
from indexer.slide import Slide
from indexer.work import Scope


class Reads(Protocol):
    """Where the tiles of a job come from."""

    @property
    def path(self) -> str:
        """Name of the way they are read."""

    @property
    def fallbacks(self) -> int:
        """Tiles that OpenSlide had to read although that is another way."""

    def read(self, index: int) -> NDArray[np.uint8]:
        """Read one tile, uint8 [tile_px, tile_px, 3]; safe from several threads."""

    def read_batch(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Read tiles, uint8 [N, tile_px, tile_px, 3]; safe from several threads, and an error if one is bad."""


@dataclass(frozen=True)
class TileList:
    """The tiles of a job, row by row of the grid.

    Attributes:
        ids: int64 [N].
        x0, y0: int32 [N], level-0 pixels.
        extent_px0: side in level-0 pixels.
        tissue: float32 [N], share of tissue.
        indices: int64 [N], what the job's reader calls them.
    """

    ids: NDArray[np.int64]
    x0: NDArray[np.int32]
    y0: NDArray[np.int32]
    extent_px0: int
    tissue: NDArray[np.float32]
    indices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, kept: NDArray[np.bool_]) -> TileList:
        """Only the tiles that the mask bool [N] keeps."""
        return TileList(
            self.ids[kept], self.x0[kept], self.y0[kept], self.extent_px0, self.tissue[kept], self.indices[kept]
        )


@dataclass(frozen=True)
class Provenance:
    """How a job's tiles were made, for its `done` rows; `mpp` is the slide's own, `reasons` is JSON."""

    fingerprint: str
    settings_hash: str
    mpp: float
    mpp_source: str
    true_mpp: float
    upsampling: float
    reasons: str


@dataclass(frozen=True)
class TileFailure:
    """A tile that could not be read or embedded; `position` is its place in the job's list of tiles."""

    position: int
    phase: str
    exception: str
    message: str


@dataclass(frozen=True)
class FailedSlide:
    """A slide that cannot be indexed: at all, on a grid, or on a grid with one encoder.

    Attributes:
        settings_hash: of everything besides the file that could make it succeed.
    """

    slide: RegisteredSlide
    scope: Scope
    phase: str
    exception: str
    message: str
    fingerprint: str
    settings_hash: str


@dataclass(frozen=True)
class StillQuarantined:
    """A slide that failed before, about which nothing has changed."""

    slide: RegisteredSlide
    phase: str
    message: str


@dataclass(frozen=True)
class Checked:
    """The plan stage has said all about a slide.

    Attributes:
        overcome: open `quarantine` rows that the slide as it is now has outlived.
    """

    slide: RegisteredSlide
    overcome: tuple[dict[str, Any], ...] = ()


@dataclass(eq=False)
class SlideJob:
    """One slide on one grid, ready to be read.

    Attributes:
        targets: vectors tables to be filled.
        reader: None once the job is closed, so that rows that wait for their commit hold no file.
        reader_path: how it reads.
        info: new values of the slide's row in `slides`; None where they are known.
        keep_images: whether the tiles are stored as JPEG.
        writes_tiles: whether the tiles table needs the rows too, or needs them with their pictures.
        former: names of the grid's vectors tables that hold rows of this slide.
        stale: those of them that describe the slide as it was before.
        attempt_hash: see `FailedSlide.settings_hash`.
        warnings: what the user should know about the slide.
        opened: to be closed after the last tile; None where no file is open.
        abandoned: set when too many tiles are bad: what is not read yet need not be.
        fallbacks: tiles that OpenSlide read in place of the reader; known once the job is closed.
    """

    slide: RegisteredSlide
    grid: Grid
    targets: tuple[Target, ...]
    tiles: TileList
    reader: Reads | None
    reader_path: str
    provenance: Provenance
    info: dict[str, Any] | None
    keep_images: bool
    writes_tiles: bool
    former: tuple[str, ...]
    stale: tuple[str, ...]
    attempt_hash: str
    warnings: tuple[str, ...]
    opened: Slide | None
    abandoned: threading.Event = field(default_factory=threading.Event)
    fallbacks: int = 0

    @property
    def obsolete(self) -> tuple[str, ...]:
        """Stale tables that nobody asked to fill again."""
        asked = {target.table_name for target in self.targets}
        return tuple(name for name in self.stale if name not in asked)

    def close(self) -> None:
        """Release the slide's file and what reads it."""
        if self.reader is not None:
            self.fallbacks, self.reader = self.reader.fallbacks, None
        if self.opened is not None:
            self.opened.close()
            self.opened = None

    def key(self, position: int) -> str:
        """Text key of a tile."""
        return tile_key(self.slide.slide_id, int(self.tiles.x0[position]), int(self.tiles.y0[position]))


Planned = SlideJob | FailedSlide | StillQuarantined | Checked


def failed_job(job: SlideJob, encoder_id: str | None, phase: str, exception: str, message: str) -> FailedSlide:
    """A job that failed after its planning, as a whole or for one encoder."""
    scope = Scope(job.slide.slide_id, job.grid.grid_id, encoder_id)
    made = job.provenance
    return FailedSlide(job.slide, scope, phase, exception, message, made.fingerprint, job.attempt_hash)
