"""Reads the next batches in a thread while the current one is computed."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encoder.errors import TileError
from encoder.sampler import BatchSampler
from encoder.tiles import TileSource

_AHEAD = 3


@dataclass(frozen=True)
class ReadBatch:
    """Tiles of one step, still on the CPU.

    Attributes:
        step: the step that they are for, from 0.
        indices: their numbers in the source [B].
        tiles: uint8 [B, tile_px, tile_px, 3].
    """

    step: int
    indices: NDArray[np.int64]
    tiles: Tensor


class GoodTiles:
    """Reads tiles and puts in the place of a broken one the next good one of the source.

    The replacement depends on the tiles alone, not on when one was found broken, so a resumed run reads
    what an uninterrupted one would.

    Attributes:
        broken: numbers of the tiles found broken, with the reason.
    """

    def __init__(self, source: TileSource) -> None:
        self._source = source
        self.broken: dict[int, str] = {}

    def read(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Read tiles; returns the numbers really read and their pixels [B, tile_px, tile_px, 3].

        Raises:
            TileError: more than half of the source's tiles are broken.
        """
        wanted = np.array([self._good_from(int(i)) for i in indices]) if self.broken else indices
        try:
            return wanted, self._source.images(wanted)
        except TileError:
            # The message may name several; reading one by one finds out which.
            wanted = np.array([self._good_from(int(i), check=True) for i in wanted])
            return wanted, self._source.images(wanted)

    def _good_from(self, index: int, check: bool = False) -> int:
        for _ in range(len(self._source)):
            if index not in self.broken:
                if not check:
                    return index
                try:
                    self._source.images(np.array([index]))
                    return index
                except TileError as error:
                    self.broken[index] = error.message
                    self._refuse_too_many(error)
            # What stands in is checked too: it may never have been read before.
            index, check = (index + 1) % len(self._source), True
        raise TileError("No tile can be read.", fix="Check the tiles.")

    def _refuse_too_many(self, last: TileError) -> None:
        if 2 * len(self.broken) > len(self._source):
            raise TileError(
                f"More than half of the {len(self._source)} tiles cannot be read; the last: {last.message}",
                fix="Check that the folder was copied completely.",
            ) from last


class BatchLoader:
    """Reads batches ahead, in order; a context manager that ends its thread.

    Args:
        tiles: where tiles are read; used by the loader's thread only.
        sampler: which tiles a step takes.
        first_step: step of the first batch, from 0.
        last_step: step after the last batch.
        share: which of the tiles of a step are read here.
        pin: whether to place tiles in memory that a GPU copies from directly.
    """

    def __init__(
        self, tiles: GoodTiles, sampler: BatchSampler, first_step: int, last_step: int, share: slice, pin: bool
    ) -> None:
        self._tiles, self._sampler, self._share, self._pin = tiles, sampler, share, pin
        self._queue: queue.Queue[ReadBatch | BaseException] = queue.Queue(_AHEAD)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(first_step, last_step), name="tile-loader", daemon=True)

    def __enter__(self) -> BatchLoader:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def next(self) -> ReadBatch:
        """The next batch; what the reading thread raised is raised here."""
        got = self._queue.get()
        if isinstance(got, BaseException):
            raise got
        return got

    def _run(self, first_step: int, last_step: int) -> None:
        try:
            for step in range(first_step, last_step):
                indices, pixels = self._tiles.read(self._sampler.indices(step)[self._share])
                tiles = torch.from_numpy(pixels)
                if not self._put(ReadBatch(step, indices, tiles.pin_memory() if self._pin else tiles)):
                    return
        except BaseException as error:  # noqa: BLE001 - handed to the thread that asks for the batch
            self._put(error)

    def _put(self, item: ReadBatch | BaseException) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
