"""What remains to be done: which slides lack which vectors, and which failures are not worth another try."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from indexer.grid import Grid
from indexer.index_request import Target
from indexer.manifest import SlideEntry
from indexer.registration import RegisteredSlide
from indexer.schema import split_vectors_name
from indexer.store import Store


@dataclass(frozen=True)
class Scope:
    """What a failure concerns: a slide, a slide on a grid, or a slide on a grid with one encoder."""

    slide_id: str
    grid_id: str | None = None
    encoder_id: str | None = None

    def covers(self, grid_id: str, encoder_id: str) -> bool:
        """Whether a failure of this scope stands in the way of one vectors table."""
        return self.grid_id in (None, grid_id) and self.encoder_id in (None, encoder_id)


class WorkBook:
    """Finished work and open failures as they stood when the run began.

    Args:
        store: to read from.
        cohort_mpp: um per pixel of slides that do not say theirs.
        retry: whether no failure stands in the way.
    """

    def __init__(self, store: Store, cohort_mpp: float | None, retry: bool) -> None:
        self._cohort_mpp = cohort_mpp
        self._retry = retry
        self._on_grid: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for row in store.done().to_pylist():
            grid_id = (split_vectors_name(row["table_name"]) or ("", ""))[1]
            self._on_grid.setdefault((grid_id, row["slide_no"]), []).append(row)
        self._failures: dict[str, list[dict[str, Any]]] = {}
        for row in store.quarantine(open_only=True).to_pylist():
            self._failures.setdefault(row["slide_id"], []).append(row)

    def is_done(self, target: Target, slide: RegisteredSlide, fingerprint: str, images: bool) -> bool:
        """Whether a slide's vectors are there, made from this file with these settings.

        Args:
            images: whether the tiles' images must have been kept too.
        """
        if self._retry and self._bad_tiles(target, slide.slide_id):
            return False
        valid = self.valid_on_grid(target.grid, slide, fingerprint)
        if images and not any(row["images"] for row in valid):
            return False
        return any(row["table_name"] == target.table_name for row in valid)

    def done_on_grid(self, grid: Grid, slide: RegisteredSlide) -> list[dict[str, Any]]:
        """The `done` rows of a slide on a grid, of whatever encoder, file and settings."""
        return self._on_grid.get((grid.grid_id, slide.slide_no), [])

    def valid_on_grid(self, grid: Grid, slide: RegisteredSlide, fingerprint: str) -> list[dict[str, Any]]:
        """Those of them that were made from this file, at this scale, with these settings: its tiles are there."""
        wanted = settings_hash(grid, slide.entry)
        return [
            row
            for row in self.done_on_grid(grid, slide)
            if row["fingerprint"] == fingerprint and row["settings_hash"] == wanted and self._is_at_scale(row)
        ]

    def _is_at_scale(self, row: dict[str, Any]) -> bool:
        """Whether a slide that does not say its scale was done at the one that is given for such now."""
        return row["mpp_source"] != "cohort" or self._cohort_mpp in (None, row["mpp"])

    def has_unread_tiles(self, grid: Grid, slide_id: str) -> bool:
        """Whether tiles of a slide could not be read when its tiles were written."""
        rows = self.open_failures(slide_id)
        return any(row["tile_key"] and row["grid_id"] == grid.grid_id and not row["encoder_id"] for row in rows)

    def _bad_tiles(self, target: Target, slide_id: str) -> bool:
        covering = (
            row for row in self.open_failures(slide_id) if scope_of(row).covers(target.grid.grid_id, target.encoder_id)
        )
        return any(row["tile_key"] is not None for row in covering)

    def overcome(self, targets: Sequence[Target], slide: RegisteredSlide, fingerprint: str) -> list[dict[str, Any]]:
        """Open failures that stood in the way of targets, all done, under another file or other settings.

        So a slide whose file was away for a while is well again once it is back.
        """
        return [
            row
            for row in self.open_failures(slide.slide_id)
            if row["tile_key"] is None and any(self._has_changed(row, target, slide, fingerprint) for target in targets)
        ]

    def _has_changed(self, failure: dict[str, Any], target: Target, slide: RegisteredSlide, fingerprint: str) -> bool:
        scope = scope_of(failure)
        if not scope.covers(target.grid.grid_id, target.encoder_id):
            return False
        now = self.attempt_hash(slide, None if scope.grid_id is None else target.grid)
        return bool(failure["fingerprint"] != fingerprint or failure["settings_hash"] != now)

    def blocking(self, target: Target, slide: RegisteredSlide, fingerprint: str) -> dict[str, Any] | None:
        """The open failure that stands in the way of a slide's vectors, where nothing about it has changed."""
        if self._retry:
            return None
        for row in self._failures.get(slide.slide_id, []):
            scope = scope_of(row)
            if row["tile_key"] is not None or not scope.covers(target.grid.grid_id, target.encoder_id):
                continue
            if not self._has_changed(row, target, slide, fingerprint):
                return row
        return None

    def open_failures(self, slide_id: str) -> list[dict[str, Any]]:
        """Open failures of a slide and of its tiles."""
        return self._failures.get(slide_id, [])

    def attempt_hash(self, slide: RegisteredSlide, grid: Grid | None) -> str:
        """Hash of everything, besides the file, that could make a failed slide succeed."""
        return attempt_hash(slide.entry, self._cohort_mpp, grid)


def scope_of(row: dict[str, Any]) -> Scope:
    """Scope of a `quarantine` row."""
    return Scope(row["slide_id"], row["grid_id"], row["encoder_id"])


def settings_hash(grid: Grid, entry: SlideEntry) -> str:
    """Hash of what decides a slide's tiles besides its file: grid, manifest mpp, mask."""
    return _hash([grid.settings_hash, entry.mpp, _mask_digest(entry.mask)])


def attempt_hash(entry: SlideEntry, cohort_mpp: float | None, grid: Grid | None) -> str:
    """Hash of the manifest row and the settings that a failure happened under."""
    manifest = [entry.mpp, _mask_digest(entry.mask), entry.patient_id, entry.site_id, entry.cohort]
    extra = {name: value for name, value in entry.extra.items() if value is not None}
    return _hash([entry.path.as_posix(), manifest, extra, cohort_mpp, None if grid is None else grid.settings_hash])


def group_by_grid(targets: Sequence[Target]) -> list[list[Target]]:
    """Targets that can be fed from one decode."""
    groups: dict[str, list[Target]] = {}
    for target in targets:
        groups.setdefault(target.grid.grid_id, []).append(target)
    return list(groups.values())


def _mask_digest(mask: Path | None) -> str | None:
    if mask is None:
        return None
    return hashlib.sha256(mask.read_bytes()).hexdigest() if mask.is_file() else "absent"


def _hash(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
