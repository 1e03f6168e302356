"""kNN classification of a cohort's tiles by a column of its slides or an annotation of its tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encoder.errors import QueryError
from query.choice import VectorTable
from query.collection_log import PREFIX
from query.exclusion import EXCLUDABLE, is_unknown
from query.guard import nearest_name
from query.knn import (
    KnnOutcome,
    KnnTask,
    all_left_out,
    check_classes,
    evenly,
    group_codes,
    lone_classes,
    run_task,
)
from query.statistics import Score, bootstrap_score

if TYPE_CHECKING:
    from query.cohort import Cohort
    from query.vectors import Vectors

_MOST_CLASSES = 100
_ROW_COLUMNS = ("slide_id", "x0", "y0", "extent_px0", "tile_id", "slide_no")


@dataclass(frozen=True)
class ClassificationResult:
    """What the neighbours said of each tile.

    Attributes:
        label: column or annotation.
        encoder_id, grid_id: whose vectors voted.
        k, leave_out: as asked.
        task, outcome: who voted for whom, and how well it went.
        table: one row per classified tile: tile_key columns, truth, predicted, probability of each class.
        slides: one row per slide: truth, predicted, mean probability of each class; None for a label of tiles.
        slide_score: balanced accuracy over slides; None for a label of tiles.
    """

    label: str
    encoder_id: str
    grid_id: str
    k: int
    leave_out: str
    task: KnnTask
    outcome: KnnOutcome
    table: pa.Table
    slides: pa.Table | None
    slide_score: Score | None

    @property
    def balanced_accuracy(self) -> Score:
        """Mean recall of the counted classes over tiles, with its interval over patients."""
        return self.outcome.score

    def to_json(self) -> dict[str, Any]:
        """The result without its tables, as JSON can hold it."""
        return {
            "label": self.label,
            "encoder_id": self.encoder_id,
            "grid_id": self.grid_id,
            "k": self.k,
            "leave_out": self.leave_out,
            "tiles": int(self.task.queries.size),
            **outcome_json(self.task, self.outcome),
            "slide_balanced_accuracy": None if self.slide_score is None else _number(self.slide_score.value),
            "slide_interval": None if self.slide_score is None else _interval(self.slide_score),
        }


def outcome_json(task: KnnTask, outcome: KnnOutcome) -> dict[str, Any]:
    """Scores of one outcome, as JSON can hold them."""
    return {
        "balanced_accuracy": _number(outcome.score.value),
        "interval": _interval(outcome.score),
        "interval_over": f"{outcome.score.units} {task.unit_name}",
        "chance": _number(task.chance),
        "classes": list(task.classes),
        "recalls": {name: _number(value) for name, value in outcome.recalls.items()},
        "confusion": outcome.confusion.tolist(),
        "left_out": dict(task.left_out),
        "unanswered": outcome.unanswered,
        "rule": task.rule,
        "notes": list(task.notes),
        "warnings": list(task.warnings),
    }


def classify_cohort(
    cohort: Cohort,
    label: str,
    k: int,
    leave_out: str,
    where: str | None,
    max_queries: int | None,
    table: VectorTable,
) -> ClassificationResult:
    """See `Cohort.classify`."""
    task, vectors, labelled = cohort_task(cohort, label, leave_out, where, max_queries, table)
    outcome = run_task(vectors.matrix, task, k, labelled)
    probabilities = {
        f"p_{name}": outcome.probabilities[:, number].astype(np.float64) for number, name in enumerate(task.classes)
    }
    names = np.asarray([*task.classes, None], dtype=object)
    truth = task.truth[task.queries]
    found = vectors.table.take(pa.array(labelled[task.queries]))
    found = found.append_column("truth", pa.array(names[truth], pa.string()))
    found = found.append_column("predicted", pa.array(names[outcome.predicted], pa.string()))
    for name, values in probabilities.items():
        found = found.append_column(name, pa.array(values))
    slides, slide_score = None, None
    if label in cohort.slides.column_names:
        slides, slide_score = _per_slide(found, task, outcome)
    return ClassificationResult(
        label, table.encoder_id, table.grid_id, k, leave_out, task, outcome, found, slides, slide_score
    )


def cohort_task(
    cohort: Cohort, label: str, leave_out: str, where: str | None, max_queries: int | None, table: VectorTable
) -> tuple[KnnTask, Vectors, NDArray[np.int64]]:
    """The task of classifying a cohort's labelled tiles, the vectors, and where the task's rows are in them.

    Raises:
        QueryError: the label or `leave_out` is unknown, or there are fewer than two classes.
    """
    if leave_out not in EXCLUDABLE:
        raise QueryError(f"leave_out does not know {leave_out!r}.", f"Choose from: {', '.join(EXCLUDABLE)}.")
    slides = cohort.slides
    vectors = cohort.vectors(where, _ROW_COLUMNS, table.encoder_id, table.grid_id)
    slide = _positions(slides["slide_no"].to_numpy(), vectors.table["slide_no"].to_numpy())
    if label in slides.column_names:
        values = _texts(slides[label])
        found, codes = _number_texts(values)
        label_code = codes[slide]
    else:
        found, label_code = _annotation_codes(cohort, label, table.grid_id, vectors.table, slide)
    labelled = np.flatnonzero(label_code >= 0)
    present, truth = np.unique(label_code[labelled], return_inverse=True)
    classes = check_classes([found[code] for code in present], f"The label {label!r}")
    if len(classes) > _MOST_CLASSES:
        raise QueryError(
            f"The label {label!r} has {len(classes)} different values.",
            f"Choose a column of classes, at most {_MOST_CLASSES}.",
        )
    slide_ids = slides["slide_id"].to_pylist()
    slide = slide[labelled]
    by_name = {name: group_codes(_texts(slides[column]), slide_ids) for name, column in EXCLUDABLE.items()}
    groups, patients = by_name[leave_out][slide], by_name["patient"][slide]
    left_out = lone_classes(classes, truth, patients, "patient") | lone_classes(classes, truth, groups, leave_out)
    queries, notes = evenly(np.arange(labelled.size), max_queries)
    if unlabelled := len(label_code) - labelled.size:
        notes += (f"{unlabelled:,} tiles have no {label} and take no part.",)
    for name in dict.fromkeys(("patient", leave_out)):
        unknown = sum(value is None for value in _texts(slides[EXCLUDABLE[name]].take(pa.array(np.unique(slide)))))
        if unknown:
            notes += (f"{unknown:,} slides have no known {name}: each counts as one of its own.",)
    task = KnnTask(
        classes=classes,
        truth=truth.astype(np.int64),
        queries=queries,
        reference=np.arange(labelled.size),
        groups=groups,
        units=patients,
        unit_name="patients",
        rule=f"tiles of other {leave_out}s vote for a tile",
        left_out=left_out,
        notes=notes,
        warnings=_leak_warning(leave_out, groups, patients) + all_left_out(classes, left_out),
    )
    return task, vectors, labelled


def _per_slide(found: pa.Table, task: KnnTask, outcome: KnnOutcome) -> tuple[pa.Table, Score]:
    """Slides classified by the mean probabilities of their tiles."""
    slide_ids, first, slide = np.unique(
        np.asarray(found["slide_id"].to_pylist(), dtype=np.str_), return_index=True, return_inverse=True
    )
    sums = np.zeros((slide_ids.size, len(task.classes)))
    np.add.at(sums, slide, outcome.probabilities.astype(np.float64))
    voted = sums.sum(axis=1, keepdims=True)
    means = sums / np.where(voted > 0, voted, 1)
    predicted = np.where(voted[:, 0] > 0, means.argmax(axis=1), -1)
    truth = task.truth[task.queries][first]
    score = bootstrap_score(truth, predicted, task.units[task.queries][first], task.counted)
    names = np.asarray([*task.classes, None], dtype=object)
    columns: dict[str, Any] = {
        "slide_id": pa.array(slide_ids.tolist(), pa.string()),
        "tiles": np.bincount(slide),
        "truth": pa.array(names[truth], pa.string()),
        "predicted": pa.array(names[predicted], pa.string()),
    }
    columns |= {f"p_{name}": means[:, number] for number, name in enumerate(task.classes)}
    return pa.table(columns), score


def _annotation_codes(
    cohort: Cohort, name: str, grid_id: str, rows: pa.Table, slide: NDArray[np.int64]
) -> tuple[list[str], NDArray[np.int64]]:
    """Values found and the number of each row's, -1 for none: the newest of its tile, else of its slide.

    Args:
        rows: tiles; their `tile_id` is read.
        slide: row of each tile's slide in the cohort's slides, int64 [N].
    """
    table = cohort.store.annotations(name)
    if not table.num_rows or name.startswith(PREFIX):
        labels = dict.fromkeys(cohort.store.annotations()["name"].to_pylist())
        known = [*cohort.slides.column_names, *(label for label in labels if not label.startswith(PREFIX))]
        raise QueryError(f"There is no slide column or annotation {name!r}.", nearest_name(name, known))
    given = table.sort_by("at").to_pylist()
    of_slide = {row["slide_no"]: row["value"] for row in given if row["tile_id"] is None}
    of_tile = {row["tile_id"]: row["value"] for row in given if row["grid_id"] == grid_id}
    slide_nos = cohort.slides["slide_no"].to_pylist()
    tile_ids = np.fromiter(of_tile, np.int64, len(of_tile))
    values, codes = _number_texts(
        [of_slide.get(no) or None for no in slide_nos] + [v or None for v in of_tile.values()]
    )
    result = codes[: len(slide_nos)][slide]
    if tile_ids.size:
        order = np.argsort(tile_ids)
        asked = rows["tile_id"].to_numpy()
        at = np.minimum(np.searchsorted(tile_ids[order], asked), tile_ids.size - 1)
        match = tile_ids[order][at] == asked
        result = np.where(match, codes[len(slide_nos) :][order][at], result)
    return values, result


def _number_texts(values: list[str | None]) -> tuple[list[str], NDArray[np.int64]]:
    """Distinct values, sorted, and the number of each, -1 for none."""
    known = sorted({value for value in values if value is not None})
    number = {value: code for code, value in enumerate(known)}
    return known, np.array([-1 if value is None else number[value] for value in values], np.int64)


def _positions(keys: NDArray[np.int32], values: NDArray[np.int32]) -> NDArray[np.int64]:
    """Where each value stands among the distinct keys."""
    order = np.argsort(keys)
    return order[np.searchsorted(keys[order], values)]


def _leak_warning(leave_out: str, groups: NDArray[np.int64], patients: NDArray[np.int64]) -> tuple[str, ...]:
    pairs = np.unique(np.stack([groups, patients]), axis=1)
    if leave_out == "site" or np.unique(pairs[1]).size == pairs.shape[1]:
        return ()
    return (
        "Some patients have several slides: with leave_out='slide' tiles of the same patient vote for each "
        "other; leave_out='patient' prevents it.",
    )


def _texts(column: pa.ChunkedArray) -> list[str | None]:
    """Cells as text, None where they say nothing; whole numbers without a decimal point."""
    return [
        None if is_unknown(value) else f"{value:.15g}" if isinstance(value, float) else str(value)
        for value in column.to_pylist()
    ]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _interval(score: Score) -> list[float] | None:
    return None if np.isnan(score.low) else [score.low, score.high]
