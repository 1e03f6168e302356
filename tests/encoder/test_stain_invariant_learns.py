"""The small stain-invariant config against the same run without stain swap, under stains that neither saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from encoder.config import load_config
from encoder.embed import TileEncoder
from encoder.progress import SilentReporter
from encoder.registry import load_encoder
from encoder.train import train
from indexer.synthetic import draw_cohort, draw_slide
from indexer.synthetic_tiles import SyntheticTiles
from tests.encoder.judging import class_accuracy, embedded

STEPS = 200  # half of what the config has
HELD_OUT = (3, 8, 21)  # scanners drawn from numbers; the cohort has the presets


class Cohort:
    """Tiles of six slides to train on, six others to classify, and two tissues under each of the held-out stains."""

    def __init__(self, folder: Path) -> None:
        truths = draw_cohort(folder / "slides", 12, seed=3, width0=2048, height0=2048)
        self.seen = SyntheticTiles(truths[:6], 128, stride_tiles=0.5)
        self.unseen = SyntheticTiles(truths[6:], 128, stride_tiles=0.5)
        self.variants = []
        for scanner in HELD_OUT:
            drawn = []
            for seed in (301, 302):
                path = folder / f"{seed}-{scanner}.tif"
                drawn.append(draw_slide(path, seed=seed, scanner=scanner, width0=2048, height0=2048))
            self.variants.append(SyntheticTiles(drawn, 128))
        assert all(tiles.names[0].split("/")[1] == self.variants[0].names[0].split("/")[1] for tiles in self.variants)
        assert len({len(tiles) for tiles in self.variants}) == 1


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return Cohort(tmp_path_factory.mktemp("cohort"))


def stain_ratio(encoder: TileEncoder, variants: list[SyntheticTiles]) -> float:
    """Mean cosine distance of one tile under two stains, as a share of that of two tiles under one stain."""
    vectors = torch.stack([embedded(encoder, tiles) for tiles in variants])
    same, different = [], []
    for i in range(len(vectors)):
        cosine = vectors[i] @ vectors[i].T
        off = ~torch.eye(len(cosine), dtype=torch.bool)
        different.append(float((1 - cosine[off]).mean()))
        same += [float((1 - (vectors[i] * vectors[j]).sum(dim=1)).mean()) for j in range(i)]
    return float(np.mean(same) / np.mean(different))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_stain_swap_draws_stain_variants_together(cohort: Cohort, tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / "configs" / "encoder" / "stain_invariant-small.yaml"
    ratios, accuracies = [], []
    for seed in range(3):
        ratio, accuracy = {}, {}
        for name, changes in (("swap", []), ("control", ["method.swap=false"])):
            given = [f"seed={seed}", f"max_steps={STEPS}", "max_seconds=null", "tensorboard=false", *changes]
            out = tmp_path / f"{name}-{seed}"
            train(load_config(path, given), cohort.seen, out, SilentReporter(), "cpu")
            encoder = load_encoder(str(out), "cpu")
            ratio[name] = round(stain_ratio(encoder, cohort.variants), 3)
            accuracy[name] = round(class_accuracy(embedded(encoder, cohort.unseen), cohort.unseen), 3)
        ratios.append(ratio)
        accuracies.append(accuracy)
    print("stain ratio:", ratios, "class accuracy:", accuracies)
    assert all(ratio["swap"] < ratio["control"] / 4 for ratio in ratios), ratios
    means = {name: float(np.mean([accuracy[name] for accuracy in accuracies])) for name in ("swap", "control")}
    assert means["swap"] >= means["control"], accuracies
