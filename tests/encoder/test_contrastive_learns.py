"""The small contrastive config against its own untrained network, on slides that it never saw."""

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
from tests.encoder.judging import class_accuracy, embedded, untrained_encoders

STEPS = 120  # a quarter of what the config has: the gain is there by then
LOOKS = 3  # a look takes as long as ten steps


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[SyntheticTiles, SyntheticTiles]:
    """Tiles of six slides to train on, and of six others to judge by."""
    truths = draw_cohort(tmp_path_factory.mktemp("cohort"), 12, seed=3, width0=2048, height0=2048)
    return SyntheticTiles(truths[:6], 128, stride_tiles=0.5), SyntheticTiles(truths[6:], 128, stride_tiles=0.5)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_small_run_beats_its_untrained_network_on_unseen_slides(
    cohort: tuple[SyntheticTiles, SyntheticTiles], tmp_path: Path
) -> None:
    seen, unseen = cohort
    path = Path(__file__).parents[2] / "configs" / "encoder" / "contrastive-small.yaml"
    figures = []
    for seed in range(3):
        given = [
            f"seed={seed}",
            f"max_steps={STEPS}",
            f"monitor.looks={LOOKS}",
            "max_seconds=null",
            "tensorboard=false",
        ]
        config = load_config(path, given)
        untrained = max(class_accuracy(embedded(e, unseen), unseen) for e in untrained_encoders(config, seen))
        train(config, seen, tmp_path / str(seed), SilentReporter(), "cpu")
        trained = class_accuracy(embedded(load_encoder(str(tmp_path / str(seed)), "cpu"), unseen), unseen)
        figures.append((round(trained, 3), round(untrained, 3)))
    print("trained, untrained:", figures)
    trained_all, untrained_all = zip(*figures, strict=True)
    # No seed may undo the gain, not even the worst of one side against the best of the other.
    assert min(trained_all) > max(untrained_all), figures
    assert float(np.mean(trained_all)) > float(np.mean(untrained_all)) + 0.04, figures
