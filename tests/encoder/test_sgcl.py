"""SGCL from outside: what it refuses, what it settles on, exact resume, faults that are options."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from encoder.config import TrainConfig
from encoder.errors import ConfigError, TileError, UsageError
from encoder.metrics_log import read_metrics
from encoder.progress import SilentReporter
from encoder.registry import load_encoder
from encoder.train import train
from tests.encoder.interrupted import StopAfter, weights

NETWORK = {"model": "resnet18", "arguments": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}}


class Placed:
    """Small tiles of two slides, in rows of ten without gaps."""

    tile_px = 64
    labels = groups = splits = None

    def __init__(self, count: int = 120, broken: tuple[int, ...] = ()) -> None:
        number = np.arange(count)
        self.names = [f"tile{i}" for i in number]
        self.slide_ids: list[str] | None = ["a" if i < count // 2 else "b" for i in number]
        self.positions_px0: np.ndarray | None = np.stack([number % 10 * 64, number // 10 * 64], axis=1)
        self.extents_px0: np.ndarray | None = np.full(count, 64)
        self._broken = broken
        rng = np.random.default_rng(0)
        self._tiles = rng.integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.names)

    def images(self, indices: np.ndarray) -> np.ndarray:
        bad = [self.names[int(i)] for i in indices if int(i) in self._broken]
        if bad:
            raise TileError(f"Cannot read {', '.join(bad)}.")
        return self._tiles[indices]


def config(method: dict[str, object] | None = None, **changes: object) -> TrainConfig:
    options = {"name": "sgcl", "network": NETWORK, "hidden_dim": 16, "projection_dim": 8} | (method or {})
    values: dict[str, object] = {
        "name": "tiny", "tile_px": 64, "batch": 40, "max_steps": 8, "log_every_steps": 1, "save_every_steps": 2,
        "tensorboard": False, "monitor": {"looks": 2, "tiles": 12, "k": 3}, "method": options,
        "optimiser": {"warmup_steps": 2},
    }  # fmt: skip
    return TrainConfig.model_validate(values | changes)


def test_interrupted_in_an_epoch_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    whole = train(config(), Placed(), tmp_path / "whole", SilentReporter(), "cpu")
    # Three steps are an epoch: the first stop falls into the second one, the other between two. A resumed run
    # tells its reporter once more, of the steps before.
    assert train(config(), Placed(), tmp_path / "parts", StopAfter(4), "cpu").step == 4
    assert train(config(), Placed(), tmp_path / "parts", StopAfter(3), "cpu").step == 6
    rest = train(config(), Placed(), tmp_path / "parts", SilentReporter(), "cpu")
    assert rest.finished and rest.spec == whole.spec
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    curves = [
        [[line.get(key) for key in ("step", "loss", "spatial_loss", "positives", "score")] for line in lines]
        for lines in (read_metrics(run / "metrics.jsonl") for run in (tmp_path / "whole", tmp_path / "parts"))
    ]
    assert curves[0] == curves[1] and len(curves[0]) == 10


def test_the_sizes_that_a_set_allows_are_shown_and_stored(tmp_path: Path) -> None:
    reporter = StopAfter(0)
    train(config(), Placed(), tmp_path / "run", reporter, "cpu")
    written = json.loads((tmp_path / "run" / "checkpoint" / "encoder.json").read_text())
    settled = written["provenance"]["settled"]
    assert settled == {
        "instance_negatives": 60, "clusters": 4, "semantic_nearest": 6, "semantic_kept": 6, "ranked_tiles": 120,
        "hard_list": 24, "hard_negatives": 24, "spatial_neighbours_mean": settled["spatial_neighbours_mean"],
        "tiles_without_neighbours": 0,
    }  # fmt: skip
    # A tile of the middle has 24, one in a corner 8.
    assert 8 < settled["spatial_neighbours_mean"] < 24
    assert any(note.startswith("sgcl on 120 tiles: instance negatives 60, clusters 4") for note in reporter.notes)
    assert load_encoder(str(tmp_path / "run"), "cpu").spec.method == "sgcl"


def test_what_cannot_work_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    def refused(source: Placed, kind: type[Exception], match: str, **changes: object) -> None:
        with pytest.raises(kind, match=match):
            train(config(**changes), source, tmp_path / "run", SilentReporter(), "cpu")  # type: ignore[arg-type]
        assert not (tmp_path / "run" / "metrics.jsonl").exists()

    refused(Placed(99), UsageError, "There are 99 tiles; sgcl needs at least 100")
    refused(Placed(), UsageError, "fewer than the 128 of one step", batch=128)
    refused(Placed(), UsageError, "64 px, smaller than the 80 px", tile_px=80)
    refused(Placed(), ConfigError, "view_px is 80, larger than the 64 px", method={"view_px": 80})
    refused(Placed(), ConfigError, "corner_px is 40, larger than the 32 px", method={"corner_px": 40})
    refused(Placed(), ConfigError, "corner_px is 14: such views shrink.* to 17 or more", method={"corner_px": 14})
    refused(Placed(), ConfigError, r"max_steps=5 is less than two passes over 120 tiles \(6 steps\)", max_steps=5)
    for name, shown in (("slide_ids", "slide ids"), ("positions_px0", "positions"), ("extents_px0", "sides")):
        without = Placed()
        setattr(without, name, None)
        refused(without, UsageError, f"The tiles have no {shown}; sgcl learns from where tiles lie")
    scattered = Placed()
    scattered.slide_ids = [f"slide{i}" for i in range(120)]
    refused(scattered, UsageError, "No two tiles of a slide lie within 3 tile sides")
    with pytest.raises(ValueError, match="hard_shares"):
        config({"hard_shares": 0.5})


def test_a_run_of_another_method_is_not_gone_on_with(tmp_path: Path) -> None:
    plain = config({"name": "contrastive"})
    train(plain, Placed(), tmp_path / "run", StopAfter(2), "cpu")
    with pytest.raises(UsageError, match=r"another config: method\.name \(contrastive there, sgcl now\)"):
        train(config(), Placed(), tmp_path / "run", SilentReporter(), "cpu")


def test_instance_discrimination_alone_needs_no_places(tmp_path: Path) -> None:
    source = Placed()
    source.slide_ids = source.positions_px0 = source.extents_px0 = None
    alone = config({"spatial_weight": 0, "corner_weight": 0}, max_steps=2)
    train(alone, source, tmp_path / "run", SilentReporter(), "cpu")
    line = read_metrics(tmp_path / "run" / "metrics.jsonl")[0]
    assert line["loss"] == line["instance_loss"] and not {"spatial_loss", "corner_loss"} & set(line)


def test_broken_tiles_are_skipped_and_listed(tmp_path: Path) -> None:
    result = train(config(), Placed(broken=(7, 8)), tmp_path / "run", SilentReporter(), "cpu")
    assert result.finished and [name for name, _ in result.broken] == ["tile7", "tile8"]
