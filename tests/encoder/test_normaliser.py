"""Stain normalisation as a part of an encoder: in its spec, in training, and when it embeds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from encoder.checkpoint import checkpoint_files, encoder_from_files
from encoder.config import TrainConfig
from encoder.embed import TileEncoder
from encoder.errors import ConfigError, EncoderError
from encoder.progress import SilentReporter
from encoder.registry import load_encoder
from encoder.stain.fits import Outcome
from encoder.stain.normalise import STAIN_METHODS, fit_stains, normalise
from encoder.stain.normaliser import StainNormalisation, StainNormaliser, fit_normaliser, normaliser_of
from encoder.train import train
from tests.encoder.nuclei_pictures import NucleiTiles, nuclei_picture

TILES = NucleiTiles(12, 48)


def faded(tiles: np.ndarray) -> np.ndarray:
    """The same tissue in a weaker and bluer stain."""
    return (255 * (tiles / 255) ** np.array([0.75, 0.6, 0.5])).astype(np.uint8)


def colour_encoder(normaliser: StainNormaliser | None) -> TileEncoder:
    plain = load_encoder("colour", "cpu")
    made = None if normaliser is None else normaliser.spec
    spec = replace(plain.spec, tile_px=48, stain_normalisation=made)
    return TileEncoder(plain.module, spec, "cpu")


@pytest.mark.parametrize("method", STAIN_METHODS)
def test_a_spec_brings_the_same_normaliser_back(method: Any) -> None:
    made = fit_normaliser(StainNormalisation(method=method), TILES.images(np.arange(6)))
    again = normaliser_of(json.loads(json.dumps(made.spec)))
    assert again is not None and again.method == method
    planes = torch.from_numpy(faded(TILES.images(np.arange(3)))).permute(0, 3, 1, 2)
    assert torch.equal(again(planes)[0], made(planes)[0])


def test_an_encoder_embeds_normalised_tiles_and_counts_the_others() -> None:
    normaliser = fit_normaliser(StainNormalisation(method="reinhard"), TILES.images(np.arange(12)))
    tiles = faded(TILES.images(np.arange(8)))
    tiles[5] = 255
    encoder, plain = colour_encoder(normaliser), colour_encoder(None)
    expected = normaliser.on_tiles(torch.from_numpy(tiles))[0].numpy()
    np.testing.assert_array_equal(encoder.embed(tiles), plain.embed(expected))
    assert encoder.stain_outcomes == {Outcome.NORMALISED: 7, Outcome.LITTLE_TISSUE: 1}
    assert not plain.stain_outcomes
    # A stain that is changed back no longer shows.
    original = TILES.images(np.arange(8))
    apart = [np.abs(e.embed(tiles) - e.embed(original))[:5].mean() for e in (encoder, plain)]
    assert apart[0] < apart[1] / 4


def test_the_target_is_a_part_of_the_identity() -> None:
    first, second = (fit_normaliser(StainNormalisation(), t(TILES.images(np.arange(12)))) for t in (lambda x: x, faded))
    ids = {colour_encoder(normaliser).spec.encoder_id for normaliser in (None, first, second)}
    assert len(ids) == 3
    encoder = colour_encoder(first)
    again = encoder_from_files(checkpoint_files(encoder), "cpu")
    assert again.spec.encoder_id == encoder.spec.encoder_id
    tiles = faded(TILES.images(np.arange(3)))
    np.testing.assert_array_equal(again.embed(tiles), encoder.embed(tiles))


def test_the_target_may_be_a_picture(tmp_path: Path) -> None:
    Image.fromarray(nuclei_picture(3, side=70)[0][:, :50]).save(tmp_path / "target.png")
    made = fit_normaliser(StainNormalisation(target=str(tmp_path / "target.png")), TILES.images(np.arange(2)))
    direct = fit_stains("macenko", torch.from_numpy(nuclei_picture(3, side=70)[0][:, :50]).permute(2, 0, 1)[None], None)
    torch.testing.assert_close(made.target.values, direct.values, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("target", ["white.png", "absent.png", "broken.png", "tiles"])
def test_a_target_that_cannot_be_fitted_is_refused(tmp_path: Path, target: str) -> None:
    Image.new("RGB", (40, 40), "white").save(tmp_path / "white.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    where = target if target == "tiles" else str(tmp_path / target)
    with pytest.raises(ConfigError, match=r"stain_normalisation\.target"):
        fit_normaliser(StainNormalisation(target=where), np.full((3, 20, 20, 3), 255, np.uint8))


@pytest.mark.parametrize("spec", [{"method": "other", "target": []}, {"method": "macenko", "target": [[1.0]]}, {}])
def test_a_normalisation_of_another_version_is_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(EncoderError, match="unknown here"):
        normaliser_of(spec)


def test_training_sees_and_keeps_what_embedding_will_do(tmp_path: Path) -> None:
    config = TrainConfig.model_validate(
        {
            "name": "test",
            "tile_px": 48,
            "batch": 4,
            "max_steps": 4,
            "precision": "fp32",
            "tensorboard": False,
            "log_every_steps": 1,
            "stain_normalisation": {"method": "reinhard"},
            "monitor": {"looks": 1, "tiles": 8},
            "method": {
                "name": "contrastive",
                "network": {"model": "narrow-resnet", "arguments": {"widths": [8, 8, 8, 8, 8]}},
            },
        }
    )
    train(config, TILES, tmp_path / "run", SilentReporter(), "cpu")
    encoder = load_encoder(str(tmp_path / "run"), "cpu")
    normaliser = normaliser_of(encoder.spec.stain_normalisation)
    assert normaliser is not None
    expected = fit_stains(
        "reinhard", torch.from_numpy(TILES.images(np.arange(12))).reshape(1, -1, 48, 3).permute(0, 3, 1, 2), None
    )
    torch.testing.assert_close(normaliser.target.values, expected.values, atol=0.3, rtol=0)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["stain_left_share"] == 0 for line in lines if line["kind"] == "train")


def test_restaining_is_done_by_the_named_method() -> None:
    tiles = torch.from_numpy(faded(TILES.images(np.arange(2)))).permute(0, 3, 1, 2)
    for method in STAIN_METHODS:
        made = fit_normaliser(StainNormalisation(method=method), TILES.images(np.arange(6)))
        assert torch.equal(made(tiles)[0], normalise(method, tiles, made.target)[0])
