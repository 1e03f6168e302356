"""One kNN classification task: who votes for whom, and how well it went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from encoder.errors import QueryError
from encoder.neighbours import exact_topk, knn_vote
from query.statistics import Score, bootstrap_score


@dataclass(frozen=True)
class KnnTask:
    """A task over labelled rows; all arrays are row-aligned.

    Attributes:
        classes: names, sorted.
        truth: class of each row, int64 [N].
        queries: rows to classify, int64 [Q].
        reference: rows that vote, int64 [R].
        groups: rows of a query's own group never vote, int64 [N]; None where reference and queries are apart.
        units: patient (or what stands for it) of each row, int64 [N]; resampled for the interval.
        unit_name: what `units` are: patients, slides or tiles.
        rule: in words, who votes for whom.
        left_out: classes left out of the mean, and why.
        notes, warnings: what the user should know.
    """

    classes: tuple[str, ...]
    truth: NDArray[np.int64]
    queries: NDArray[np.int64]
    reference: NDArray[np.int64]
    groups: NDArray[np.int64] | None
    units: NDArray[np.int64]
    unit_name: str
    rule: str
    left_out: dict[str, str]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def counted(self) -> NDArray[np.bool_]:
        """True for the classes in the mean [C]."""
        return np.array([name not in self.left_out for name in self.classes], np.bool_)

    @property
    def chance(self) -> float:
        """Balanced accuracy of guessing among the counted classes; NaN where there is none."""
        return 1 / int(self.counted.sum()) if self.counted.any() else float("nan")


@dataclass(frozen=True)
class KnnOutcome:
    """What the neighbours voted.

    Attributes:
        predicted: class of each query, int64 [Q]; -1 where nobody could vote.
        probabilities: shares of the vote, float32 [Q, C].
        score: balanced accuracy over the counted classes.
        recalls: of every class that has a query, by name.
        confusion: tiles by true and predicted class, int64 [C, C].
        unanswered: queries without a vote.
    """

    predicted: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    score: Score
    recalls: dict[str, float]
    confusion: NDArray[np.int64]
    unanswered: int


def run_task(matrix: NDArray[np.float32], task: KnnTask, k: int, rows: NDArray[np.int64] | None = None) -> KnnOutcome:
    """Let the k nearest allowed rows vote for each query, exactly.

    Args:
        matrix: vectors [M, dim], of any length.
        k: neighbours that vote; a vote weighs exp((nearest distance - distance) / 0.07).
        rows: row of `matrix` of each row of the task, int64 [N]; None where they are the same.
    """
    if not isinstance(k, int | np.integer) or isinstance(k, bool) or k < 1:
        raise QueryError(f"k must be a whole number of at least 1, got {k!r}.", "Give k=20 or so.")
    queries, reference = (
        _directions(matrix, part if rows is None else rows[part]) for part in (task.queries, task.reference)
    )
    groups = None if task.groups is None else torch.from_numpy(task.groups)
    distances, found = exact_topk(
        queries,
        reference,
        int(k),
        None if groups is None else groups[task.queries],
        None if groups is None else groups[task.reference],
    )
    labels = torch.from_numpy(task.truth[task.reference])
    votes = torch.where(found >= 0, labels[found.clamp(min=0)], -1)
    winner, shares = knn_vote(distances, votes, len(task.classes))
    predicted, truth = winner.numpy(), task.truth[task.queries]
    score = bootstrap_score(truth, predicted, task.units[task.queries], task.counted)
    answered = predicted >= 0
    size = len(task.classes)
    confusion = np.bincount(truth[answered] * size + predicted[answered], minlength=size * size).reshape(size, size)
    counts = np.bincount(truth, minlength=size)
    recalls = {name: confusion[i, i] / counts[i] for i, name in enumerate(task.classes) if counts[i]}
    return KnnOutcome(predicted, shares.numpy(), score, recalls, confusion, int((~answered).sum()))


def check_classes(names: Sequence[str], what: str) -> tuple[str, ...]:
    """Check that a label has at least two classes.

    Raises:
        QueryError: it has fewer.
    """
    if len(names) < 2:
        held = f"only the class {names[0]!r}" if names else "no value"
        raise QueryError(f"{what} holds {held}.", "Choose a label with at least two classes.")
    return tuple(names)


def group_codes(known: Sequence[str | None], fallback: Sequence[str]) -> NDArray[np.int64]:
    """Number groups [N]; where a group is unknown or blank, its fallback is a group of its own."""
    names = [f"+{group}" if group else f"-{other}" for group, other in zip(known, fallback, strict=True)]
    return np.unique(np.asarray(names, dtype=np.str_), return_inverse=True)[1].astype(np.int64)


def all_left_out(classes: Sequence[str], left_out: Mapping[str, str]) -> tuple[str, ...]:
    """A warning where no class is left to be averaged."""
    if len(left_out) < len(classes):
        return ()
    return ("Every class was left out of the mean: there is no balanced accuracy, see each class and why.",)


def lone_classes(
    classes: tuple[str, ...], truth: NDArray[np.int64], groups: NDArray[np.int64], group_name: str
) -> dict[str, str]:
    """Classes that a single group holds: none of its tiles can find a neighbour of its class elsewhere."""
    out = {}
    for number, name in enumerate(classes):
        if np.unique(groups[truth == number]).size == 1:
            out[name] = f"only one {group_name} has it"
    return out


def evenly(rows: NDArray[np.int64], most: int | None) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """At most `most` of the rows, evenly spaced, and a note where some were left out."""
    if most is None or rows.size <= most:
        return rows, ()
    picked = rows[np.unique(np.linspace(0, rows.size - 1, most).round().astype(np.int64))]
    return picked, (f"{picked.size:,} of {rows.size:,} tiles were classified, evenly spaced; all of them vote.",)


def _directions(matrix: NDArray[np.float32], rows: NDArray[np.int64]) -> torch.Tensor:
    """Unit vectors of some rows; one copy, which is scaled in place. A zero row stays zero."""
    chosen = torch.from_numpy(matrix[rows])
    return chosen.div_(chosen.norm(dim=1, keepdim=True).clamp_min_(1e-12))
