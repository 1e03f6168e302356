"""The planner's choices on both sides of each crossing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from query.planner import FETCH_ROWS, QUICK_SECONDS, Situation, choose_engine
from query.recall import Step, cheapest

STEPS = (Step(10, 5, 0.90, 3.0), Step(20, 10, 0.96, 5.0), Step(50, 10, 0.993, 9.0), Step(None, 10, 1.0, 30.0))
READY = Situation(1_000_000, 1_000_000, 0.95, "ready", exact_seconds=0.2, load_seconds=2.0)
DISK = replace(READY, resident="too large", index=STEPS, index_exists=True)


@pytest.mark.parametrize(
    ("change", "engine", "probes"),
    [
        # In memory: exact while that is quick, else what was measured to reach the recall.
        ({"faiss": STEPS, "exact_seconds": QUICK_SECONDS}, "resident", None),
        ({"faiss": STEPS, "exact_seconds": QUICK_SECONDS * 1.01}, "faiss", 20),
        ({"faiss": STEPS, "target_recall": 0.97}, "faiss", 50),
        ({"faiss": STEPS, "target_recall": 1.0}, "resident", None),
        ({"faiss": STEPS[:1]}, "resident", None),
        ({"faiss": (Step(9, 1, 0.99, 250.0),)}, "resident", None),
        ({}, "resident", None),
        ({"half": True}, "half", None),
        ({"half": True, "faiss": STEPS}, "faiss", 20),
        ({"half": True, "faiss": STEPS, "target_recall": 1.0}, "half", None),
        # With a filter: recall 0.99 at least; narrow ones are scanned.
        ({"faiss": STEPS, "matching": 600_000}, "faiss", 50),
        ({"faiss": STEPS, "matching": 499_999}, "resident", None),
        ({"half": True, "matching": 150_000}, "half", None),
        ({"half": True, "matching": 149_999}, "resident", None),
        # On the GPU: without a filter FAISS, with one the half-precision scan.
        ({"half": True, "faiss_gpu": True}, "faiss-gpu", None),
        ({"half": True, "faiss_gpu": True, "matching": 999_999}, "half", None),
    ],
)
def test_in_memory(change, engine, probes):
    choice = choose_engine(replace(READY, **change))
    assert choice.engine == engine
    assert (choice.step.probes if choice.step else None) == probes
    assert choice.recall >= (0.99 if "matching" in change else 0.95)


@pytest.mark.parametrize(
    ("change", "engine", "probes"),
    [
        ({}, "index", 20),
        ({"target_recall": 0.999}, "index", None),
        ({"target_recall": 1.0}, "streaming", None),
        ({"matching": FETCH_ROWS}, "streaming", None),
        ({"matching": FETCH_ROWS + 1}, "index", None),
        ({"index": STEPS[:2], "matching": 500_000}, "streaming", None),
        ({"index": STEPS[:1]}, "streaming", None),
        ({"index": (), "index_exists": False}, "streaming", None),
        ({"k": 10_000}, "index", 20),
        ({"k": 10_001}, "streaming", None),
    ],
)
def test_on_disk(change, engine, probes):
    choice = choose_engine(replace(DISK, **change))
    assert choice.engine == engine
    assert (choice.step.probes if choice.step else None) == probes
    assert "memory budget" in choice.why


def test_an_index_answers_while_vectors_are_being_read():
    cold = replace(DISK, resident="fits")
    assert choose_engine(cold).engine == "index" and "being read" in choose_engine(cold).why
    assert choose_engine(replace(cold, load_seconds=0.1)).engine == "resident"
    assert choose_engine(replace(cold, index=(), index_exists=False)).engine == "resident"
    assert choose_engine(replace(cold, target_recall=1.0)).engine == "resident"
    assert choose_engine(replace(cold, matching=0)).engine == "resident"
    assert choose_engine(replace(cold, k=10_001)).engine == "resident"


def test_a_plan_without_an_index_says_how_to_get_one():
    assert "histoseek build" in choose_engine(replace(DISK, index=(), index_exists=False)).why
    assert "does not reach" in choose_engine(replace(DISK, index=STEPS[:1])).why


def test_the_cheapest_step_that_is_good_enough():
    steps = (Step(4, 1, 0.96, 9.0), Step(8, 1, 0.97, 3.0), Step(16, 1, 0.99, 4.0))
    assert cheapest(steps, 0.95) == steps[1]
    assert cheapest(steps, 0.98) == steps[2]
    assert cheapest(steps, 0.999) is None


def test_what_chance_may_have_done_to_a_measurement_is_allowed_for():
    sure, lucky = Step(8, 1, 0.96, 3.0, error=0.004), Step(4, 1, 0.96, 1.0, error=0.006)
    assert cheapest((lucky, sure), 0.95) == sure and cheapest((lucky,), 0.95) is None
    assert Step(None, 1, 1.0, 1.0).reaches(1.0)
