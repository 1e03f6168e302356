"""From what a person names on the command line to tiles for training and encoders for indexing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from encoder.errors import EncoderError, StoreError, UsageError

if TYPE_CHECKING:
    from encoder.config import TrainConfig
    from encoder.embed import TileEncoder
    from encoder.progress import Reporter
    from encoder.tiles import TileSource


def training_source(
    settings: TrainConfig,
    *,
    tiles: Sequence[Path],
    slides: Sequence[Path],
    store: str | None,
    manifest: Path | None,
    cohort_mpp: float | None,
    max_tiles: int,
    reporter: Reporter,
) -> TileSource:
    """Open tile folders, slides or the kept images of a store as one source of training tiles.

    Raises:
        UsageError: nothing usable was found there.
    """
    tile_px = settings.tile_px
    if tiles:
        from encoder.tiles import open_for_training

        return open_for_training(tiles, tile_px, settings.mpp, reporter)
    if store is not None:
        from indexer.store import open_store
        from indexer.tile_source import StoreTileSource

        return StoreTileSource(open_store(store, read_only=True), tile_px=tile_px)
    if settings.mpp is None:
        raise UsageError("the config gives no mpp, so tiles cannot be cut from slides.", "Add mpp=0.5, say.")
    from indexer.grid import make_grid
    from indexer.manifest import discover
    from indexer.tile_source import SlideTileSource

    source = SlideTileSource(
        discover(slides, manifest),
        make_grid(settings.mpp, tile_px),
        reporter,
        max_tiles=max_tiles,
        seed=settings.seed,
        cohort_mpp=cohort_mpp,
    )
    for failure in source.failures:
        reporter.warn(f"left out: {failure}")
    return source


def resolve_encoder(name: str, store: str | None, device: str | None) -> TileEncoder:
    """Load an encoder by id or name from the store where it holds it, else by the registry's forms."""
    from encoder.registry import load_encoder

    if store is not None:
        found = _encoder_of_store(name, store, device)
        if found is not None:
            return found
    return load_encoder(name, device)


def store_encoders(store: str, device: str | None) -> list[TileEncoder]:
    """Load the encoder that a store implies: the one it holds.

    Raises:
        UsageError: it holds none, or several.
    """
    from encoder.checkpoint import encoder_from_files
    from indexer.store import open_store

    opened = open_store(store, read_only=True)
    ids = opened.encoders().column("encoder_id").to_pylist()
    if not ids:
        raise UsageError(f"the store '{store}' holds no encoder.", "Name one with --encoder.")
    if len(ids) > 1:
        raise UsageError(f"the store '{store}' holds several encoders.", f"Choose with --encoder: {', '.join(ids)}.")
    return [encoder_from_files(opened.load_encoder_files(ids[0]), device)]


def _encoder_of_store(name: str, store: str, device: str | None) -> TileEncoder | None:
    from encoder.checkpoint import encoder_from_files
    from indexer.store import open_store

    try:
        opened = open_store(store, read_only=True)
    except StoreError:
        return None  # `index` is about to create it
    rows = opened.encoders().select(["encoder_id", "name"]).to_pylist()
    ids = [row["encoder_id"] for row in rows if row["encoder_id"] == name]
    if not ids and not Path(name).exists():
        ids = [row["encoder_id"] for row in rows if row["name"] == name]
    if len(ids) > 1:
        raise EncoderError(f"'{name}' names {len(ids)} encoders of the store.", f"Use an id: {', '.join(ids)}.")
    return encoder_from_files(opened.load_encoder_files(ids[0]), device) if ids else None
