"""The same run with several seeds: how far the results spread, and the best of them kept without labels."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from encoder.checkpoint import move_folder
from encoder.config import TrainConfig
from encoder.errors import UsageError
from encoder.progress import Reporter
from encoder.tiles import TileSource
from encoder.train import TrainResult, train

SUMMARY_FILE = "seeds.json"


@dataclass(frozen=True)
class Spread:
    """A figure over the seeds."""

    mean: float
    std: float
    least: float
    most: float


@dataclass(frozen=True)
class SeedsResult:
    """How the runs of several seeds ended.

    Attributes:
        finished: whether all of them are complete.
        checkpoint: a copy of the best one's encoder, or None while unfinished.
        best_seed: the seed with the highest score, which knows no labels.
        metrics: of each seed's kept encoder, as the monitor measured them.
        spread: of each metric over the seeds.
    """

    finished: bool
    checkpoint: Path | None
    best_seed: int | None
    metrics: dict[int, dict[str, float]]
    spread: dict[str, Spread]


def train_seeds(
    config: TrainConfig, source: TileSource, out: Path | str, count: int, reporter: Reporter, device: str | None = None
) -> SeedsResult:
    """Train with seeds `config.seed` to `config.seed + count - 1`, each in a folder of its own below `out`.

    The same command goes on where it was stopped, and leaves finished runs as they are.

    Raises:
        UsageError: there are no seeds, or `out` is a run of its own.
    """
    out = Path(out)
    if count < 2:
        raise UsageError(f"{count} seeds have no spread.", fix="Give two or more, or leave --seeds out.")
    if (out / "config.yaml").exists():
        raise UsageError(f"{out} holds a single run.", fix="Give another folder for several seeds.")
    metrics: dict[int, dict[str, float]] = {}
    results: dict[int, TrainResult] = {}
    for seed in range(config.seed, config.seed + count):
        reporter.note(f"seed {seed}")
        results[seed] = train(
            config.model_copy(update={"seed": seed}), source, out / f"seed-{seed}", reporter, device=device
        )
        if not results[seed].finished:
            return SeedsResult(False, None, None, metrics, {})
        metrics[seed] = results[seed].metrics
    best = max(metrics, key=lambda seed: metrics[seed]["score"])
    spread = {name: _spread([each[name] for each in metrics.values()]) for name in metrics[best]}
    checkpoint = out / "checkpoint"
    _copy(results[best].checkpoint, checkpoint)
    result = SeedsResult(True, checkpoint, best, metrics, spread)
    document = {**asdict(result), "checkpoint": checkpoint.name}
    (out / SUMMARY_FILE).write_text(json.dumps(document, indent=2), encoding="utf-8")
    return result


def _spread(values: list[float]) -> Spread:
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)), min(values), max(values))


def _copy(checkpoint: Path | None, to: Path) -> None:
    if checkpoint is None:
        raise UsageError("The best run has no checkpoint.", fix="Give the same command again.")
    fresh = to.with_name(f".{to.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(checkpoint, fresh)
    move_folder(fresh, to)
