"""TileEncoder: sizes, determinism, values that are not finite."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from encoder.contract import EncoderSpec, NonFiniteVectorsError
from encoder.device import arithmetic, choose_device
from encoder.embed import TileEncoder
from encoder.errors import EncoderError, UsageError
from encoder.registry import load_encoder
from encoder.resize import resize_tiles


def spec(**changes: object) -> EncoderSpec:
    values: dict[str, object] = {
        "name": "t", "method": "t", "architecture": {}, "dim": 3, "tile_px": 8, "mpp": None,
        "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4),
    }  # fmt: skip
    return EncoderSpec(**(values | changes))  # type: ignore[arg-type]


class Means(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3))


class Overflow(nn.Module):
    """Not finite in bfloat16 for dark tiles, and always for black ones."""

    def __init__(self) -> None:
        super().__init__()
        self.probe = nn.Linear(3, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        means = x.mean(dim=(2, 3))
        low = self.probe(means).dtype == torch.bfloat16
        means = torch.where((means[:, :1] < 0.3) & low, torch.inf, means)
        return torch.where(means[:, :1] == 0, torch.nan, means)


def test_vectors_are_of_normalised_tiles_in_every_chunk() -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (130, 8, 8, 3), dtype=np.uint8)
    vectors = TileEncoder(Means(), spec(), "cpu").embed(tiles)
    expected = (tiles.mean(axis=(1, 2)) / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
    assert vectors.dtype == np.float32 and np.allclose(vectors, expected, atol=1e-5)
    assert TileEncoder(Means(), spec(), "cpu").embed(tiles[:0]).shape == (0, 3)


def test_other_sizes_are_resized_like_a_picture() -> None:
    rng = np.random.default_rng(1)
    coarse = Image.fromarray(rng.integers(0, 256, (10, 10, 3), dtype=np.uint8)).resize(
        (50, 50), Image.Resampling.BICUBIC
    )
    resized = resize_tiles(torch.from_numpy(np.asarray(coarse)[None].copy()), 20)[0].numpy().astype(int)
    expected = np.asarray(coarse.resize((20, 20), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(resized - expected).max() <= 1
    same = torch.zeros(1, 20, 20, 3, dtype=torch.uint8)
    assert resize_tiles(same, 20) is same


def test_the_same_batch_gives_the_same_bits() -> None:
    encoder = load_encoder("random:test_resnet", "cpu")
    tiles = np.random.default_rng(2).integers(0, 256, (70, 160, 160, 3), dtype=np.uint8)
    assert np.array_equal(encoder.embed(tiles), encoder.embed(tiles.copy()))


def test_bf16_agrees_with_fp32() -> None:
    from dataclasses import replace

    low = load_encoder("random:test_resnet", "cpu")
    full = TileEncoder(load_encoder("random:test_resnet", "cpu").module, replace(low.spec, precision="fp32"), "cpu")
    tiles = np.random.default_rng(3).integers(0, 256, (8, 160, 160, 3), dtype=np.uint8)
    a, b = low.embed(tiles), full.embed(tiles)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert full.arithmetic == "fp32" and cosine.min() > 0.999


def test_rows_that_are_not_finite_are_computed_again_and_then_named() -> None:
    encoder = TileEncoder(Overflow(), spec(precision="bf16", mean=(0.0,) * 3, std=(1.0,) * 3), "cpu")
    tiles = np.full((4, 8, 8, 3), 200, np.uint8)
    tiles[1] = 50
    vectors = encoder.embed(tiles)
    assert np.allclose(vectors[1], 50 / 255, atol=1e-5)
    tiles[3] = 0
    with pytest.raises(NonFiniteVectorsError, match="1 of 4 tiles") as caught:
        encoder.embed(tiles)
    assert caught.value.rows == [3]


@pytest.mark.parametrize("shape", [(2, 8, 8), (2, 8, 8, 4)])
def test_other_arrays_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(EncoderError, match="must be uint8"):
        TileEncoder(Means(), spec(), "cpu").embed(np.zeros(shape, np.uint8))
    with pytest.raises(EncoderError, match="float32"):
        TileEncoder(Means(), spec(), "cpu").embed(np.zeros((2, 8, 8, 3), np.float32))


def test_devices_are_checked() -> None:
    assert choose_device("cpu").type == "cpu"
    assert arithmetic("fp32", torch.device("cpu")) == "fp32"
    with pytest.raises(UsageError, match="no device"):
        choose_device("abacus")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no CUDA device"):
            choose_device("cuda")
