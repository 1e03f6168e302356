"""A training run killed without warning goes on as if nothing had happened."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from encoder.metrics_log import read_metrics
from encoder.run_folder import RunFolder

SCRIPT = """
import os, signal, sys
import numpy as np
import torch
from encoder.config import TrainConfig
from encoder.progress import SilentReporter
from encoder.train import train

torch.set_num_threads(1)

class Noise:
    tile_px = 32
    slide_ids = labels = groups = splits = positions_px0 = extents_px0 = None
    names = [f"tile{i}" for i in range(40)]
    tiles = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    def __len__(self): return 40
    def images(self, indices): return self.tiles[indices]

class Killer(SilentReporter):
    left = int(sys.argv[2])
    def advance(self, n=1, detail=""):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

config = TrainConfig.model_validate({
    "name": "tiny", "tile_px": 32, "batch": 8, "max_steps": 16, "log_every_steps": 1, "save_every_steps": 4,
    "tensorboard": False, "monitor": {"looks": 3, "tiles": 12},
    "method": {"name": "contrastive", "hidden_dim": 16, "projection_dim": 8, "network": {
        "model": "resnet18", "arguments": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}}},
})
train(config, Noise(), sys.argv[1], Killer(), "cpu")
"""


def run(folder: Path, kill_after: int) -> int:
    """Train in a process of its own; returns its exit code."""
    return subprocess.run([sys.executable, "-c", SCRIPT, str(folder), str(kill_after)], timeout=250).returncode


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    assert run(tmp_path / "whole", 0) == 0
    # The first kill falls between two saved states, the second one soon after the resumed run began.
    assert run(tmp_path / "parts", 10) == -signal.SIGKILL
    state = RunFolder(tmp_path / "parts").load_state()
    assert state is not None and state["step"] == 8
    assert run(tmp_path / "parts", 4) == -signal.SIGKILL
    assert run(tmp_path / "parts", 0) == 0
    whole, parts = (
        (tmp_path / name / "checkpoint" / "encoder.safetensors").read_bytes() for name in ("whole", "parts")
    )
    assert whole == parts
    lines = [
        [(line["kind"], line["step"], line.get("loss"), line.get("score")) for line in read_metrics(path)]
        for path in (tmp_path / "whole" / "metrics.jsonl", tmp_path / "parts" / "metrics.jsonl")
    ]
    assert lines[0] == lines[1] and len(lines[0]) == 19
    assert not list(tmp_path.glob("*/state.pt*"))
