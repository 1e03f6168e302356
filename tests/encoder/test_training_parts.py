"""The small parts of the training loop: schedule, sampler, loader, optimiser, random states, statistics."""

from __future__ import annotations

import os
import random
import signal
import threading

import numpy as np
import pytest
import torch
from torch import nn

from encoder.batchnorm import recalibrate
from encoder.config import OptimiserConfig
from encoder.errors import TileError
from encoder.interrupt import StopRequest
from encoder.loader import BatchLoader, GoodTiles
from encoder.optimise import backward, build_optimisers, set_learning_rate
from encoder.processes import ALONE
from encoder.rng import capture_rng, restore_rng, rng_kept, seed_all
from encoder.sampler import BatchSampler
from encoder.schedule import learning_rate, progress


class Numbered:
    """Tiles whose every pixel is their number; some are broken."""

    tile_px = 2
    slide_ids = labels = groups = splits = positions_px0 = extents_px0 = None

    def __init__(self, count: int, broken: tuple[int, ...] = ()) -> None:
        self.names = [f"tile{i}" for i in range(count)]
        self._broken = broken

    def __len__(self) -> int:
        return len(self.names)

    def images(self, indices: np.ndarray) -> np.ndarray:
        bad = [self.names[int(i)] for i in indices if int(i) in self._broken]
        if bad:
            raise TileError(f"broken: {bad}")
        return np.broadcast_to(np.asarray(indices, np.uint8)[:, None, None, None], (len(indices), 2, 2, 3)).copy()


def test_progress_is_the_further_of_steps_and_time() -> None:
    assert progress(5, 10, 1e9, None) == 0.5
    assert progress(5, 10, 20, 100) == 0.5
    assert progress(5, 10, 80, 100) == 0.8
    assert progress(5, 10, 300, 100) == 1.0


def test_rate_rises_then_falls_to_its_share() -> None:
    config = OptimiserConfig(lr=2.0, warmup_steps=9, final_lr_share=0.1)
    assert learning_rate(config, 0, 0.0) == pytest.approx(0.2)
    assert learning_rate(config, 9, 0.0) == pytest.approx(2.0)
    assert learning_rate(config, 99, 0.5) == pytest.approx(2.0 * 0.55)
    assert learning_rate(config, 99, 1.0) == pytest.approx(0.2)


def test_an_epoch_shows_every_tile_once_and_steps_are_independent_of_order() -> None:
    sampler = BatchSampler(23, 5, seed=3)
    assert sampler.steps_per_epoch == 4
    epochs = [np.concatenate([sampler.indices(e * 4 + s) for s in range(4)]) for e in range(2)]
    assert all(len(set(epoch.tolist())) == 20 for epoch in epochs)
    assert epochs[0].tolist() != epochs[1].tolist()
    assert BatchSampler(23, 5, 3).indices(6).tolist() == sampler.indices(6).tolist()
    assert BatchSampler(23, 5, 4).indices(6).tolist() != sampler.indices(6).tolist()


def test_broken_tiles_are_replaced_whenever_they_are_met() -> None:
    source = Numbered(8, broken=(2, 3, 7))
    fresh, experienced = GoodTiles(source), GoodTiles(source)
    experienced.read(np.arange(8))
    assert sorted(experienced.broken) == [2, 3, 7]
    for wanted in ([2, 0], [3, 7], [7, 1], [2, 3]):
        a, pixels = fresh.read(np.array(wanted))
        b, _ = experienced.read(np.array(wanted))
        assert a.tolist() == b.tolist() == [{2: 4, 3: 4, 7: 0}.get(i, i) for i in wanted]
        assert pixels[:, 0, 0, 0].tolist() == a.tolist()


def test_mostly_broken_sources_are_refused() -> None:
    with pytest.raises(TileError, match="More than half of the 4 tiles"):
        GoodTiles(Numbered(4, broken=(0, 1, 2))).read(np.arange(4))


def test_loader_reads_in_order_ends_its_thread_and_passes_errors_on() -> None:
    sampler = BatchSampler(10, 3, 0)
    before = threading.active_count()
    with BatchLoader(GoodTiles(Numbered(10)), sampler, 2, 30, slice(None), pin=False) as loader:
        for step in range(2, 9):
            batch = loader.next()
            assert batch.step == step and batch.indices.tolist() == sampler.indices(step).tolist()
            assert batch.tiles[:, 0, 0, 0].tolist() == batch.indices.tolist()
    assert threading.active_count() == before
    with (
        BatchLoader(GoodTiles(Numbered(10, tuple(range(10)))), sampler, 0, 9, slice(None), pin=False) as loader,
        pytest.raises(TileError, match="More than half"),
    ):
        loader.next()
    assert threading.active_count() == before


def test_only_matrices_are_decayed_and_gradients_are_clipped() -> None:
    linear = nn.Linear(4, 4)
    module = nn.Sequential(linear, nn.BatchNorm1d(4))
    optimisers = build_optimisers({"a": module}, OptimiserConfig(kind="sgd", weight_decay=0.3))
    groups = optimisers["a"].param_groups
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(1, 0.3), (3, 0.0)]
    set_learning_rate(optimisers, 0.125)
    assert all(g["lr"] == 0.125 for g in groups)
    loss = 100 * module(torch.randn(8, 4)).pow(2).sum() + linear.weight.sum()
    losses = {"loss": loss, "part": linear.bias.sum()}
    means, norm = backward(losses, optimisers["a"], clip_norm=0.5, processes=ALONE)
    gradient = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
    assert means == {"loss": pytest.approx(loss.item()), "part": pytest.approx(linear.bias.sum().item())} and norm > 1
    assert gradient.norm().item() == pytest.approx(0.5, rel=1e-3)


def test_random_states_come_back_and_survive_a_file(tmp_path: object) -> None:
    import io

    seed_all(3)
    np.random.standard_normal()
    stream = io.BytesIO()
    torch.save(capture_rng(), stream)
    drawn = (random.random(), np.random.standard_normal(3).tolist(), torch.rand(3).tolist())
    stream.seek(0)
    restore_rng(torch.load(stream, weights_only=True))
    assert (random.random(), np.random.standard_normal(3).tolist(), torch.rand(3).tolist()) == drawn


def test_global_generators_are_left_as_found() -> None:
    seed_all(1)
    with rng_kept():
        seed_all(2)
        torch.rand(5)
    left = torch.rand(3)
    seed_all(1)
    assert torch.equal(left, torch.rand(3))


def test_statistics_become_those_of_the_plain_tiles_and_nothing_else_changes() -> None:
    torch.manual_seed(0)
    convolution, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    module = nn.Sequential(convolution, norm, nn.Dropout(0.5))
    module.train()
    for _ in range(5):
        module(torch.randn(8, 3, 8, 8) * 9)
    weight = convolution.weight.clone()
    batches = [torch.randn(16, 3, 8, 8) + 2 for _ in range(3)]
    recalibrate(module, batches)
    with torch.no_grad():
        outputs = [convolution(batch) for batch in batches]
    mean = torch.stack([o.mean(dim=(0, 2, 3)) for o in outputs]).mean(0)
    variance = torch.stack([o.var(dim=(0, 2, 3)) for o in outputs]).mean(0)
    assert norm.running_mean is not None and norm.running_var is not None
    assert torch.allclose(norm.running_mean, mean, atol=1e-5)
    assert torch.allclose(norm.running_var, variance, atol=1e-4)
    assert norm.momentum == 0.1 and not module.training and not norm.training
    assert torch.equal(convolution.weight, weight)


def test_the_first_interrupt_asks_and_the_second_insists() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
