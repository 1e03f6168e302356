"""Stain-invariant learning: its target, its pairs, its labels, its network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from encoder.config import TrainConfig
from encoder.errors import UsageError
from encoder.methods.catalogue import build_method
from encoder.methods.nt_xent import nt_xent
from encoder.methods.protocol import Batch
from encoder.methods.stain_invariant import StainInvariant, StainInvariantOptions
from encoder.nets.narrow_resnet import NarrowResnet
from encoder.stain.normalise import fit_stains, restain
from tests.encoder.nuclei_pictures import NucleiTiles

PX = 48
PLAIN = {"min_area": 1.0, "max_area": 1.0, "turn_probability": 0, "noise": 0}


class LabelledTiles(NucleiTiles):
    """Nuclei tiles of which every fourth has no label."""

    def __init__(self, count: int, classes: int = 2) -> None:
        super().__init__(count, PX)
        self.labels = ["" if i % 4 == 3 else f"class {i % classes}" for i in range(count)]


def build(source: Any = None, **options: Any) -> StainInvariant:
    values = {
        "name": "test",
        "tile_px": PX,
        "batch": 8,
        "max_steps": 5,
        "precision": "fp32",
        "method": {
            "name": "stain_invariant",
            "network": {"model": "narrow-resnet", "arguments": {"widths": [8, 8, 8, 8, 16]}},
            "latent_dim": 12,
        }
        | options,
    }
    torch.manual_seed(0)
    method = build_method(TrainConfig.model_validate(values), source or NucleiTiles(8, PX))
    assert isinstance(method, StainInvariant)
    return method


def batch_of(tiles: np.ndarray, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(torch.from_numpy(tiles), torch.arange(len(tiles)), generator, 0.0)


def restained_views(method: StainInvariant, tiles: np.ndarray, seed: int = 0) -> Any:
    """The second views before and after the swap, which tiles count, and the figures."""
    batch = batch_of(tiles, seed)
    views = method._crop(batch)
    return views, *method._swap(batch, views)


def varied_tiles(count: int = 8) -> np.ndarray:
    """Tiles in stains of different strength and light."""
    tiles = NucleiTiles(count, PX).images(np.arange(count)).astype(np.float64)
    gains = np.linspace(0.6, 1.5, count)[:, None, None, None]
    return (255 * (tiles / 255) ** (gains * np.array([1.0, 0.85, 1.2]))).astype(np.uint8)


@pytest.mark.parametrize("name", ["reinhard", "macenko", "vahadane"])
def test_all_tiles_of_a_step_take_over_one_tiles_stains(name: str) -> None:
    method = build(stain_methods=[name], **PLAIN)
    tiles = varied_tiles()
    views, restained, counted, figures = restained_views(method, tiles)
    fits = fit_stains(name, torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255)  # type: ignore[arg-type]
    target = int((~counted).nonzero())
    expected, _ = restain(name, views, fits, fits.row(target))  # type: ignore[arg-type]
    torch.testing.assert_close(restained, expected)
    assert counted.sum() == len(tiles) - 1
    assert figures["restained_share"] == 1
    assert (restained - views).abs().mean() > 0.01


def test_targets_and_methods_are_drawn_anew() -> None:
    method, tiles = build(**PLAIN), varied_tiles()
    targets = {int((~restained_views(method, tiles, seed)[2]).nonzero()) for seed in range(30)}
    assert len(targets) > 5
    pictures = {float(restained_views(build(stain_methods=[n], **PLAIN), tiles, 1)[1].sum()) for n in
                ("reinhard", "macenko", "vahadane")}  # fmt: skip
    drawn = {float(restained_views(method, tiles, seed)[1].sum()) for seed in range(30)}
    assert len(pictures) == 3 and len(drawn) > 10


def test_a_tile_that_cannot_be_fitted_is_no_target_and_stays() -> None:
    tiles = varied_tiles()
    tiles[[0, 2, 5]] = 255
    for seed in range(10):
        views, restained, counted, figures = restained_views(build(**PLAIN), tiles, seed)
        assert int((~counted).nonzero()) not in (0, 2, 5)
        assert torch.equal(restained[[0, 2, 5]], views[[0, 2, 5]])
        assert figures["restained_share"] == pytest.approx(5 / 8)


def test_a_step_of_glass_alone_still_gives_a_finite_loss() -> None:
    losses = build().losses(batch_of(np.full((8, PX, PX, 3), 250, np.uint8)), "network")
    assert torch.isfinite(losses["loss"])
    assert losses["restained_share"] == 0


def test_the_targets_own_pair_counts_only_when_asked() -> None:
    tiles = varied_tiles()
    assert restained_views(build(**PLAIN), tiles)[2].sum() == 7
    assert restained_views(build(count_target=True, **PLAIN), tiles)[2].all()


def test_pairs_that_do_not_count_are_still_pushed_away() -> None:
    vectors = F.normalize(torch.randn(8, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    counted = torch.tensor([True, False, True, True])
    each = []
    for i in (0, 2, 3, 4, 6, 7):
        logits = torch.cat([vectors[i] @ vectors[:i].T, vectors[i] @ vectors[i + 1 :].T]) / 0.3
        each.append(torch.logsumexp(logits, 0) - vectors[i] @ vectors[(i + 4) % 8] / 0.3)
    assert nt_xent(vectors, 0.3, counted).item() == pytest.approx(float(torch.stack(each).mean()), rel=1e-5)


def test_the_control_has_no_stain_swap() -> None:
    losses = build(swap=False).losses(batch_of(varied_tiles()), "network")
    assert set(losses) == {"loss"}


def test_views_are_turned_and_noisy_only_as_asked() -> None:
    tiles = varied_tiles()
    plain, turned = build(**PLAIN), build(**{**PLAIN, "turn_probability": 1.0})
    assert not torch.equal(plain._crop(batch_of(tiles)), turned._crop(batch_of(tiles)))
    views = torch.full((8, 3, PX, PX), 0.5)
    noisy = build(noise=0.1, noise_probability=1.0)._finished(batch_of(tiles), views)
    # Normalised by a standard deviation of 0.2.
    assert noisy.std(dim=(1, 2, 3)).min() > 0.9 * 0.1 / 0.2
    assert build(noise=0.1, noise_probability=0.0)._finished(batch_of(tiles), views)[:, 0].std() < 1e-6


def test_joint_training_adds_the_cross_entropy_of_labelled_tiles() -> None:
    source = LabelledTiles(8)
    method = build(source, label_weight=0.5, **PLAIN)
    losses = method.losses(batch_of(source.images(np.arange(8))), "network")
    expected = 0.5 * losses["contrast_loss"] + 0.5 * losses["label_loss"]
    assert losses["loss"].item() == pytest.approx(expected.item())
    losses["label_loss"].backward()
    assert any(p.grad is not None and p.grad.any() for p in method.module["backbone"].parameters())
    unlabelled = batch_of(source.images(np.array([3, 7])))
    only = Batch(unlabelled.tiles, torch.tensor([3, 7]), unlabelled.generator, 0.0)
    assert method.losses(only, "network")["label_loss"] == 0


@pytest.mark.parametrize("source", [NucleiTiles(8, PX), LabelledTiles(8, classes=1)])
def test_joint_training_needs_two_classes(source: NucleiTiles) -> None:
    with pytest.raises(UsageError, match="label_weight"):
        build(source, label_weight=0.5)


def test_crops_of_no_possible_size_are_refused() -> None:
    with pytest.raises(ValueError, match="min_area is above max_area"):
        StainInvariantOptions(min_area=0.5, max_area=0.4)


def test_any_timm_network_may_take_the_place_of_the_narrow_one() -> None:
    method = build(network={"model": "resnet18", "arguments": {"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]}})
    assert method.kept().architecture["model"] == "resnet18"
    assert torch.isfinite(method.losses(batch_of(varied_tiles()), "network")["loss"])


def test_the_narrow_network_is_as_described() -> None:
    network = NarrowResnet().eval()
    with torch.inference_mode():
        assert network(torch.rand(2, 3, 96, 96)).shape == (2, 256)
        assert network.features(torch.rand(1, 3, 224, 224)).shape == (1, 256, 7, 7)
    convolutions = [
        m.out_channels for m in network.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size[0] > 1
    ]
    assert convolutions == [32] + [64] * 4 + [128] * 4 + [256] * 8
    with pytest.raises(ValueError, match="five numbers"):
        NarrowResnet([8, 16])
