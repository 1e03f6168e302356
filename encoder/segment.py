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
from encoder.nets.confidence import ConfidenceDescriptor
from encoder.stain.haematoxylin import haematoxylin
from encoder.stain.normalise import fit_stains

# Maps of all pixels at once: eight channels of a larger field would not fit a small machine.
_MOST_PX = 4096**2
# Standard deviation of the blur of haematoxylin: of those tried on 13 fields the best for Otsu's threshold.
_BLUR_UM = 0.5
# Range of the thresholds among which a field's is sought, as logarithms of odds: from 0.2 to 0.98.
_LOGITS, _CANDIDATES = (-1.4, 4.0), 55


@dataclass(frozen=True)
class Nuclei:
    """Nuclei of a field.

    Attributes:
        instances: numbers from 1, 0 for the background, int32 [H, W].
        mask: what lies above the threshold, before cleaning, bool [H, W].
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
        chosen = network.nuclei(encoder.prepare_field(pixels))[:, None].float()
        confidence = F.interpolate(chosen, size=(height, width), mode="bilinear")[0, 0].cpu().numpy()
    threshold = _field_threshold(confidence, blurred_haematoxylin(picture, mpp)) if network.field_threshold else 0.5
    mask = confidence > threshold
    return Nuclei(split_instances(clean_mask(mask, mpp), mpp), mask, mpp)


def blurred_haematoxylin(picture: NDArray[np.uint8], mpp: float) -> NDArray[np.float32]:
    """Amount of haematoxylin in every pixel, blurred, float32 [H, W]."""
    from scipy import ndimage

    rgb = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
    amount = haematoxylin(rgb, fit_stains("macenko", rgb))[0, 0].numpy()
    smooth: NDArray[np.float32] = ndimage.gaussian_filter(amount, _BLUR_UM / mpp)
    return smooth


def classical_nuclei(picture: NDArray[np.uint8], mpp: float) -> Nuclei:
    """Nuclei by Otsu's threshold (1979) on the blurred haematoxylin channel, cleaned in the same way."""
    from skimage.filters import threshold_otsu

    smooth = blurred_haematoxylin(picture, mpp)
    mask = smooth > threshold_otsu(smooth) if smooth.max() > smooth.min() else np.zeros(smooth.shape, bool)
    return Nuclei(split_instances(clean_mask(mask, mpp), mpp), mask, mpp)


def _field_threshold(confidence: NDArray[np.float32], amount: NDArray[np.float32]) -> float:
    """The confidence above which pixels differ most in haematoxylin from those below, by Otsu's measure (1979).

    Fields are stained and cut unlike each other, and one threshold for all finds too much in some. A field in
    which no confidence is high keeps an empty mask: low confidences are no candidates.
    """
    thresholds = 1 / (1 + np.exp(-np.linspace(*_LOGITS, _CANDIDATES)))
    bins = np.digitize(confidence.ravel(), thresholds)
    count = np.bincount(bins, minlength=_CANDIDATES + 1).astype(np.float64)
    total = np.bincount(bins, weights=amount.ravel().astype(np.float64), minlength=_CANDIDATES + 1)
    # Everything above each threshold, and everything below it.
    above, under = count[::-1].cumsum()[::-1][1:], count.cumsum()[:-1]
    amount_above, amount_under = total[::-1].cumsum()[::-1][1:], total.cumsum()[:-1]
    difference = amount_above / np.maximum(above, 1) - amount_under / np.maximum(under, 1)
    between = above * under * np.where(difference > 0, difference, 0) ** 2
    return float(thresholds[int(between.argmax())]) if between.any() else 0.5
