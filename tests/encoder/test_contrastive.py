"""The contrastive loss against a literal loop, and the method's parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from encoder.config import TrainConfig
from encoder.errors import ConfigError, EncoderError
from encoder.methods.catalogue import build_method, method_names
from encoder.methods.contrastive import Contrastive, nt_xent
from encoder.methods.protocol import Batch

NETWORK = {"model": "resnet18", "arguments": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}}


class Blank:
    tile_px = 32
    names = ["a", "b", "c", "d"]  # noqa: RUF012 - a stand-in, never changed
    slide_ids = labels = groups = splits = positions_px0 = extents_px0 = None

    def __len__(self) -> int:
        return 4

    def images(self, indices: np.ndarray) -> np.ndarray:
        return np.zeros((len(indices), 32, 32, 3), np.uint8)


def config(**method: object) -> TrainConfig:
    options = {"name": "contrastive", "network": NETWORK, "hidden_dim": 16, "projection_dim": 8} | method
    return TrainConfig.model_validate({"name": "t", "method": options, "tile_px": 32, "batch": 4, "max_steps": 2})


@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_nt_xent_equals_its_definition_in_float64(temperature: float) -> None:
    vectors = torch.nn.functional.normalize(torch.randn(12, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    z = vectors.double().numpy()
    total = 0.0
    for i in range(12):
        partner = (i + 6) % 12
        others = [np.exp(z[i] @ z[k] / temperature) for k in range(12) if k != i]
        total -= np.log(np.exp(z[i] @ z[partner] / temperature) / sum(others))
    assert nt_xent(vectors, temperature).item() == pytest.approx(total / 12, abs=1e-5)


def test_nt_xent_is_lowest_for_pairs_that_agree() -> None:
    pairs = torch.eye(4).repeat(2, 1)
    shuffled = torch.cat([torch.eye(4), torch.eye(4).roll(1, 0)])
    assert nt_xent(pairs, 0.1) < 0.01 < nt_xent(shuffled, 0.1)


def test_a_step_depends_on_the_generator_alone_and_reaches_every_weight() -> None:
    torch.manual_seed(0)
    method = build_method(config(), Blank())
    tiles = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8))

    def loss(seed: int) -> torch.Tensor:
        batch = Batch(tiles, torch.arange(4), torch.Generator().manual_seed(seed), 0.0)
        return method.losses(batch, "network")["loss"]

    first = loss(1)
    assert torch.equal(first, loss(1)) and not torch.equal(first, loss(2))
    first.backward()
    network = dict(method.phases()["network"].named_parameters())
    assert all(weight.grad is not None for weight in network.values())
    # Residual branches begin at zero, so at the first step only what lies outside them must move.
    for name in ("backbone.conv1.weight", "head.0.weight", "head.3.weight"):
        assert network[name].grad.abs().sum() > 0  # type: ignore[union-attr]


def test_the_backbone_is_kept_and_rebuilt_from_its_architecture() -> None:
    from encoder.architectures import build_network

    kept = build_method(config(), Blank()).kept()
    again = build_network(kept.architecture)
    again.load_state_dict(kept.module.state_dict())
    tiles = torch.rand(2, 3, 32, 32)
    assert torch.equal(again.eval()(tiles), kept.module.eval()(tiles)) and again(tiles).shape == (2, 16)
    assert kept.pooling == "avg"


def test_options_that_do_not_fit_are_refused() -> None:
    assert "contrastive" in method_names()
    with pytest.raises(ConfigError, match="view_px is 64, larger than the 32 px"):
        Contrastive(config(view_px=64), Blank())
    with pytest.raises(EncoderError, match="timm cannot build resnet18"):
        Contrastive(config(network={"model": "resnet18", "arguments": {"stories": 3}}), Blank())
