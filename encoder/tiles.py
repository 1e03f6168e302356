"""Where tiles come from: the TileSource protocol, tile folders, and a cache of decoded tiles."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from encoder.errors import TileError, UsageError
from encoder.progress import Reporter
from encoder.tile_table import TileTable, find_table, read_table

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})
_MPP_TOLERANCE = 0.1
_PLAIN_MODES = frozenset({"RGB", "RGBA", "L", "LA", "P", "PA", "CMYK", "YCbCr", "1"})


class TileSource(Protocol):
    """Tiles by number; what is known of each is a list of that length, or None.

    A blank text in a list means unknown for that tile.
    """

    @property
    def tile_px(self) -> int:
        """Side of every tile, in pixels."""

    @property
    def names(self) -> list[str]:
        """A readable name per tile, for messages."""

    @property
    def slide_ids(self) -> list[str] | None:
        """Slide of each tile."""

    @property
    def positions_px0(self) -> NDArray[np.int64] | None:
        """Top left corner x, y of each tile [N, 2] in level-0 pixels."""

    @property
    def extents_px0(self) -> NDArray[np.int64] | None:
        """Side of each tile [N] in level-0 pixels."""

    @property
    def labels(self) -> list[str] | None:
        """Class of each tile."""

    @property
    def groups(self) -> list[str] | None:
        """Patient, or another group that must not be split, of each tile."""

    @property
    def splits(self) -> list[str] | None:
        """Part of a data set, such as `train` and `test`, of each tile."""

    def __len__(self) -> int:
        """Number of tiles."""

    def images(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Read tiles as RGB [B, tile_px, tile_px, 3].

        Raises:
            TileError: some of them cannot be read; names them.
        """


class TileFolder:
    """A folder of pictures with an optional table of what is known about them.

    Pictures lie under `images/` if that exists, else anywhere below the folder. Where `tiles.csv` or
    `labels.csv` exists, its rows are the tiles, in its order; otherwise all pictures in order of name.

    Args:
        path: the folder.
        tile_px: side of the returned tiles; None takes the shorter side of the first picture that opens.
            Pictures of another shape are cropped to their central square and resized.
        decode_threads: pictures decoded at once; None takes one per core, at most 8.

    Attributes:
        native_px: shorter side of the first picture that opens, before any resizing.
        mpps: micrometres per pixel of each picture as stored on disk [N], NaN where unknown, or None.
        site_ids: site of each tile, or None.
        unlisted: number of pictures that the table does not mention; they are not tiles.

    Raises:
        UsageError: the folder is missing or holds no picture, or its table does not fit.
    """

    def __init__(self, path: Path | str, tile_px: int | None = None, decode_threads: int | None = None) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise UsageError(f"Tile folder {self.path} does not exist.", fix="Give a folder of pictures.")
        images = self.path / "images"
        root = images if images.is_dir() else self.path
        pictures = _find_pictures(root)
        table_path = find_table(self.path)
        if table_path is None:
            self._files = pictures
            table = TileTable()
        else:
            table = read_table(table_path)
            self._files = [_locate(name, self.path, images, table_path) for name in table.files]
        if not self._files:
            raise UsageError(
                f"Tile folder {self.path} holds no picture.",
                fix=f"Put {', '.join(sorted(PICTURE_SUFFIXES))} files into it or into its images folder.",
            )
        self.unlisted = len(set(pictures) - set(self._files)) if table_path is not None else 0
        self.names = [file.relative_to(self.path).as_posix() for file in self._files]
        self.labels, self.groups, self.splits = table.labels, table.groups, table.splits
        self.slide_ids, self.site_ids = table.slide_ids, table.site_ids
        self.positions_px0, self.extents_px0, self.mpps = table.positions_px0, table.extents_px0, table.mpps
        self.native_px = self._first_side()
        self.tile_px = self.native_px if tile_px is None else tile_px
        self._broken: dict[int, str] = {}
        self._threads = decode_threads or min(8, os.cpu_count() or 1)
        self._pool: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return len(self._files)

    @property
    def broken(self) -> list[tuple[str, str]]:
        """Name and reason of every picture that could not be read so far."""
        return [(self.names[i], reason) for i, reason in sorted(self._broken.items())]

    def images(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Read tiles as RGB [B, tile_px, tile_px, 3].

        Raises:
            TileError: some pictures are broken; names them.
        """
        tiles = np.empty((len(indices), self.tile_px, self.tile_px, 3), dtype=np.uint8)
        if len(indices) > 1 and self._threads > 1:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="decode")
            read = list(self._pool.map(self._read, (int(i) for i in indices)))
        else:
            read = [self._read(int(i)) for i in indices]
        failed = []
        for slot, (index, tile) in enumerate(zip(indices, read, strict=True)):
            if tile is None:
                failed.append(int(index))
            else:
                tiles[slot] = tile
        if failed:
            listed = "; ".join(f"{self.names[i]}: {self._broken[i]}" for i in failed[:5])
            more = f" and {len(failed) - 5} more" if len(failed) > 5 else ""
            raise TileError(
                f"Cannot read {len(failed)} picture(s) of {self.path}: {listed}{more}.",
                fix="Replace or remove them.",
            )
        return tiles

    def close(self) -> None:
        """End the decoding threads; they start again when needed."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _read(self, index: int) -> NDArray[np.uint8] | None:
        if index in self._broken:
            return None
        try:
            return decode_tile(self._files[index], self.tile_px)
        except Exception as error:  # noqa: BLE001 - a decoder may raise anything on a damaged file
            self._broken[index] = str(error) or type(error).__name__
            return None

    def _first_side(self) -> int:
        for file in self._files:
            try:
                with Image.open(file) as picture:
                    return min(picture.size)
            except (OSError, SyntaxError, ValueError):
                continue
        raise UsageError(
            f"None of the {len(self._files)} pictures of {self.path} can be opened.",
            fix="Check that they are complete picture files.",
        )


class CachedTiles:
    """A source whose decoded tiles stay in memory, as many as a budget allows; for one reading thread.

    Args:
        source: where tiles are read the first time.
        budget_bytes: most memory for kept tiles; those read first are kept.
    """

    def __init__(self, source: TileSource, budget_bytes: int) -> None:
        self._source = source
        self.tile_px, self.names = source.tile_px, source.names
        self.slide_ids, self.labels, self.groups = source.slide_ids, source.labels, source.groups
        self.splits = source.splits
        self.positions_px0, self.extents_px0 = source.positions_px0, source.extents_px0
        capacity = min(len(source), budget_bytes // (3 * self.tile_px**2))
        # The operating system commits the pages of an empty array only as they are written.
        self._kept = np.empty((capacity, self.tile_px, self.tile_px, 3), dtype=np.uint8)
        self._slot = np.full(len(source), -1, dtype=np.int64)
        self._used = 0

    def __len__(self) -> int:
        return len(self._source)

    @property
    def cached(self) -> int:
        """Number of tiles in memory."""
        return self._used

    def images(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Read tiles as RGB [B, tile_px, tile_px, 3], from memory where they are kept.

        Raises:
            TileError: some of them cannot be read; names them.
        """
        slots = self._slot[indices]
        missing = np.unique(np.asarray(indices)[slots < 0])
        if not missing.size:
            return self._kept[slots]
        fresh = self._source.images(missing)
        tiles = np.empty((len(indices), self.tile_px, self.tile_px, 3), dtype=np.uint8)
        held = slots >= 0
        tiles[held] = self._kept[slots[held]]
        tiles[~held] = fresh[np.searchsorted(missing, np.asarray(indices)[~held])]
        room = min(len(missing), len(self._kept) - self._used)
        self._kept[self._used : self._used + room] = fresh[:room]
        self._slot[missing[:room]] = np.arange(self._used, self._used + room)
        self._used += room
        return tiles


class ConcatenatedTiles:
    """Several sources one after the other; see `concat_sources`."""

    def __init__(self, sources: Sequence[TileSource]) -> None:
        sides = sorted({source.tile_px for source in sources})
        if len(sides) != 1:
            raise UsageError(
                f"Tile sources of different sides cannot be joined: {sides} px.",
                fix="Open each with the same tile_px.",
            )
        self._sources = list(sources)
        self._ends = np.cumsum([len(source) for source in sources])
        self.tile_px = sides[0]
        names = [name for source in sources for name in source.names]
        if len(set(names)) < len(names):
            names = [f"{i}/{name}" for i, source in enumerate(sources) for name in source.names]
        self.names = names
        self.slide_ids = _join([(source.slide_ids, len(source)) for source in sources])
        self.labels = _join([(source.labels, len(source)) for source in sources])
        self.groups = _join([(source.groups, len(source)) for source in sources])
        self.splits = _join([(source.splits, len(source)) for source in sources])
        positions = [source.positions_px0 for source in sources if source.positions_px0 is not None]
        extents = [source.extents_px0 for source in sources if source.extents_px0 is not None]
        self.positions_px0 = np.concatenate(positions) if len(positions) == len(sources) else None
        self.extents_px0 = np.concatenate(extents) if len(extents) == len(sources) else None

    def __len__(self) -> int:
        return int(self._ends[-1])

    def images(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Read tiles as RGB [B, tile_px, tile_px, 3].

        Raises:
            TileError: some of them cannot be read; names them.
        """
        indices = np.asarray(indices)
        tiles = np.empty((len(indices), self.tile_px, self.tile_px, 3), dtype=np.uint8)
        owner = np.searchsorted(self._ends, indices, side="right")
        for number in np.unique(owner):
            mine = owner == number
            start = self._ends[number] - len(self._sources[number])
            tiles[mine] = self._sources[number].images(indices[mine] - start)
        return tiles


def concat_sources(sources: Sequence[TileSource]) -> TileSource:
    """Join sources of equal tile side; what only some know is blank for the others.

    Positions and extents are kept only where all sources have them.

    Raises:
        UsageError: there are none, or their tiles differ in side.
    """
    if not sources:
        raise UsageError("No tile source was given.", fix="Give at least one folder of tiles.")
    return sources[0] if len(sources) == 1 else ConcatenatedTiles(sources)


def open_for_training(paths: Sequence[Path | str], tile_px: int, mpp: float | None, reporter: Reporter) -> TileSource:
    """Open tile folders at the side that a training config asks for.

    Args:
        paths: one or more tile folders.
        tile_px: side of the returned tiles; larger pictures are reduced to it.
        mpp: micrometres per pixel that the config states of those tiles, or None.
        reporter: warned where a folder's table says otherwise, and of pictures that a table leaves out.

    Raises:
        UsageError: a folder does not fit, or its pictures are smaller than `tile_px`.
    """
    folders = [TileFolder(path, tile_px) for path in paths]
    for folder in folders:
        if folder.native_px < tile_px:
            raise UsageError(
                f"Tiles of {folder.path} are {folder.native_px} px, smaller than the {tile_px} px "
                "that the config trains on.",
                fix=f"Set tile_px={folder.native_px} or less, or give larger tiles.",
            )
        if folder.unlisted:
            reporter.warn(f"{folder.unlisted} pictures of {folder.path} are not in its table and are left out.")
        if mpp is not None and folder.mpps is not None:
            median = float(np.nanmedian(folder.mpps)) * folder.native_px / tile_px
            if abs(median / mpp - 1) > _MPP_TOLERANCE:
                reporter.warn(
                    f"Tiles of {folder.path} at {tile_px} px have {median:.3g} um/px by its table; the config "
                    f"says {mpp:.3g}, which the encoder will record. Set mpp={median:.3g} if the table is right."
                )
    return concat_sources(folders)


def decode_tile(file: Path, tile_px: int) -> NDArray[np.uint8]:
    """Read one picture as RGB [tile_px, tile_px, 3]: central square, antialiased resize, white behind."""
    with Image.open(file) as picture:
        if picture.mode not in _PLAIN_MODES:
            raise ValueError(f"pixel type {picture.mode} is not 8-bit")
        loaded: Image.Image = picture
        if picture.mode in {"RGBA", "LA", "PA"} or "transparency" in picture.info:
            rgba = picture.convert("RGBA")
            loaded = Image.new("RGBA", rgba.size, "white")
            loaded.alpha_composite(rgba)
        rgb = loaded.convert("RGB")
    side = min(rgb.size)
    if rgb.size != (side, side):
        left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
        rgb = rgb.crop((left, top, left + side, top + side))
    if side != tile_px:
        rgb = rgb.resize((tile_px, tile_px), Image.Resampling.BILINEAR)
    return np.asarray(rgb)


def _find_pictures(root: Path) -> list[Path]:
    found = (file for file in root.rglob("*") if file.suffix.lower() in PICTURE_SUFFIXES)
    return sorted(file for file in found if not file.name.startswith(".") and file.is_file())


def _locate(name: str, folder: Path, images: Path, table: Path) -> Path:
    for candidate in (images / name, folder / name):
        if candidate.is_file():
            return candidate
    raise UsageError(
        f"{table} names the picture {name!r}, which is neither in {folder} nor in its images folder.",
        fix="Correct the file column or add the picture.",
    )


def _join(lists: Sequence[tuple[list[str] | None, int]]) -> list[str] | None:
    if all(values is None for values, _ in lists):
        return None
    return [text for values, length in lists for text in (values if values is not None else [""] * length)]
