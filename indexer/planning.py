"""The plan stage: from a registered slide to jobs that hold its tiles, or to the reason why there are none."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from encoder.errors import HistoSeekError, SlideError
from indexer import schema
from indexer.grid import plan_tiles, tile_id
from indexer.index_request import IndexRequest, Target
from indexer.kept_images import KeptImages, kept_tiles
from indexer.pixels import TileReader
from indexer.registration import RegisteredSlide
from indexer.slide import Slide, open_slide
from indexer.slide_files import fingerprint
from indexer.slide_job import Checked, FailedSlide, Planned, Provenance, SlideJob, StillQuarantined, TileList
from indexer.store import Store
from indexer.work import Scope, WorkBook, settings_hash

_OVERVIEW_QUALITY = 85


def plan_slide(
    slide: RegisteredSlide, groups: Sequence[Sequence[Target]], book: WorkBook, store: Store, request: IndexRequest
) -> Iterator[Planned]:
    """Find what a slide still needs, and open and plan it once per grid that needs it.

    Args:
        groups: targets by grid.
        book: finished work and open failures.
        store: for the tiles that are there already.
        request: what was asked.
    """
    print_, error = _fingerprint(slide, request)
    is_well = True
    for group in groups:
        pending = [target for target in group if not book.is_done(target, slide, print_, request.keep_images)]
        is_well = is_well and not pending
        ready = []
        for target in pending:
            before = book.blocking(target, slide, print_)
            if before is None:
                ready.append(target)
            else:
                yield StillQuarantined(slide, before["phase"], before["message"])
        if not ready:
            continue
        planned = (
            _failed(slide, "open", error, print_, book) if error else _plan(slide, print_, ready, book, store, request)
        )
        yield planned
        if isinstance(planned, FailedSlide) and planned.scope.grid_id is None:
            break
    asked = [target for group in groups for target in group]
    yield Checked(slide, tuple(book.overcome(asked, slide, print_)) if is_well else ())


def _plan(
    slide: RegisteredSlide,
    print_: str,
    targets: Sequence[Target],
    book: WorkBook,
    store: Store,
    request: IndexRequest,
) -> SlideJob | FailedSlide:
    grid = targets[0].grid
    before = book.done_on_grid(grid, slide)
    valid = book.valid_on_grid(grid, slide, print_)
    has_images = any(row["images"] for row in valid)
    keep_images = request.keep_images or any(row["images"] for row in before)
    reads_again = request.retry and slide.entry.path.exists() and book.has_unread_tiles(grid, slide.slide_id)
    writes_tiles = not valid or keep_images != has_images or reads_again
    common: dict[str, Any] = {
        "slide": slide,
        "grid": grid,
        "targets": tuple(targets),
        "keep_images": keep_images,
        "writes_tiles": writes_tiles,
        "former": tuple(row["table_name"] for row in before),
        "stale": tuple(row["table_name"] for row in before if row not in valid),
        "attempt_hash": book.attempt_hash(slide, grid),
    }
    if request.entries is None and has_images and not writes_tiles:
        tiles = kept_tiles(store, grid.grid_id, slide.slide_no)
        made = next(row for row in valid if row["images"])
        return SlideJob(
            **common,
            tiles=tiles,
            reader=KeptImages(store, grid.grid_id, tiles, slide.slide_id),
            reader_path=KeptImages.path,
            provenance=Provenance(**{name: made[name] for name in Provenance.__dataclass_fields__}),
            info=None,
            warnings=(),
            opened=None,
        )
    # Where tiles stay as they are, no vector may belong to another one.
    stored = None if writes_tiles else store.slide_tile_ids(grid.grid_id, slide.slide_no)
    opened: Slide | None = None
    phase = "open"
    try:
        opened = open_slide(slide.entry, request.cohort_mpp)
        info = _info(opened, slide, print_)
        phase = "plan"
        plan = plan_tiles(opened, grid, slide.entry.mask)
        ids = np.asarray(tile_id(slide.slide_no, plan.rows, plan.cols))
        extent_px0, indices = plan.extent_px0, np.arange(len(ids))
        tiles = TileList(ids, plan.x0, plan.y0, extent_px0, plan.tissue, indices)
        if stored is not None:
            tiles = tiles.select(np.isin(ids, stored))
        reader = TileReader(opened, plan)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one slide must not stop the cohort
        if opened is not None:
            opened.close()
        return _failed(slide, phase, error, print_, book, None if phase == "open" else targets[0])
    reasons = json.dumps(plan.reasons, sort_keys=True)
    return SlideJob(
        **common,
        tiles=tiles,
        reader=reader,
        reader_path=reader.path,
        provenance=Provenance(
            fingerprint=print_,
            settings_hash=settings_hash(grid, slide.entry),
            mpp=opened.info.mpp,
            mpp_source=opened.info.mpp_source,
            true_mpp=plan.true_mpp,
            upsampling=plan.upsampling,
            reasons=reasons,
        ),
        info=info,
        warnings=tuple(plan.warnings),
        opened=opened,
    )


def _info(opened: Slide, slide: RegisteredSlide, print_: str) -> dict[str, Any] | None:
    """The slide's row as it should be; None where it already is."""
    found = opened.info
    if (slide.fingerprint, slide.mpp, slide.mpp_source) == (print_, found.mpp, found.mpp_source):
        return None
    picture = io.BytesIO()
    Image.fromarray(opened.thumbnail(schema.OVERVIEW_PX)).save(picture, "JPEG", quality=_OVERVIEW_QUALITY)
    return {
        "slide_id": slide.slide_id,
        "fingerprint": print_,
        "vendor": found.vendor,
        "width0": found.width0,
        "height0": found.height0,
        "mpp": found.mpp,
        "mpp_source": found.mpp_source,
        "objective": found.objective,
        "thumbnail": picture.getvalue(),
    }


def _fingerprint(slide: RegisteredSlide, request: IndexRequest) -> tuple[str, Exception | None]:
    """Fingerprint of the slide's file, and what is wrong where it cannot be read."""
    path = slide.entry.path
    if request.entries is None and not path.exists() and slide.fingerprint is not None:
        return slide.fingerprint, None  # kept images may do without the file
    try:
        return fingerprint(path), None
    except OSError as error:
        return "", SlideError(
            f"{path} cannot be read: {error.strerror or error}.", "Check the file and its permissions."
        )


def _failed(
    slide: RegisteredSlide,
    phase: str,
    error: Exception,
    print_: str,
    book: WorkBook,
    target: Target | None = None,
) -> FailedSlide:
    grid = None if target is None else target.grid
    text = " ".join(str(error).split())
    message = text if isinstance(error, HistoSeekError) else f"{slide.entry.path}: {type(error).__name__}: {text}"
    scope = Scope(slide.slide_id, None if grid is None else grid.grid_id)
    return FailedSlide(slide, scope, phase, type(error).__name__, message, print_, book.attempt_hash(slide, grid))
