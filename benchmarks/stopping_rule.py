"""How close the label-free choice of a checkpoint comes to the best one, which only labels can name.

The run looks at itself many times. Labelled tiles that it does not train on tell how good each look was; the rule
knows nothing of them. The best look in hindsight is the largest of many noisy figures, so that even a perfect rule
would fall short of it a little; the standard error of one figure is printed beside.

    python benchmarks/stopping_rule.py configs/encoder/contrastive-small.yaml --seeds 3
    python benchmarks/stopping_rule.py configs/encoder/contrastive-small.yaml --tiles DIR --labelled DIR
    python benchmarks/stopping_rule.py configs/encoder/sgcl-small.yaml --slides DIR --labelled DIR
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path

import numpy as np

from encoder.config import TrainConfig, load_config
from encoder.metrics_log import read_metrics
from encoder.progress import SilentReporter
from encoder.tiles import TileFolder, TileSource
from encoder.train import train
from indexer.synthetic import draw_cohort
from indexer.synthetic_tiles import SyntheticTiles
from ui.sources import training_source


def measure(
    config: TrainConfig, source: TileSource, labelled: TileSource, out: Path
) -> tuple[float, float, float, int]:
    """Train; returns the accuracy of the chosen look, of the best and of the last, and the chosen step."""
    train(config, source, out, SilentReporter(), labelled=labelled)
    kept_step = json.loads((out / "checkpoint" / "encoder.json").read_text())["metrics"]["kept_step"]
    looks = [line for line in read_metrics(out / "metrics.jsonl") if line["kind"] == "monitor"]
    accuracy = [look["knn_balanced_accuracy"] for look in looks]
    chosen = next(i for i, look in enumerate(looks) if look["step"] == kept_step)
    sys.stdout.write("  looks: " + " ".join(f"{value:.3f}" for value in accuracy) + "\n")
    sys.stdout.write("  score: " + " ".join(f"{look['score']:.3f}" for look in looks) + "\n")
    return accuracy[chosen], max(accuracy), accuracy[-1], int(kept_step)


def open_sources(given: argparse.Namespace, config: TrainConfig, scratch: Path) -> tuple[TileSource, TileSource]:
    """The tiles to train on, and labelled ones to judge by."""
    if given.tiles or given.slides:
        labelled = TileFolder(given.labelled, config.tile_px)
        source = training_source(
            config,
            tiles=given.tiles or [],
            slides=given.slides or [],
            store=None,
            manifest=given.manifest,
            cohort_mpp=None,
            max_tiles=given.max_tiles,
            reporter=SilentReporter(),
        )
        return source, labelled
    truths = draw_cohort(scratch / "cohort", 12, seed=3, width0=4096, height0=4096, region_um=1200.0)
    return SyntheticTiles(truths[:6], config.tile_px), SyntheticTiles(truths[6:], config.tile_px)


def main() -> None:
    """Train with each seed and print how the choice compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="training config")
    parser.add_argument("overrides", nargs="*", help="key=value over it")
    parser.add_argument("--tiles", action="append", type=Path, help="tile folder to train on")
    parser.add_argument("--slides", action="append", type=Path, help="slides to train on")
    parser.add_argument("--manifest", type=Path, help="of the slides")
    parser.add_argument("--labelled", type=Path, help="labelled tile folder to judge by; the default draws slides")
    parser.add_argument("--max-tiles", type=int, default=4000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=800, help="steps of a run")
    parser.add_argument("--looks", type=int, default=16)
    given = parser.parse_intermixed_args()
    if (given.tiles or given.slides) and not given.labelled:
        parser.error("--tiles and --slides need --labelled tiles to judge by")
    fixed = [f"max_steps={given.steps}", f"monitor.looks={given.looks}", "max_seconds=null", "tensorboard=false"]
    gaps = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        for seed in range(given.seeds):
            wide = ["monitor.labelled_tiles=5000", f"seed={seed}"]
            config = load_config(given.config, [*fixed, *wide, *given.overrides])
            if seed == 0:
                source, labelled = open_sources(given, config, scratch)
            chosen, best, last, step = measure(config, source, labelled, scratch / f"run-{seed}")
            error = math.sqrt(best * (1 - best) / len(labelled))
            gaps.append(best - chosen)
            sys.stdout.write(
                f"seed {seed}: chosen {chosen:.3f} (step {step}), best in hindsight {best:.3f}, last {last:.3f}; "
                f"{len(source)} tiles trained on, {len(labelled)} judged by, standard error about {error:.3f}\n"
            )
            sys.stdout.flush()
    sys.stdout.write(f"best minus chosen: mean {np.mean(gaps):.3f}, largest {max(gaps):.3f}\n")


if __name__ == "__main__":
    main()
