"""The training loop from outside: exact resume, refusals, what it leaves behind."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import encoder.training_run as loop
from encoder.__main__ import main
from encoder.config import TrainConfig
from encoder.errors import EncoderError, TileError, UsageError
from encoder.metrics_log import read_metrics
from encoder.progress import SilentReporter
from encoder.registry import load_encoder
from encoder.run_folder import RunFolder
from encoder.tiles import TileFolder
from encoder.train import train
from tests.encoder.interrupted import StopAfter, weights

NETWORK = {"model": "resnet18", "arguments": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}}


class Noise:
    """Small coloured tiles; two classes."""

    tile_px = 32
    slide_ids = groups = splits = positions_px0 = extents_px0 = None

    def __init__(self, count: int = 24, broken: tuple[int, ...] = ()) -> None:
        self.names = [f"tile{i}" for i in range(count)]
        self.labels = ["a" if i % 2 else "b" for i in range(count)]
        self._broken = broken
        rng = np.random.default_rng(0)
        self._tiles = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        self._tiles[::2] //= 2

    def __len__(self) -> int:
        return len(self.names)

    def images(self, indices: np.ndarray) -> np.ndarray:
        bad = [self.names[int(i)] for i in indices if int(i) in self._broken]
        if bad:
            raise TileError(f"Cannot read {', '.join(bad)}.")
        return self._tiles[indices]


def config(**changes: object) -> TrainConfig:
    values: dict[str, object] = {
        "name": "tiny", "tile_px": 32, "batch": 8, "max_steps": 6, "log_every_steps": 1, "save_every_steps": 2,
        "tensorboard": False, "monitor": {"looks": 2, "tiles": 12, "k": 3},
        "method": {"name": "contrastive", "network": NETWORK, "hidden_dim": 16, "projection_dim": 8},
        "optimiser": {"warmup_steps": 2},
    }  # fmt: skip
    return TrainConfig.model_validate(values | changes)


def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    whole = train(config(), Noise(), tmp_path / "whole", SilentReporter(), "cpu")
    assert whole.finished and whole.ran and whole.step == 6
    reporter = StopAfter(3)
    half = train(config(), Noise(), tmp_path / "parts", reporter, "cpu")
    assert not half.finished and half.step == 3 and half.checkpoint is None
    assert "same command goes on" in reporter.notes[-1]
    with pytest.raises(EncoderError, match="no finished checkpoint"):
        load_encoder(str(tmp_path / "parts"), "cpu")
    torch.rand(7)
    np.random.rand(7)
    rest = train(config(), Noise(), tmp_path / "parts", SilentReporter(), "cpu")
    assert rest.finished and weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert rest.spec == whole.spec
    left, right = (
        [
            (line["kind"], line["step"], line.get("loss"), line.get("score"))
            for line in read_metrics(run / "metrics.jsonl")
        ]
        for run in (tmp_path / "whole", tmp_path / "parts")
    )
    assert left == right and len(left) == 8


def test_a_finished_run_is_left_alone_and_its_checkpoint_embeds(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    done = train(config(), Noise(), tmp_path / "run", SilentReporter(), "cpu")
    assert {p.name for p in (tmp_path / "run").iterdir()} == {".lock", "checkpoint", "config.yaml", "metrics.jsonl"}
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file() and p.name != ".lock"}
    again = train(config(), Noise(), tmp_path / "run", SilentReporter(), "cpu")
    assert again.finished and not again.ran and again.spec == done.spec and again.metrics == done.metrics | {
        "kept_step": again.metrics["kept_step"], "steps": 6
    }  # fmt: skip
    assert before == {p: p.stat().st_mtime_ns for p in before}
    encoder = load_encoder(str(tmp_path / "run"), "cpu")
    assert encoder.spec.mpp is None and encoder.spec.method == "contrastive" and encoder.spec.dim == 16
    assert encoder.embed(Noise().images(np.arange(5))).shape == (5, 16)
    written = json.loads((tmp_path / "run" / "checkpoint" / "encoder.json").read_text())
    assert written["provenance"]["tiles"] == 24 and written["provenance"]["seed"] == 0
    assert set(written["provenance"]["versions"]) == {"python", "torch", "timm", "numpy"}
    assert "knn_balanced_accuracy" in written["metrics"]


def test_labels_are_never_used_for_choosing(tmp_path: Path) -> None:
    unlabelled = Noise()
    unlabelled.labels = None  # type: ignore[assignment]
    train(config(), Noise(), tmp_path / "with", SilentReporter(), "cpu")
    train(config(), unlabelled, tmp_path / "without", SilentReporter(), "cpu")
    assert weights(tmp_path / "with") == weights(tmp_path / "without")


def test_the_best_look_is_kept_but_none_of_the_first_third(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([9.0, 8.0, 3.0, 5.0, 5.0, 1.0])
    monkeypatch.setattr(loop.Monitor, "look", lambda self, encoder: {"score": next(scores)})
    looks = {"looks": 6, "tiles": 12, "k": 3}
    train(config(max_steps=12, monitor=looks), Noise(), tmp_path / "run", SilentReporter(), "cpu")
    written = json.loads((tmp_path / "run" / "checkpoint" / "encoder.json").read_text())
    # The second look is at a third of the run; of equals the later one counts.
    assert written["metrics"]["kept_step"] == 4 and written["metrics"]["score"] == 8.0
    scores = iter([9.0, 3.0, 5.0, 5.0, 1.0, 1.0])
    train(config(max_steps=12, monitor=looks), Noise(), tmp_path / "other", SilentReporter(), "cpu")
    written = json.loads((tmp_path / "other" / "checkpoint" / "encoder.json").read_text())
    assert written["metrics"]["kept_step"] == 8


def test_a_folder_of_another_config_or_of_other_tiles_is_refused(tmp_path: Path) -> None:
    train(config(), Noise(), tmp_path / "run", StopAfter(2), "cpu")
    with pytest.raises(UsageError, match=r"another config: optimiser\.lr \(0\.001 there, 0\.1 now\)"):
        train(config(optimiser={"lr": 0.1, "warmup_steps": 2}), Noise(), tmp_path / "run", SilentReporter(), "cpu")
    with pytest.raises(UsageError, match="other tiles than these 25"):
        train(config(), Noise(25), tmp_path / "run", SilentReporter(), "cpu")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty and holds no training run"):
        train(config(), Noise(), tmp_path / "full", SilentReporter(), "cpu")


def test_tiles_that_do_not_fit_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There are 7 tiles, fewer than the 8 of one step"):
        train(config(), Noise(7), tmp_path / "run", SilentReporter(), "cpu")
    with pytest.raises(UsageError, match="32 px, smaller than the 48 px"):
        train(config(tile_px=48), Noise(), tmp_path / "run", SilentReporter(), "cpu")
    assert not (tmp_path / "run").exists()


def test_broken_tiles_are_skipped_counted_and_listed(tmp_path: Path) -> None:
    reporter = SilentReporter()
    result = train(config(), Noise(broken=(3, 4)), tmp_path / "run", reporter, "cpu")
    assert [name for name, _ in result.broken] == ["tile3", "tile4"]
    assert any("2 tiles cannot be read and are skipped" in text for text in reporter.warnings)
    written = json.loads((tmp_path / "run" / "checkpoint" / "encoder.json").read_text())
    assert written["provenance"]["broken_tiles"] == 2


def test_a_loss_that_is_not_finite_stops_with_step_and_tiles_and_keeps_the_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.backward
    calls = []

    def spoilt(losses: dict[str, torch.Tensor], *rest: object) -> tuple[dict[str, float], float]:
        calls.append(losses)
        return real({"loss": losses["loss"] * torch.nan} if len(calls) == 4 else losses, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "backward", spoilt)
    with pytest.raises(EncoderError, match=r"loss of step 4 is not finite.*tile\d+, tile\d+"):
        train(config(), Noise(), tmp_path / "run", SilentReporter(), "cpu")
    state = RunFolder(tmp_path / "run").load_state()
    assert state is not None and state["step"] == 3
    monkeypatch.setattr(loop, "backward", real)
    resumed = train(config(), Noise(), tmp_path / "run", SilentReporter(), "cpu")
    train(config(), Noise(), tmp_path / "whole", SilentReporter(), "cpu")
    assert resumed.finished and weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_a_run_that_time_ends_is_annealed(tmp_path: Path) -> None:
    began = time.monotonic()
    endless = config(max_steps=10**6, max_seconds=2.0, optimiser={"warmup_steps": 0, "final_lr_share": 0.0})
    result = train(endless, Noise(), tmp_path / "run", SilentReporter(), "cpu")
    assert result.finished and 2.0 <= result.seconds < 20 and time.monotonic() - began < 60
    rates = [line["lr"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "train"]
    assert rates[-1] < 0.3 * rates[0] and rates == sorted(rates, reverse=True)


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    train(config(), Noise(), tmp_path / "run", StopAfter(2), "cpu")
    (tmp_path / "run" / "state.pt").write_bytes(b"cut short")
    with pytest.raises(EncoderError, match=r"state\.pt is damaged"):
        train(config(), Noise(), tmp_path / "run", SilentReporter(), "cpu")


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.claim(config())
    with folder.locked(), pytest.raises(UsageError, match="Another process is training"):
        train(config(), Noise(), tmp_path / "run", SilentReporter(), "cpu")


def test_command_line_trains_from_a_folder_and_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    from encoder.config import dump_config

    tiles = Noise()
    (tmp_path / "tiles").mkdir()
    for i in range(12):
        Image.fromarray(tiles.images(np.array([i]))[0]).save(tmp_path / "tiles" / f"{i:02}.png")
    (tmp_path / "c.yaml").write_text(dump_config(config(max_steps=2)))
    common = [str(tmp_path / "c.yaml"), "--tiles", str(tmp_path / "tiles"), "--device", "cpu"]
    assert main([*common, "--out", str(tmp_path / "run"), "batch=4"]) == 0
    assert (tmp_path / "run" / "checkpoint" / "encoder.json").is_file()
    assert main([*common, "--out", str(tmp_path / "run"), "batch=4"]) == 0
    assert "This run is finished" in capsys.readouterr().err
    assert main([*common, "--out", str(tmp_path / "other"), "batch=13"]) == 2
    assert "error: There are 12 tiles, fewer than the 13" in capsys.readouterr().err
    assert main([*common, "--out", str(tmp_path / "other"), "tile_px=64"]) == 2
    assert TileFolder(tmp_path / "tiles").native_px == 32
