"""FAISS on the GPU: the trial in a process of its own, and exactness from a margin, with a stand-in for the card."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from encoder.errors import QueryError
from query.engines import faiss_gpu
from query.engines.contract import Ask, Places
from query.engines.resident import ResidentExact


@pytest.fixture(autouse=True)
def forget_the_trial():
    faiss_gpu.why_not.cache_clear()
    yield
    faiss_gpu.why_not.cache_clear()


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("import os; os.abort()", "its wheel has no code for it"),
        ("print('FAISS finds no GPU'); raise SystemExit(3)", "finds no GPU"),
        ("raise RuntimeError('out of memory')", "RuntimeError: out of memory"),
        ("raise SystemExit(4)", "exit code 4"),
    ],
)
def test_a_trial_that_fails_is_a_reason_and_not_a_crash(program, says):
    assert says in faiss_gpu.why_not(sys.executable, program)


def test_a_trial_that_passes_and_is_made_once():
    assert faiss_gpu.why_not(sys.executable, "pass") is None
    faiss_gpu.why_not(sys.executable, "pass")
    assert faiss_gpu.why_not.cache_info().hits == 1


def test_without_a_card_it_is_refused(monkeypatch):
    monkeypatch.setattr(faiss_gpu, "why_not", lambda: "FAISS finds no GPU")
    with pytest.raises(QueryError, match="FAISS finds no GPU"):
        faiss_gpu.FaissGpuFlat(np.eye(4, dtype=np.float32), Places(*(np.zeros(4, np.int32) for _ in range(3))))


class HalfIndex:
    """Compares in float16, as the card does."""

    def __init__(self, dim):
        self._rows = np.empty((0, dim), np.float16)

    def add(self, rows):
        self._rows = np.concatenate([self._rows, rows.astype(np.float16)])

    def search(self, queries, wanted):
        scores = queries.astype(np.float16).astype(np.float32) @ self._rows.astype(np.float32).T
        order = np.argsort(-scores, axis=1, kind="stable")[:, :wanted]
        return np.take_along_axis(scores, order, axis=1), order


@pytest.fixture
def on_a_card(monkeypatch):
    class Faiss:
        GpuIndexFlatConfig = type("Config", (), {})
        StandardGpuResources = type("Resources", (), {})

        @staticmethod
        def GpuIndexFlatIP(resources, dim, options):
            assert options.useFloat16
            return HalfIndex(dim)

    monkeypatch.setattr(faiss_gpu, "why_not", lambda: None)
    monkeypatch.setattr(faiss_gpu, "load_faiss", lambda: Faiss)


@pytest.mark.parametrize("spread", [1.0, 0.002])
def test_its_answers_are_exact_also_where_float16_cannot_tell_rows_apart(on_a_card, spread):
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal(32) + spread * rng.standard_normal((6000, 32))
    matrix = (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)
    number = np.arange(6000, dtype=np.int32)
    places = Places(number // 100, number % 100, number)
    asks = [Ask(matrix[5], 5), Ask(matrix[4000])]
    truth = list(ResidentExact(matrix, places, workers=1).rank(asks))
    for ranking, true in zip(faiss_gpu.FaissGpuFlat(matrix, places).rank(asks), truth, strict=True):
        for _ in range(3):
            hits, wanted = ranking.best(30), true.best(30)
            assert hits.rows.tolist() == wanted.rows.tolist()
            np.testing.assert_array_equal(hits.distances, wanted.distances)
            ranking.strike(hits.rows)
            true.strike(hits.rows)


def test_it_takes_no_filter(on_a_card):
    places = Places(*(np.zeros(4, np.int32) for _ in range(3)))
    engine = faiss_gpu.FaissGpuFlat(np.eye(4, dtype=np.float32), places)
    with pytest.raises(QueryError, match="no filter"):
        next(engine.rank([Ask(np.ones(4))], np.ones(4, np.bool_)))


@pytest.mark.gpu
def test_on_a_real_card():
    if faiss_gpu.why_not() is not None:
        pytest.skip(f"FAISS cannot use a GPU here: {faiss_gpu.why_not()}")
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((20_000, 64)).astype(np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    number = np.arange(20_000, dtype=np.int32)
    places = Places(number // 100, number % 100, number)
    asks = [Ask(matrix[row], row) for row in range(20)]
    truth = ResidentExact(matrix, places).rank(asks)
    for ranking, true in zip(faiss_gpu.FaissGpuFlat(matrix, places).rank(asks), truth, strict=True):
        assert ranking.best(20).rows.tolist() == true.best(20).rows.tolist()
