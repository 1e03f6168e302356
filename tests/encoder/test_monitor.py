"""The monitor and the labelled probe."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from encoder.config import MonitorConfig
from encoder.metrics_log import MetricsLog, read_metrics
from encoder.monitor import LabelledProbe, Monitor, neighbour_overlap, slide_share
from encoder.neighbours import unit
from encoder.progress import SilentReporter
from encoder.registry import load_encoder


class Painted:
    """Tiles of a colour and a texture of their own."""

    tile_px = 32
    slide_ids = positions_px0 = extents_px0 = None

    def __init__(self, labels: list[str], groups: list[str] | None = None, splits: list[str] | None = None) -> None:
        self.labels, self.groups, self.splits = labels, groups, splits
        self.names = [str(i) for i in range(len(labels))]
        rng = np.random.default_rng(0)
        hue = {"a": (200, 60, 120), "b": (90, 60, 180), "": (120, 200, 120)}
        self._tiles = np.stack(
            [
                np.clip(np.array(hue[label]) + rng.normal(0, 12, (32, 32, 3)), 0, 255).astype(np.uint8)
                for label in labels
            ]
        )

    def __len__(self) -> int:
        return len(self.names)

    def images(self, indices: np.ndarray) -> np.ndarray:
        return self._tiles[indices]


def test_looks_are_the_same_for_the_same_encoder_and_seed() -> None:
    source = Painted(["a", "b"] * 20)
    encoder = load_encoder("colour", "cpu")
    config = MonitorConfig(tiles=24)
    first, again = Monitor(source, config, 1), Monitor(source, config, 1)
    assert np.array_equal(first.sample, again.sample) and len(first.sample) == 24
    measured = first.look(encoder)
    assert measured == again.look(encoder)
    assert 1 <= measured["effective_rank"] <= 24 and 0 <= measured["neighbour_agreement"] <= 1
    assert not np.array_equal(first.sample, Monitor(source, config, 2).sample)


def test_overlap_counts_shared_neighbours() -> None:
    vectors = unit(torch.randn(20, 6, generator=torch.Generator().manual_seed(0)))
    assert neighbour_overlap(vectors, vectors, 5) == 1.0
    other = unit(torch.randn(20, 6, generator=torch.Generator().manual_seed(1)))
    near = [set((-(v @ v.T) + 9 * torch.eye(20)).argsort(1)[:, :5].reshape(20, 5)[i].tolist())
            for v in (vectors, other) for i in range(20)]  # fmt: skip
    expected = sum(len(near[i] & near[20 + i]) for i in range(20)) / 100
    assert neighbour_overlap(vectors, other, 5) == pytest.approx(expected)


def test_probe_finds_separable_classes_and_leaves_groups_and_blank_labels_out() -> None:
    encoder = load_encoder("colour", "cpu")
    config = MonitorConfig(k=3)
    assert LabelledProbe(Painted(["a", "b", ""] * 8), config, 0).measure(encoder) == {"knn_balanced_accuracy": 1.0}
    # Each class lies in a group of its own, so its members may never vote for one another.
    grouped = Painted(["a", "b"] * 8, groups=["p", "q"] * 8)
    assert LabelledProbe(grouped, config, 0).measure(encoder) == {"knn_balanced_accuracy": 0.0}
    split = Painted(["a", "b", "a", "b"], splits=["train", "train", "test", "test"])
    assert LabelledProbe(split, MonitorConfig(k=1), 0).measure(encoder) == {"knn_balanced_accuracy": 1.0}
    assert not LabelledProbe(Painted(["a", "a", ""]), config, 0).usable


def test_metrics_of_steps_after_the_resumed_one_are_removed(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, None, 0, SilentReporter()) as log:
        for step in (1, 2, 3):
            log.write("train", step, {"loss": step / 2})
    with path.open("a") as stream:
        stream.write('{"kind": "train", "st')
    with MetricsLog(path, tmp_path / "board", 2, SilentReporter()) as log:
        log.write("monitor", 3, {"score": 1.0})
    assert [(line["kind"], line["step"]) for line in read_metrics(path)] == [("train", 1), ("train", 2), ("monitor", 3)]
    assert list((tmp_path / "board").glob("events*"))


def test_slide_share_is_that_of_an_analysis_of_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = unit(torch.randn(60, 5, generator=generator) + 2 * torch.eye(5)[torch.arange(60) % 3])
    slides = ["abc"[i % 3] for i in range(60)]
    x = rows.double().numpy()
    groups = [x[i::3] for i in range(3)]
    within = sum(((g - g.mean(axis=0)) ** 2).sum() for g in groups) / (60 - 3)
    overall = ((x - x.mean(axis=0)) ** 2).sum() / 59
    expected = 1 - within / overall
    assert slide_share(rows, slides) == pytest.approx(expected, abs=1e-6) and expected > 0.3
    assert slide_share(torch.cat([rows, rows[:7]]), [*slides, *[""] * 7]) == pytest.approx(expected, abs=1e-6)
    # Chance alone puts variance between small slides; the estimate does not count it.
    noise = torch.randn(400, 50, generator=generator)
    assert slide_share(noise, [str(i // 2) for i in range(400)]) == pytest.approx(0, abs=0.02)
    assert slide_share(rows, ["one"] * 60) is None and slide_share(rows, [str(i) for i in range(60)]) is None
    assert slide_share(rows, [""] * 60) is None and slide_share(torch.ones(60, 5), slides) is None


def test_the_score_falls_when_vectors_tell_slides_apart() -> None:
    tiles = Painted(["a", "b"] * 12)
    tiles.slide_ids = ["first", "second"] * 12  # type: ignore[assignment]
    mixed = Painted(["a", "b"] * 12)
    mixed.slide_ids = ["first"] * 12 + ["second"] * 12  # type: ignore[assignment]
    encoder = load_encoder("colour")
    apart, together, unknown = (
        Monitor(source, MonitorConfig(tiles=24), 0).look(encoder) for source in (tiles, mixed, Painted(["a", "b"] * 12))
    )
    assert apart["neighbour_agreement"] == together["neighbour_agreement"] == unknown["neighbour_agreement"]
    assert apart["slide_share"] > 0.5 > together["slide_share"] and "slide_share" not in unknown
    assert apart["score"] == pytest.approx(unknown["score"] * (1 - apart["slide_share"]) ** 4)
    assert apart["score"] < together["score"] <= unknown["score"]
