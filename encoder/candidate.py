"""From a method in training to an encoder that can embed."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from encoder.architectures import build_network, vector_length
from encoder.batchnorm import recalibrate
from encoder.config import TrainConfig
from encoder.contract import EncoderSpec
from encoder.device import autocast
from encoder.embed import TileEncoder
from encoder.methods.protocol import KeptNetwork
from encoder.rng import rng_kept
from encoder.stain.normaliser import StainNormaliser


def trained_spec(config: TrainConfig, kept: KeptNetwork, normaliser: StainNormaliser | None = None) -> EncoderSpec:
    """Spec of the encoder that a config trains; the weights' hash is still blank.

    Args:
        config: the training config.
        kept: the network that becomes the encoder.
        normaliser: of the tiles before it, as fitted at the start of the run.
    """
    return EncoderSpec(
        name=config.name,
        method=config.method.name,
        architecture=dict(kept.architecture),
        dim=vector_length(kept.module, config.tile_px),
        tile_px=config.tile_px,
        mpp=config.mpp,
        mean=config.mean,
        std=config.std,
        precision=config.precision,
        pooling=kept.pooling,
        stain_normalisation=None if normaliser is None else normaliser.spec,
    )


def candidate_encoder(
    config: TrainConfig,
    kept: KeptNetwork,
    sample: NDArray[np.uint8],
    device: torch.device,
    normaliser: StainNormaliser | None = None,
) -> TileEncoder:
    """Copy a network out of training and fit its normalisation statistics to plain tiles.

    Args:
        config: the training config.
        kept: the network; left as it is.
        sample: plain tiles uint8 [M, tile_px, tile_px, 3].
        device: where the encoder computes.
        normaliser: of the tiles before the network.
    """
    # Built anew, not copied: layers in training may be compiled, or wait for other processes.
    with rng_kept():
        module = build_network(kept.architecture)
    module.load_state_dict(kept.module.state_dict())
    encoder = TileEncoder(module, trained_spec(config, kept, normaliser), str(device))
    with autocast(config.precision, device):
        recalibrate(encoder.module, encoder.prepared(sample))
    return encoder
