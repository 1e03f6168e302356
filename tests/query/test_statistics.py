"""How a score is written."""

from __future__ import annotations

import numpy as np
import pytest

from query.statistics import Score, bootstrap_score

NAN = float("nan")


@pytest.mark.parametrize(
    ("score", "text"),
    [
        (Score(0.81234, 0.7, 0.9, 12), "0.812 (0.700 to 0.900)"),
        (Score(0.5, NAN, NAN, 1), "0.500 (no interval: 1 unit)"),
        (Score(0.5, NAN, NAN, 3), "0.500 (no interval: 3 units)"),
        (Score(NAN, NAN, NAN, 3), "none (every class was left out)"),
    ],
)
def test_a_score_in_words(score, text):
    assert str(score) == text


def test_no_counted_class_gives_no_score():
    truth = np.array([0, 1, 0])
    assert str(bootstrap_score(truth, truth, np.arange(3), np.zeros(2, bool))).startswith("none")
