"""kNN classification and its statistics, each against a slow count."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from encoder.errors import QueryError
from query import open_cohort
from query.knn import KnnTask, evenly, group_codes, lone_classes, run_task
from query.statistics import bootstrap_score, unit_counts


def make_task(rng, rows=120, classes=3, groups=6, dim=12):
    truth = rng.integers(classes, size=rows)
    centres = 2 * rng.standard_normal((classes, dim))
    matrix = (centres[truth] + rng.standard_normal((rows, dim))).astype(np.float32)
    group = rng.integers(groups, size=rows)
    every = np.arange(rows)
    names = tuple("abcdef"[:classes])
    return matrix, KnnTask(names, truth, every, every, group, group, "patients", "r", {})


def slow_vote(matrix, task, query, k):
    unit = matrix.astype(np.float64) / np.linalg.norm(matrix.astype(np.float64), axis=1, keepdims=True)
    near = sorted(
        (1 - float(unit[query] @ unit[row]), row)
        for row in task.reference
        if task.groups is None or task.groups[row] != task.groups[query]
    )[:k]
    votes = np.zeros(len(task.classes))
    for distance, row in near:
        votes[task.truth[row]] += np.exp((near[0][0] - distance) / 0.07)
    return votes / votes.sum() if near else votes


@pytest.mark.parametrize("seed", range(4))
def test_votes_equal_a_slow_count(seed):
    matrix, task = make_task(np.random.default_rng(seed))
    outcome = run_task(matrix, task, 7)
    for query in range(len(matrix)):
        shares = slow_vote(matrix, task, query, 7)
        np.testing.assert_allclose(outcome.probabilities[query], shares, atol=2e-4)
        top = np.sort(shares)
        if top[-1] - top[-2] > 1e-3:
            assert outcome.predicted[query] == shares.argmax()
    for number, name in enumerate(task.classes):
        mine = task.truth == number
        assert outcome.recalls[name] == pytest.approx((outcome.predicted[mine] == number).mean())
        assert outcome.confusion[number].sum() == mine.sum()
    assert outcome.score.value == pytest.approx(np.mean(list(outcome.recalls.values())))


def test_own_group_never_votes():
    """Every tile has an exact copy in its own group and would be right only by it."""
    rng = np.random.default_rng(0)
    matrix = np.repeat(rng.standard_normal((20, 32)), 2, axis=0).astype(np.float32)
    group = np.repeat(np.arange(20), 2)
    truth = np.repeat(rng.permutation(np.arange(20) % 2), 2)
    every = np.arange(40)
    apart = KnnTask(("a", "b"), truth, every, every, group, group, "patients", "r", {})
    leaky = KnnTask(("a", "b"), truth, every, every, every, group, "patients", "r", {})
    assert run_task(matrix, leaky, 1).score.value == 1.0
    assert run_task(matrix, apart, 1).score.value < 0.9


def test_queries_without_neighbours_are_counted_as_wrong():
    matrix = np.eye(4, dtype=np.float32)
    truth, group = np.array([0, 0, 1, 1]), np.zeros(4, np.int64)
    task = KnnTask(("a", "b"), truth, np.arange(4), np.arange(4), group, group, "patients", "r", {})
    outcome = run_task(matrix, task, 3)
    assert outcome.unanswered == 4 and outcome.score.value == 0.0
    with pytest.raises(QueryError, match="k must be"):
        run_task(matrix, task, 0)


def test_left_out_classes_do_not_enter_the_mean():
    truth, predicted = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 0])
    units = np.array([0, 1, 0, 1, 2])
    assert bootstrap_score(truth, predicted, units, np.array([True, True, True])).value == pytest.approx(0.5)
    assert bootstrap_score(truth, predicted, units, np.array([True, True, False])).value == pytest.approx(0.75)
    assert np.isnan(bootstrap_score(truth, predicted, units, np.zeros(3, bool)).value)


def test_bootstrap_equals_resampling_the_tiles():
    rng = np.random.default_rng(3)
    units = rng.integers(8, size=300)
    truth = rng.integers(3, size=300)
    predicted = np.where(rng.random(300) < 0.5 + 0.06 * (units - 4), truth, rng.integers(3, size=300))
    counted = np.ones(3, bool)
    score = bootstrap_score(truth, predicted, units, counted, resamples=4000)
    slow = []
    for _ in range(1500):
        rows = np.concatenate([np.flatnonzero(units == u) for u in rng.integers(8, size=8)])
        slow.append(np.mean([(predicted[rows] == c)[truth[rows] == c].mean() for c in range(3)]))
    low, high = np.percentile(slow, [2.5, 97.5])
    assert score.low == pytest.approx(low, abs=0.012) and score.high == pytest.approx(high, abs=0.012)
    assert score.low < score.value < score.high and score.units == 8
    assert bootstrap_score(truth, predicted, units, counted) == bootstrap_score(truth, predicted, units, counted)
    one = bootstrap_score(truth, predicted, np.zeros(300, int), counted)
    assert np.isnan(one.low) and "no interval" in str(one)


def test_unit_counts_equal_a_loop():
    rng = np.random.default_rng(1)
    truth, predicted, units = rng.integers(3, size=50), rng.integers(-1, 3, size=50), rng.integers(4, size=50) * 10
    total, right = unit_counts(truth, predicted, units, 3)
    for place, unit in enumerate(np.unique(units)):
        for number in range(3):
            mine = (units == unit) & (truth == number)
            assert total[place, number] == mine.sum()
            assert right[place, number] == (mine & (predicted == number)).sum()


def test_helpers():
    codes = group_codes(["p", None, "p", ""], ["s1", "p", "s3", "s4"])
    assert codes[0] == codes[2] and len(set(codes.tolist())) == 3
    truth, groups = np.array([0, 0, 1, 1]), np.array([0, 1, 2, 2])
    assert lone_classes(("a", "b"), truth, groups, "patient") == {"b": "only one patient has it"}
    rows, notes = evenly(np.arange(100), 10)
    assert rows.tolist() == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99] and "10 of 100" in notes[0]
    assert evenly(np.arange(5), None) == (pytest.approx(np.arange(5)), ())


@pytest.fixture(scope="module")
def labelled(tmp_path_factory, write_store):
    """Eight slides whose tiles carry their cluster as an annotation; slide labels that tiles cannot know."""
    slides = [
        {"slide_id": f"s{n}", "patient_id": f"p{n // 2}", "site_id": "xy"[n % 2], "grade": "ab"[n % 2], "score": n % 2}
        for n in range(8)
    ]
    slides[7]["patient_id"] = None
    extra = {"grade": pa.string(), "score": pa.float64()}
    small = write_store(tmp_path_factory.mktemp("labelled") / "store", slides, extra=extra, spread=0.05)
    names = np.array(["tumour", "stroma", "fat", "lymph"])[small.cluster].tolist()
    slide_nos = small.slide.tolist()
    small.store.annotate("tissue_type", ["wrong"] * 3, slide_nos[:3], small.tile_id[:3].tolist(), small.grid_id)
    small.store.annotate("tissue_type", names, slide_nos, small.tile_id.tolist(), small.grid_id)
    small.store.annotate("whole", ["left", "right"] * 4, list(range(8)))
    small.store.annotate("whole", ["right"], [0], [int(small.tile_id[0])], small.grid_id)
    return small, open_cohort(str(small.path))


def test_annotated_tiles_are_classified(labelled):
    _, cohort = labelled
    result = cohort.classify("tissue_type", k=5, leave_out="patient")
    assert result.balanced_accuracy.value > 0.98
    assert result.task.classes == ("fat", "lymph", "stroma", "tumour")  # the newest value of each tile
    assert result.table.num_rows == 288 and result.slides is None
    shares = np.stack([result.table[f"p_{name}"].to_numpy() for name in result.task.classes], axis=1)
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)
    right = np.asarray(result.table["truth"]) == np.asarray(result.table["predicted"])
    assert right.mean() > 0.98
    text = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert text["balanced_accuracy"] > 0.98 and len(text["interval"]) == 2 and text["chance"] == 0.25
    assert "1 slides have no known patient: each counts as one of its own." in text["notes"]


def test_a_value_of_the_slide_holds_where_the_tile_has_none(labelled):
    small, cohort = labelled
    result = cohort.classify("whole", k=5)
    truth = dict(zip(result.table["tile_id"].to_pylist(), result.table["truth"].to_pylist(), strict=True))
    assert truth[int(small.tile_id[0])] == "right" and truth[int(small.tile_id[1])] == "left"


def test_slide_labels_are_classified_per_slide_too(labelled):
    _, cohort = labelled
    result = cohort.classify("grade", k=9, leave_out="patient", max_queries=100)
    assert result.slides.num_rows == 8 and result.table.num_rows == 100
    assert result.slides["tiles"].to_numpy().sum() == 100
    assert 0.2 < result.balanced_accuracy.value < 0.8  # the label says nothing about the tiles
    assert any("100 of 288 tiles were classified" in note for note in result.task.notes)
    assert cohort.classify("score").task.classes == ("0", "1")


def test_warnings_and_refusals(labelled):
    _, cohort = labelled
    assert any("several slides" in text for text in cohort.classify("grade", leave_out="slide").task.warnings)
    assert cohort.classify("grade", leave_out="patient").task.warnings == ()
    lone = cohort.classify("grade", leave_out="site").to_json()
    assert set(lone["left_out"]) == {"a", "b"} and lone["balanced_accuracy"] is None and lone["chance"] is None
    assert any("Every class was left out" in text for text in lone["warnings"])
    for label, options, says in [
        ("grad", {}, "Did you mean 'grade'"),
        ("grade", {"leave_out": "tile"}, "Choose from: slide, patient, site"),
        ("vendor", {}, "holds no value"),
        ("grade", {"where": "grade = 'a'"}, "only the class 'a'"),
        ("grade", {"k": 0}, "k must be"),
    ]:
        with pytest.raises(QueryError, match=says):
            cohort.classify(label, **options)
