"""Nuclei of a field: by an encoder that segments, and the classical way to compare with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from encoder.embed import TileEncoder
from encoder.errors import EncoderError, UsageError
from encoder.instances import clean_mask, split_instances
from encoder.methods.patch_contrast.choice import haematoxylin
from encoder.nets.confidence import ConfidenceDescriptor
from encoder.stain.normalise import fit_stains

# Maps of all pixels at once: eight channels of a larger field would not fit a small machine.
_MOST_PX = 4096**2
# Standard deviation of the blur before Otsu's threshold: of those tried on 13 fields the best for it.
_CLASSICAL_BLUR_UM = 0.5


@dataclass(frozen=True)
class Nuclei:
    """Nuclei of a field.

    Attributes:
        instances: numbers from 1, 0 for the background, int32 [H, W].
        mask: as the confidence says, before cleaning, bool [H, W].
        mpp: micrometres per pixel of both.
    """

    instances: NDArray[np.int32]
    mask: NDArray[np.bool_]
    mpp: float


def check_segmenter(encoder: TileEncoder) -> ConfidenceDescriptor:
    """The network of an encoder that segments.

    Raises:
        EncoderError: it does not, or none of its maps became nuclei.
    """
    network = encoder.module
    if not isinstance(network, ConfidenceDescriptor):
        raise EncoderError(
            f"Encoder {encoder.spec.name} ({encoder.spec.method}) does not segment.",
            fix="Train one with `histoseek pretrain patch_contrast-small`.",
        )
    if int(network.nucleus_channel) < 0:
        raise EncoderError(
            f"None of the maps of {encoder.spec.name} covers a plausible share of the tissue: the run collapsed.",
            fix="Train with another seed; `--seeds 5` trains several and keeps the best.",
        )
    return network


def segment_field(encoder: TileEncoder, picture: NDArray[np.uint8], mpp: float) -> Nuclei:
    """Find the nuclei of a field.

    Args:
        encoder: one that segments.
        picture: uint8 [H, W, 3].
        mpp: its micrometres per pixel.

    Raises:
        EncoderError: the encoder does not segment.
        UsageError: the field is too large, or its scale unlike the encoder's.
    """
    network = check_segmenter(encoder)
    factor = mpp / (encoder.spec.mpp or mpp)
    height, width = picture.shape[:2]
    size = max(1, round(height * factor)), max(1, round(width * factor))
    if size[0] * size[1] > _MOST_PX:
        raise UsageError(f"A field of {height} x {width} px is too large to segment at once.", fix="Cut it into parts.")
    if not 0.2 <= factor <= 2:
        raise UsageError(
            f"A field at {mpp:g} um/px cannot be segmented by {encoder.spec.name}, made for {encoder.spec.mpp:g}.",
            fix="Give its true --mpp, or a field that is at most twice as coarse.",
        )
    scaled = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
    if size != (height, width):
        scaled = F.interpolate(scaled, size=size, mode="bilinear", antialias=True)
    pixels = scaled.round().clamp(0, 255).to(torch.uint8)[0].permute(1, 2, 0).numpy()
    with torch.inference_mode():
        maps = network.confidences(encoder.prepare_field(pixels))
        chosen = maps[:, int(network.nucleus_channel)][:, None].float()
        confidence = F.interpolate(chosen, size=(height, width), mode="bilinear")[0, 0]
    mask = (confidence > 0.5).cpu().numpy()
    return Nuclei(split_instances(clean_mask(mask, mpp), mpp), mask, mpp)


def classical_nuclei(picture: NDArray[np.uint8], mpp: float) -> Nuclei:
    """Nuclei by Otsu's threshold (1979) on the blurred haematoxylin channel, cleaned in the same way."""
    from scipy import ndimage
    from skimage.filters import threshold_otsu

    rgb = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
    amount = haematoxylin(rgb, fit_stains("macenko", rgb))[0, 0].numpy()
    smooth = ndimage.gaussian_filter(amount, _CLASSICAL_BLUR_UM / mpp)
    mask = smooth > threshold_otsu(smooth) if smooth.max() > smooth.min() else np.zeros(smooth.shape, bool)
    return Nuclei(split_instances(clean_mask(mask, mpp), mpp), mask, mpp)
