"""Which encoder suits these tiles: balanced accuracy of kNN, several encoders side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoder.embed import TileEncoder
from encoder.errors import QueryError, TileError
from encoder.progress import Reporter, SilentReporter
from encoder.tiles import TileFolder
from query.classify import cohort_task, outcome_json
from query.cohort import Cohort, open_cohort
from query.folder_task import folder_task
from query.knn import KnnOutcome, KnnTask, run_task

_BATCH = 64


@dataclass(frozen=True)
class EncoderOutcome:
    """One encoder's result.

    Attributes:
        encoder: readable name.
        encoder_id: its id.
        dim: length of its vectors.
        task: who voted for whom; the same for every encoder of one evaluation, but for a store's tiles.
        outcome: how well it went.
        tiles_per_second: embedding rate; None where the vectors were already there.
        notes: about this encoder on these tiles.
    """

    encoder: str
    encoder_id: str
    dim: int
    task: KnnTask
    outcome: KnnOutcome
    tiles_per_second: float | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """Encoders compared on the same labelled tiles.

    Attributes:
        source: folder or store.
        label: what was predicted.
        k: neighbours that voted.
        encoders: one result per encoder, in the order asked.
    """

    source: str
    label: str
    k: int
    encoders: tuple[EncoderOutcome, ...]

    @property
    def best(self) -> EncoderOutcome:
        """The encoder with the highest balanced accuracy."""
        return max(self.encoders, key=lambda item: np.nan_to_num(item.outcome.score.value, nan=-1))

    def to_json(self) -> dict[str, Any]:
        """The whole evaluation, as JSON can hold it."""
        return {
            "source": self.source,
            "label": self.label,
            "k": self.k,
            "encoders": [
                {
                    "encoder": item.encoder,
                    "encoder_id": item.encoder_id,
                    "dim": item.dim,
                    "tiles": int(item.task.queries.size),
                    "reference_tiles": int(item.task.reference.size),
                    "tiles_per_second": item.tiles_per_second,
                    "encoder_notes": list(item.notes),
                    **outcome_json(item.task, item.outcome),
                }
                for item in self.encoders
            ],
        }


def evaluate_tiles(
    folder: Path | str,
    encoders: Sequence[TileEncoder],
    label: str | None = None,
    k: int = 20,
    max_queries: int | None = 20_000,
    reporter: Reporter | None = None,
) -> Evaluation:
    """Evaluate encoders on a labelled tile folder.

    Rows marked `train` are the reference and rows marked `test` the queries where the folder's table has a
    `split`; else a tile's own patient or group, then slide, is left out; else only the tile itself, with a
    warning that this may leak.

    Args:
        folder: a tile folder with labels.
        encoders: what to compare; all see the same pixels, each resized to its own input.
        label: None or `label`, the one column of classes that a tile folder has.
        k: neighbours that vote.
        max_queries: tiles classified, evenly spaced; None for all.
        reporter: receives progress.

    Raises:
        QueryError: the folder has no labels, fewer than two classes, or no encoder was given.
        UsageError: it is no tile folder.
    """
    if not encoders:
        raise QueryError("No encoder was given.", "Name at least one with --encoder.")
    if label not in (None, "label"):
        raise QueryError(f"A tile folder has no label {label!r}.", "Its classes are the column `label`.")
    source = TileFolder(folder)
    if source.labels is None:
        raise QueryError(f"Tile folder {folder} has no labels.", "Add a labels.csv with the columns file,label.")
    vectors, kept, rates = _embed_all(source, encoders, reporter or SilentReporter())
    task = folder_task(source, kept, max_queries)
    items = []
    for encoder, matrix, rate in zip(encoders, vectors, rates, strict=True):
        outcome = run_task(matrix, task, k)
        spec = encoder.spec
        notes = _scale_notes(source, encoder)
        items.append(EncoderOutcome(spec.name, spec.encoder_id, spec.dim, task, outcome, rate, notes))
    return Evaluation(str(folder), "label", k, tuple(items))


def evaluate_store(
    store: Cohort | str,
    label: str,
    encoders: Sequence[str] | None = None,
    leave_out: str | None = None,
    k: int = 20,
    where: str | None = None,
    max_queries: int | None = 20_000,
    grid: str | None = None,
) -> Evaluation:
    """Evaluate the encoders of a store on its own labelled tiles.

    Args:
        store: a cohort or a store's URI.
        label: a column of the slides, or the name of an annotation of tiles.
        encoders: ids or names; None for all that have vectors.
        leave_out: `slide`, `patient` or `site`; None for patient where any is known, else slide.
        k: neighbours that vote.
        where: tiles that take part.
        max_queries: tiles classified, evenly spaced; None for all.
        grid: id; needed where an encoder has vectors on several.

    Raises:
        QueryError: the label, an encoder or the grid is unknown.
    """
    cohort = store if isinstance(store, Cohort) else open_cohort(store)
    if leave_out is None:
        leave_out = "patient" if any(cohort.slides["patient_id"].to_pylist()) else "slide"
    names: Sequence[str | None] = list(encoders or dict.fromkeys(t.encoder_id for t in cohort.vector_tables)) or [None]
    items = []
    for name in names:
        table = cohort.choose(name, grid)
        task, vectors, labelled = cohort_task(cohort, label, leave_out, where, max_queries, table)
        outcome = run_task(vectors.matrix, task, k, labelled)
        dim = vectors.matrix.shape[1]
        items.append(EncoderOutcome(table.encoder_name, table.encoder_id, dim, task, outcome, None))
    return Evaluation(cohort.store.uri, label, k, tuple(items))


def _embed_all(
    source: TileFolder, encoders: Sequence[TileEncoder], reporter: Reporter
) -> tuple[list[NDArray[np.float32]], NDArray[np.int64], list[float]]:
    """Vectors of every readable tile per encoder, the tiles' numbers, and embedding rates; one decode for all."""
    kept: list[NDArray[np.int64]] = []
    parts: list[list[NDArray[np.float32]]] = [[] for _ in encoders]
    seconds = [0.0] * len(encoders)
    reporter.start("embedding", len(source), "tiles")
    for start in range(0, len(source), _BATCH):
        numbers = np.arange(start, min(start + _BATCH, len(source)))
        numbers, images = _readable(source, numbers)
        if numbers.size:
            kept.append(numbers)
            for which, encoder in enumerate(encoders):
                began = perf_counter()
                parts[which].append(encoder.embed(images))
                seconds[which] += perf_counter() - began
        reporter.advance(min(_BATCH, len(source) - start))
    reporter.finish()
    if not kept:
        raise QueryError(f"No picture of {source.path} can be read.", "Check the files.")
    rows = np.concatenate(kept)
    return [np.concatenate(part) for part in parts], rows, [rows.size / max(s, 1e-9) for s in seconds]


def _readable(source: TileFolder, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    try:
        return numbers, source.images(numbers)
    except TileError:
        broken = {name for name, _ in source.broken}
        good = np.array([n for n in numbers if source.names[n] not in broken], np.int64)
        return good, source.images(good)


def _scale_notes(source: TileFolder, encoder: TileEncoder) -> tuple[str, ...]:
    """Say where the tiles' field of view is not the one that the encoder was made for."""
    mpp = encoder.spec.mpp
    if mpp is None or source.mpps is None or not np.isfinite(source.mpps).any():
        return ()
    shown = float(np.nanmedian(source.mpps)) * source.native_px / encoder.spec.tile_px
    if abs(shown / mpp - 1) <= 0.1:
        return ()
    return (f"made for {mpp:g} um/px, sees these tiles at {shown:.3g} um/px",)
