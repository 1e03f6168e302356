"""How far a run is, and what learning rate belongs there."""

from __future__ import annotations

import math

from encoder.config import OptimiserConfig


def progress(step: int, max_steps: int, seconds: float, max_seconds: float | None) -> float:
    """Share of the run that is done, 0..1: the larger of its share of steps and its share of time.

    Args:
        step: steps done.
        max_steps: steps of the whole run.
        seconds: time spent, resumed parts together.
        max_seconds: time allowed; None for no limit.
    """
    share = step / max_steps
    if max_seconds is not None:
        share = max(share, seconds / max_seconds)
    return min(share, 1.0)


def learning_rate(config: OptimiserConfig, step: int, done: float) -> float:
    """Learning rate of the step after `step`: linear warm-up by steps, cosine by progress `done` in 0..1."""
    warm = min(1.0, (step + 1) / (config.warmup_steps + 1))
    cosine = 0.5 * (1 + math.cos(math.pi * done))
    return config.lr * warm * (config.final_lr_share + (1 - config.final_lr_share) * cosine)
