"""The small sgcl config against its untrained network and against instance discrimination alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from encoder.config import load_config
from encoder.progress import SilentReporter
from encoder.registry import load_encoder
from encoder.train import train
from indexer.synthetic import draw_cohort
from indexer.synthetic_tiles import SyntheticTiles
from tests.encoder.judging import class_accuracy, embedded, neighbour_auc, untrained_encoders

STEPS = 240  # half of what the config has: the gain is there by then, and hardly after a quarter
LOOKS = 3  # a look takes as long as ten steps
ALONE = ["method.spatial_weight=0", "method.corner_weight=0"]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[SyntheticTiles, SyntheticTiles]:
    """Tiles of six slides to train on, and of six others to judge by; regions are wider than neighbourhoods."""
    folder = tmp_path_factory.mktemp("cohort")
    truths = draw_cohort(folder, 12, seed=3, width0=4096, height0=4096, region_um=1200.0)
    return SyntheticTiles(truths[:6], 128), SyntheticTiles(truths[6:], 128)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_small_run_beats_its_untrained_network_and_instance_discrimination_alone(
    cohort: tuple[SyntheticTiles, SyntheticTiles], tmp_path: Path
) -> None:
    seen, unseen = cohort
    path = Path(__file__).parents[2] / "configs" / "encoder" / "sgcl-small.yaml"
    accuracy, neighbours = [], []
    for seed in range(3):
        given = [
            f"seed={seed}",
            f"max_steps={STEPS}",
            f"monitor.looks={LOOKS}",
            "max_seconds=null",
            "tensorboard=false",
        ]
        config = load_config(path, given)
        vectors = {"untrained": [embedded(e, unseen) for e in untrained_encoders(config, seen)]}
        for name, changes in (("sgcl", []), ("alone", ALONE)):
            out = tmp_path / f"{name}-{seed}"
            train(load_config(path, [*given, *changes]), seen, out, SilentReporter(), "cpu")
            vectors[name] = [embedded(load_encoder(str(out), "cpu"), unseen)]
        accuracy.append({n: round(max(class_accuracy(v, unseen) for v in vs), 3) for n, vs in vectors.items()})
        neighbours.append({n: round(max(neighbour_auc(v, unseen) for v in vs), 3) for n, vs in vectors.items()})
    print("class accuracy:", accuracy, "neighbour AUC:", neighbours)
    for figures in (accuracy, neighbours):
        means = {name: float(np.mean([seed[name] for seed in figures])) for name in figures[0]}
        assert means["sgcl"] > means["alone"] and means["sgcl"] > means["untrained"], (accuracy, neighbours)
        # No seed falls behind its own untrained network.
        assert all(seed["sgcl"] > seed["untrained"] for seed in figures), (accuracy, neighbours)
