"""Which engine answers a search, and why: decided from numbers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from query.recall import Step, cheapest

EngineName = Literal["resident", "half", "faiss", "faiss-gpu", "index", "streaming"]

# An exact search that takes no longer is not worth an approximation.
QUICK_SECONDS = 0.05
# With a filter, what is found is held to this recall: a filter must not lose what it lets through.
FILTERED_RECALL = 0.99
# FAISS's lists lose rows under narrow filters; a scan of the allowed rows is short there.
_FAISS_SHARE = 0.5
# Rows that are fetched from disk by their numbers in about the time that the index takes for wide filters.
FETCH_ROWS = 20_000
# More hits than this take more time to refine than a pass over the table.
_MOST_BY_INDEX = 10_000
# Reading vectors from disk for the first search takes longer than the index needs: then it answers.
_PATIENCE_SECONDS = 0.5
# A scan of half the bytes saves too little of a search that is short anyway.
HALF_ROWS = 100_000


@dataclass(frozen=True)
class Situation:
    """What is known before a search.

    Attributes:
        rows: searchable.
        matching: of them allowed by the filters.
        target_recall: asked for; 1 for exact answers.
        resident: whether the vectors are in memory, could be, or are too large for the budget.
        exact_seconds: of one pass over the vectors in memory.
        load_seconds: of reading them into memory.
        k: hits wanted.
        half: whether a half-precision copy is there.
        faiss_gpu: whether FAISS holds the vectors on the GPU.
        faiss: steps of the FAISS index in memory; empty where there is none.
        index: steps of the store's index; empty where there is none.
        index_exists: whether the store has an index of these vectors.
    """

    rows: int
    matching: int
    target_recall: float
    resident: Literal["ready", "fits", "too large"]
    exact_seconds: float
    load_seconds: float
    k: int = 20
    half: bool = False
    faiss_gpu: bool = False
    faiss: Sequence[Step] = ()
    index: Sequence[Step] = ()
    index_exists: bool = False

    @property
    def filtered(self) -> bool:
        """Whether filters leave rows out."""
        return self.matching < self.rows


@dataclass(frozen=True)
class Choice:
    """The engine that was chosen.

    Attributes:
        engine: its name.
        recall: that is expected; 1 where the answer is exact.
        why: in words.
        step: its setting, where it has one.
    """

    engine: EngineName
    recall: float
    why: str
    step: Step | None = None

    @property
    def exact(self) -> bool:
        """Whether the answer is exact whatever the vectors are."""
        return self.engine not in ("faiss", "index")


def choose_engine(situation: Situation) -> Choice:
    """Choose the cheapest engine that reaches the asked recall; exact wherever that is quick."""
    if situation.resident == "too large":
        return _from_disk(situation)
    if situation.resident == "fits" and situation.load_seconds > _PATIENCE_SECONDS:
        by_index = _by_index(situation)
        if by_index is not None:
            return replace(by_index, why=f"{by_index.why}; the vectors are being read")
    return _in_memory(situation)


def _in_memory(situation: Situation) -> Choice:
    share = situation.matching / max(1, situation.rows)
    seconds = situation.exact_seconds * min(1.0, share + 0.05)
    target = FILTERED_RECALL if situation.filtered else situation.target_recall
    if situation.faiss_gpu and not situation.filtered:
        return Choice("faiss-gpu", 1.0, "the GPU holds the vectors, and no filter is set")
    quick = seconds <= QUICK_SECONDS
    if not quick and situation.target_recall < 1 and share >= _FAISS_SHARE:
        step = cheapest(situation.faiss, max(target, situation.target_recall))
        if step is not None and step.milliseconds < 1e3 * seconds:
            why = f"a scan would take about {1e3 * seconds:.0f} ms; recall was measured"
            return Choice("faiss", step.recall, why, step)
    # A half-precision scan looks at all rows; where few are allowed, gathering them is shorter.
    if situation.half and share >= 0.15:
        return Choice("half", 1.0, "a scan in half precision reads half the bytes")
    why = "a scan is quick" if quick else "nothing faster reaches the asked recall"
    return Choice("resident", 1.0, why)


def _from_disk(situation: Situation) -> Choice:
    if situation.matching <= FETCH_ROWS:
        why = f"the vectors do not fit the memory budget; {situation.matching:,} rows are fetched and compared"
        return Choice("streaming", 1.0, why)
    by_index = _by_index(situation)
    if by_index is not None:
        return replace(by_index, why=f"the vectors do not fit the memory budget; {by_index.why}")
    if situation.target_recall >= 1:
        why = "exact answers were asked for"
    elif situation.k > _MOST_BY_INDEX:
        why = "so many hits take an index longer than a pass over the table"
    elif situation.index_exists:
        why = "the index does not reach the asked recall"
    else:
        why = "there is no index; `histoseek build` makes one"
    return Choice("streaming", 1.0, f"the vectors do not fit the memory budget, and {why}")


def _by_index(situation: Situation) -> Choice | None:
    if situation.target_recall >= 1 or situation.matching <= FETCH_ROWS or situation.k > _MOST_BY_INDEX:
        return None
    target = max(situation.target_recall, FILTERED_RECALL) if situation.filtered else situation.target_recall
    step = cheapest(situation.index, target)
    if step is None:
        return None
    if situation.filtered:
        # Under a filter all lists are probed: those near the query may hold few of the rows that it allows.
        step = Step(None, step.refine, step.recall, step.milliseconds)
    return Choice("index", step.recall, "the store's index reaches the asked recall, as measured", step)
