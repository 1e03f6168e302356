"""A million rows: the recall card that `build` prints, confirmed by an exact search that shares no code with it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import lancedb
import numpy as np
import pytest

from query import open_cohort

ROWS, DIM = 1_000_000, 128


def large_store() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "large_store.py"
    spec = importlib.util.spec_from_file_location("large_store", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_card_of_a_million_rows_is_confirmed(tmp_path, histoseek):
    module = large_store()
    matrix = module.clustered(ROWS, DIM, seed=0)
    uri = str(tmp_path / "store")
    module.write_store(uri, matrix)
    outcome = histoseek("build", "--store", uri, "--target-recall", 0.95, "--json")
    assert outcome.code == 0, outcome.err
    assert "GiB of memory" in outcome.err  # the estimate comes first
    card = json.loads(outcome.out)
    assert card["rows"] == ROWS and card["queries"] == 100
    assert [line["share"] for line in card["lines"]] == [1.0, 0.1, 0.01, 0.001, 0.0001]
    assert card["lines"][0]["recall_at_10"] >= 0.93 and min(line["recall_at_10"] for line in card["lines"][1:]) >= 0.98
    good = [step for step in card["steps"] if step["recall"] >= 0.95]
    assert good

    cohort = open_cohort(uri)
    ids = cohort.vectors(columns=("tile_id",))
    np.testing.assert_array_equal(ids.matrix, matrix)
    tile_id = ids.table["tile_id"].to_numpy()
    rng = np.random.default_rng(11)
    own = rng.choice(ROWS, 60, replace=False)
    wide = matrix[own].astype(np.float64)
    near = np.empty((len(own), 11), np.int64)
    for i, query in enumerate(wide):
        score = matrix @ query.astype(np.float32)
        some = np.argpartition(-score, 200)[:200]
        near[i] = some[np.argsort(-(matrix[some].astype(np.float64) @ query))[:11]]

    # LanceDB asked directly with the card's settings finds what the card says.
    table = lancedb.connect(uri).open_table(card["table"])
    for step in card["steps"]:
        shares = []
        for i, row in enumerate(own):
            query = table.search(matrix[row]).distance_type("cosine").refine_factor(step["refine"])
            query = query.nprobes(step["probes"] or card["partitions"]).limit(11).select(["tile_id", "_distance"])
            got = [t for t in query.to_arrow()["tile_id"].to_pylist() if t != tile_id[row]][:10]
            shares.append(len(set(tile_id[near[i][near[i] != row][:10]].tolist()) & set(got)) / 10)
        # Two samples of rows: the card's and this one.
        assert np.mean(shares) == pytest.approx(step["recall"], abs=0.06)

    # A search that cannot hold the vectors goes by the index and reaches the target; asked for more, it is exact.
    tight = open_cohort(uri, memory_budget=1 << 20)
    shares = []
    for i, row in enumerate(own):
        results = tight.search(matrix[row], k=10)
        assert results.plan.engine.startswith("LanceDB index") and results.plan.recall >= 0.95
        shares.append(np.isin(results.tile_ids, tile_id[near[i][:10]]).mean())
    assert np.mean(shares) >= 0.9
    exact = tight.search(matrix[own[0]], k=10, target_recall=1)
    assert exact.plan.engine.startswith("streaming")
    assert exact.tile_ids.tolist() == tile_id[near[0][:10]].tolist()
    for where, share in (("tissue < 0.1", 0.1), ("tissue < 0.01", 0.01), ("tissue < 0.001", 0.001)):
        allowed = np.tile(np.linspace(0, 1, module.TILES_PER_SLIDE, dtype=np.float32), ROWS // module.TILES_PER_SLIDE)
        allowed = allowed < share
        shares = []
        for row in own[:20]:
            score = np.where(allowed, matrix @ matrix[row], -np.inf)
            true = tile_id[np.argsort(-score)[:10]]
            shares.append(np.isin(tight.search(matrix[row], k=10, where=where).tile_ids, true).mean())
        assert np.mean(shares) >= 0.98, where
