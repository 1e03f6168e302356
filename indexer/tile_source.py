"""Tiles for training, straight from slides or from the images that a store keeps."""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from encoder.errors import HistoSeekError, TileError, UsageError
from encoder.progress import Reporter, SilentReporter
from indexer.grid import Grid, TilePlan, plan_tiles, tile_key
from indexer.manifest import SlideEntry
from indexer.pixels import ReaderPath, TileReader
from indexer.schema import tiles_table_name
from indexer.slide import Slide, open_slide

if TYPE_CHECKING:
    from indexer.store import Store

_OPEN_SLIDES = 16
_CHUNK = 32


@dataclass(frozen=True)
class _PlannedSlide:
    entry: SlideEntry
    plan: TilePlan
    path: ReaderPath


class SlideTileSource:
    """Tiles with tissue of many slides, at random access.

    Where the tiles fit into `budget_bytes` they are read once, slide by slide, and kept; else each
    is read when it is asked for, and a few slides are open at a time.

    Args:
        entries: slides; one that cannot be used is left out and listed in `failures`.
        grid: scale and side of the tiles.
        reporter: hears of the planning and the reading.
        max_tiles: most tiles; each slide gives its equal share, drawn at random.
        seed: of that draw.
        cohort_mpp: um per pixel to assume where neither the manifest nor the file gives one.
        budget_bytes: most memory for decoded tiles.

    Attributes:
        tile_px: side of every tile.
        names: key of each tile.
        slide_ids: slide of each tile.
        groups: patient of each tile; the slide where the patient is unknown.
        positions_px0: int64 [N, 2], level-0 pixels of each upper left corner.
        extents_px0: int64 [N], side of each tile in level-0 pixels.
        failures: why slides, and single tiles of good slides, were left out.
        in_memory: all tiles are decoded.

    Raises:
        UsageError: no slide has a tile.
    """

    labels: list[str] | None = None
    splits: list[str] | None = None

    def __init__(
        self,
        entries: Sequence[SlideEntry],
        grid: Grid,
        reporter: Reporter | None = None,
        max_tiles: int | None = None,
        seed: int = 0,
        *,
        cohort_mpp: float | None = None,
        budget_bytes: int = 2 << 30,
    ) -> None:
        self.tile_px = grid.tile_px
        self.failures: list[str] = []
        self._cohort_mpp = cohort_mpp
        self._open: OrderedDict[int, tuple[Slide, TileReader]] = OrderedDict()
        self._pool: ThreadPoolExecutor | None = None
        self._tiles: NDArray[np.uint8] | None = None
        reporter = reporter or SilentReporter()
        self._slides = self._planned(entries, grid, reporter)
        counts = np.array([len(slide.plan) for slide in self._slides], dtype=np.int64)
        if not counts.sum():
            raise UsageError(
                f"None of {len(entries)} slides has a tile on the grid {grid.grid_id}"
                + (f" (the first: {self.failures[0]})" if self.failures else "")
                + ".",
                "Look at them with `histoseek inspect`.",
            )
        rng = np.random.default_rng(seed)
        quotas = _equal_shares(counts, int(counts.sum()) if max_tiles is None else max_tiles)
        chosen = [np.sort(rng.choice(count, quota, replace=False)) for count, quota in zip(counts, quotas, strict=True)]
        self._slide_of = np.repeat(np.arange(len(self._slides)), quotas)
        self._index_of = np.concatenate(chosen).astype(np.int64)
        if len(self._index_of) * self.tile_px**2 * 3 <= budget_bytes:
            self._read_all(reporter)
        self._describe()

    @property
    def in_memory(self) -> bool:
        """Whether all tiles are decoded."""
        return self._tiles is not None

    def __len__(self) -> int:
        return len(self._index_of)

    def images(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Read tiles as RGB uint8 [B, tile_px, tile_px, 3].

        Raises:
            TileError: some of them cannot be read; names them.
        """
        indices = np.asarray(indices, dtype=np.int64)
        if self._tiles is not None:
            return self._tiles[indices]
        tiles = np.empty((len(indices), self.tile_px, self.tile_px, 3), dtype=np.uint8)
        failed: list[str] = []
        for number in np.unique(self._slide_of[indices]):
            places = np.flatnonzero(self._slide_of[indices] == number)
            places = places[np.argsort(self._index_of[indices[places]], kind="stable")]
            try:
                reader = self._reader(int(number))
            except HistoSeekError as error:
                failed.append(str(error))
                continue
            failed += self._read_into(tiles, places, reader, self._index_of[indices[places]])
        if failed:
            more = f" and {len(failed) - 5} more" if len(failed) > 5 else ""
            raise TileError(f"{len(failed)} tiles cannot be read: {'; '.join(failed[:5])}{more}")
        return tiles

    def close(self) -> None:
        """Close the slides and end the reading threads; both start again when needed."""
        while self._open:
            self._open.popitem()[1][0].close()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _planned(self, entries: Sequence[SlideEntry], grid: Grid, reporter: Reporter) -> list[_PlannedSlide]:
        planned = []
        reporter.start("plan", len(entries), "slides")
        for entry in entries:
            try:
                with open_slide(entry, self._cohort_mpp) as slide:
                    plan = plan_tiles(slide, grid, entry.mask)
                    path = TileReader(slide, plan).path
            except Exception as error:  # noqa: BLE001 - whatever is wrong with one slide must not stop the others
                self.failures.append(f"{entry.slide_id}: {error}")
            else:
                if len(plan):
                    planned.append(_PlannedSlide(entry, plan, path))
                else:
                    why = ", ".join(f"{cause} {n}" for cause, n in plan.reasons.items())
                    self.failures.append(f"{entry.slide_id}: no tile has enough tissue ({why})")
            reporter.advance(1, entry.slide_id)
        reporter.finish()
        return planned

    def _read_all(self, reporter: Reporter) -> None:
        """Decode every tile, slide by slide; tiles that cannot be read are dropped."""
        tiles = np.empty((len(self), self.tile_px, self.tile_px, 3), dtype=np.uint8)
        good = np.ones(len(self), dtype=np.bool_)
        reporter.start("read", len(self), "tiles")
        for number, planned in enumerate(self._slides):
            places = np.flatnonzero(self._slide_of == number)
            for start in range(0, len(places), _CHUNK * 16):
                part = places[start : start + _CHUNK * 16]
                try:
                    failed = self._read_into(tiles, part, self._reader(number), self._index_of[part], good)
                except HistoSeekError as error:  # the file vanished since it was planned
                    good[places] = False
                    failed = [f"{planned.entry.slide_id}: {error}"]
                self.failures += failed
                reporter.advance(len(part), planned.entry.slide_id)
            self.close()
        reporter.finish()
        if not good.any():
            raise UsageError(f"No tile can be read ({self.failures[-1]}).", "Look at the slides' files.")
        self._tiles = tiles if good.all() else tiles[good]
        self._slide_of, self._index_of = self._slide_of[good], self._index_of[good]

    def _read_into(
        self,
        tiles: NDArray[np.uint8],
        places: NDArray[np.int64],
        reader: TileReader,
        numbers: NDArray[np.int64],
        good: NDArray[np.bool_] | None = None,
    ) -> list[str]:
        """Read tiles `numbers` of one slide to `places`; give what failed and mark it in `good`."""
        failed: list[str] = []

        def read(chunk: range) -> None:
            for step in chunk:
                try:
                    tiles[places[step]] = reader.read(int(numbers[step]))
                except TileError as error:
                    failed.append(error.message)
                    if good is not None:
                        good[places[step]] = False

        chunks = [range(start, min(start + _CHUNK, len(places))) for start in range(0, len(places), _CHUNK)]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="tiles")
        list(self._pool.map(read, chunks))
        return failed

    def _reader(self, number: int) -> TileReader:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number][1]
        while len(self._open) >= _OPEN_SLIDES:
            self._open.popitem(last=False)[1][0].close()
        planned = self._slides[number]
        slide = open_slide(planned.entry, self._cohort_mpp)
        self._open[number] = (slide, TileReader(slide, planned.plan, planned.path))
        return self._open[number][1]

    def _describe(self) -> None:
        plans = [slide.plan for slide in self._slides]
        places = list(zip(self._slide_of.tolist(), self._index_of.tolist(), strict=True))
        self.names = [plans[number].key(index) for number, index in places]
        self.slide_ids = [self._slides[number].entry.slide_id for number, _ in places]
        self.groups = [
            self._slides[number].entry.patient_id or self._slides[number].entry.slide_id for number, _ in places
        ]
        self.positions_px0 = np.array([(plans[n].x0[i], plans[n].y0[i]) for n, i in places], dtype=np.int64)
        self.extents_px0 = np.array([plans[n].extent_px0 for n, _ in places], dtype=np.int64)


class StoreTileSource:
    """The tile images that a store keeps (`index --keep-images`).

    Args:
        store: open store.
        grid_id: which grid; without it the one grid that has images, or of several the one with `tile_px`.
        tile_px: side of the returned tiles; without it the grid's own.

    Raises:
        UsageError: the store keeps no images, or several grids fit.
    """

    labels: list[str] | None = None
    splits: list[str] | None = None

    def __init__(self, store: Store, grid_id: str | None = None, tile_px: int | None = None) -> None:
        self._store = store
        self._grid_id = grid_id or _grid_with_images(store, tile_px)
        own = {row["grid_id"]: row["tile_px"] for row in store.grids().to_pylist()}
        if self._grid_id not in own:
            raise UsageError(f"The store has no grid {self._grid_id}.", f"It has: {', '.join(own) or 'none'}.")
        self.tile_px = tile_px or own[self._grid_id]
        columns = ["tile_id", "slide_no", "x0", "y0", "extent_px0"]
        rows = store.read(tiles_table_name(self._grid_id), columns, "image IS NOT NULL").sort_by("tile_id")
        if not rows.num_rows:
            raise UsageError(f"The store keeps no tile images of the grid {self._grid_id}.", _KEEP)
        slides = {row["slide_no"]: row for row in store.slides().to_pylist()}
        owners = [slides[number] for number in rows["slide_no"].to_pylist()]
        self._ids = rows["tile_id"].to_numpy()
        self.positions_px0 = np.stack([rows["x0"].to_numpy(), rows["y0"].to_numpy()], axis=1).astype(np.int64)
        self.extents_px0 = rows["extent_px0"].to_numpy().astype(np.int64)
        self.slide_ids = [str(owner["slide_id"]) for owner in owners]
        self.groups = [str(owner["patient_id"] or owner["slide_id"]) for owner in owners]
        self.names = [
            tile_key(slide_id, int(x0), int(y0))
            for slide_id, (x0, y0) in zip(self.slide_ids, self.positions_px0, strict=True)
        ]

    def __len__(self) -> int:
        return len(self._ids)

    def images(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Read tiles as RGB uint8 [B, tile_px, tile_px, 3].

        Raises:
            TileError: some of them are no longer in the store; names them.
        """
        ids = [int(self._ids[index]) for index in indices]
        pictures = self._store.tile_images(self._grid_id, ids)
        missing = [self.names[index] for index, tile in zip(indices, ids, strict=True) if tile not in pictures]
        if missing:
            raise TileError(f"{len(missing)} tiles are no longer in the store: {', '.join(missing[:5])}.", _KEEP)
        return np.stack([self._decode(pictures[tile]) for tile in ids])

    def _decode(self, picture: bytes) -> NDArray[np.uint8]:
        with Image.open(io.BytesIO(picture)) as image:
            rgb = image.convert("RGB")
        if rgb.size != (self.tile_px, self.tile_px):
            rgb = rgb.resize((self.tile_px, self.tile_px), Image.Resampling.HAMMING)
        return np.asarray(rgb)


_KEEP = "Index with --keep-images, or train from the slides."


def _grid_with_images(store: Store, tile_px: int | None) -> str:
    tables = set(store.tables())
    found = {
        row["grid_id"]: row["tile_px"]
        for row in store.grids().to_pylist()
        if tiles_table_name(row["grid_id"]) in tables
        and store.count(tiles_table_name(row["grid_id"]), "image IS NOT NULL")
    }
    if not found:
        raise UsageError(f"The store {store.uri} keeps no tile images.", _KEEP)
    fitting = [grid_id for grid_id, side in found.items() if side == tile_px] or list(found)
    if len(fitting) > 1:
        raise UsageError(f"The store keeps images of {len(fitting)} grids: {', '.join(fitting)}.", "Name one.")
    return fitting[0]


def _equal_shares(counts: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Share `total` over slides equally; what a slide does not have goes to the others."""
    shares = np.zeros_like(counts)
    left = min(total, int(counts.sum()))
    while left > 0:
        hungry = np.flatnonzero(shares < counts)
        each, rest = divmod(left, len(hungry))
        gift = np.full(len(hungry), each)
        gift[:rest] += 1
        gift = np.minimum(gift, (counts - shares)[hungry])
        shares[hungry] += gift
        left -= int(gift.sum())
    return shares
