"""Percentiles against a count of all pairs."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from query.background import Background, measure_background, patient_codes


def slides_of(patients):
    return pa.table({"slide_id": [f"s{n}" for n in range(len(patients))], "patient_id": patients})


def unit(rng, rows, dim=12):
    matrix = rng.standard_normal((rows, dim)) + 1.0
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


def test_percentiles_count_pairs_of_different_patients():
    rng = np.random.default_rng(0)
    matrix = unit(rng, 300)
    slide = np.repeat(np.arange(6), 50).astype(np.int32)
    slides = slides_of(["a", "a", "b", None, None, "c"])
    found = measure_background(slide, slides, matrix.__getitem__, 12)
    patients = np.array([0, 0, 1, 2, 3, 4])[slide]
    wide = matrix.astype(np.float64)
    pairs = np.array(
        [1 - wide[i] @ wide[j] for i in range(300) for j in range(i + 1, 300) if patients[i] != patients[j]]
    )
    assert found.basis == "patients" and found.pairs == pairs.size
    for distance in np.quantile(pairs, [0.0005, 0.01, 0.2, 0.5, 0.99]):
        truth = 100 * np.mean(pairs <= distance)
        assert found.percentile(np.array([distance]))[0] == pytest.approx(truth, rel=0.15, abs=100 / pairs.size)
    assert found.percentile(np.array([pairs.min() - 0.001, pairs.max() + 0.01])).tolist() == [0.0, 100.0]


@pytest.mark.parametrize(
    ("patients", "slide", "basis"),
    [(["a", "a"], [0, 1], "slides"), (["a", "b"], [0, 0], "tiles"), ([None, ""], [0, 1], "patients")],
)
def test_what_a_pair_must_not_share_depends_on_the_store(patients, slide, basis):
    matrix = unit(np.random.default_rng(1), 40)
    code = np.repeat(np.array(slide, np.int32), 20)
    found = measure_background(code, slides_of(patients), matrix.__getitem__, 12)
    assert found.basis == basis and found.pairs == (780 if basis == "tiles" else 400)


def test_an_empty_or_single_row_has_no_percentiles():
    for rows in (0, 1):
        found = measure_background(
            np.zeros(rows, np.int32), slides_of(["a"]), unit(np.random.default_rng(0), 1).__getitem__, 12
        )
        assert found.pairs == 0 and np.isnan(found.percentile(np.array([0.3]))).all()


def test_a_mean_is_compared_with_its_own_distances():
    rng = np.random.default_rng(2)
    matrix = unit(rng, 500)
    background = measure_background(
        np.arange(500, dtype=np.int32) % 9, slides_of(list("abcdefghi")), matrix.__getitem__, 12
    )
    mean = matrix.astype(np.float64).mean(axis=0)
    mean /= np.linalg.norm(mean)
    own = background.of_query(mean[None])
    distances = 1 - matrix.astype(np.float64) @ mean
    middle = np.median(distances)
    assert own.percentile(np.array([middle]))[0] == pytest.approx(50, abs=2)
    assert background.percentile(np.array([middle]))[0] < 20  # pairs of tiles would flatter it


def test_it_survives_as_text():
    rng = np.random.default_rng(3)
    matrix = unit(rng, 100)
    found = measure_background(np.arange(100, dtype=np.int32) % 2, slides_of(["a", "b"]), matrix.__getitem__, 12)
    again = Background.from_json(found.to_json(), 12)
    distances = np.linspace(0, 1, 50)
    np.testing.assert_array_equal(again.percentile(distances), found.percentile(distances))
    assert (again.pairs, again.basis) == (found.pairs, found.basis)
    assert again.of_query(matrix[:1].astype(np.float64)) is again  # no sample was kept


def test_unknown_patients_are_their_own():
    assert len(set(patient_codes(slides_of(["a", "", None, "a"])).tolist())) == 3
