"""Macenko et al. (ISBI 2009): stain vectors as the extremes of the plane that optical densities spread in."""

from __future__ import annotations

import torch
from torch import Tensor

from encoder.stain.density import GLASS_DENSITY, pick_pixels, quantiles
from encoder.stain.fits import Fit, Outcome, first_outcome

# Percentiles of the angle in the plane, and of the amount of each stain, that count as its extremes.
_EXTREME_ANGLES = (0.01, 0.99)
_STRONGEST = 0.99
LEAST_TISSUE = 0.05
# Mean density of all channels above which light hardly passes: fluorescence, pen, a fold.
_DARKEST = 2.5
# Two stains closer than this are one stain and its noise; those of real H&E are 15 to 50 degrees apart.
_LEAST_SINE = 0.087
# Amounts below this, as optical density, are noise that scaling would blow up.
_LEAST_STRENGTH = 0.05


def fit_macenko(density: Tensor, sample_px: int | None) -> Fit:
    """Find haematoxylin and eosin of every tile.

    Args:
        density: optical densities float32 [N, 3, P].
        sample_px: stained pixels of each tile that are looked at; None for all.

    Returns:
        Values float32 [N, 3, 3]: rows are the unit densities of haematoxylin and of eosin, and the 99th
        percentile of their amounts with a zero. Haematoxylin is the redder one, as it absorbs more red.
    """
    pixels, share = pick_pixels(density, density.amin(dim=1) > GLASS_DENSITY, sample_px)
    return fit_extremes(pixels, share)


def fit_extremes(pixels: Tensor, share: Tensor) -> Fit:
    """The same from picked stained pixels [N, P, 3] and the share of pixels [N] that are stained."""
    stains = _extremes(pixels)
    return stain_fit(stains, least_squares(stains, pixels), pixels, share)


def stain_fit(stains: Tensor, amounts: Tensor, pixels: Tensor, share: Tensor) -> Fit:
    """Judge a separation and put its figures together.

    Args:
        stains: unit densities [N, 2, 3], haematoxylin first.
        amounts: of both stains in the picked pixels, [N, P, 2].
        pixels: the picked pixels [N, P, 3].
        share: of pixels that are stained, [N].
    """
    (strength,) = quantiles(amounts.transpose(1, 2).contiguous(), (_STRONGEST,))
    sine = torch.linalg.cross(stains[:, 0], stains[:, 1]).norm(dim=1)
    outcome = first_outcome(
        (share < LEAST_TISSUE, Outcome.LITTLE_TISSUE),
        (pixels.mean(dim=1).amin(dim=1) > _DARKEST, Outcome.DARK),
        ((sine < _LEAST_SINE) | ~(strength > _LEAST_STRENGTH).all(dim=1), Outcome.ONE_STAIN),
    )
    values = torch.cat([stains, torch.nn.functional.pad(strength, (0, 1))[:, None]], dim=1)
    usable = (outcome == Outcome.NORMALISED)[:, None, None]
    # Figures of no meaning stay finite, so that nothing computed from them is NaN.
    return Fit(torch.where(usable, values, torch.eye(3, device=values.device)), outcome)


def least_squares(stains: Tensor, pixels: Tensor) -> Tensor:
    """Amounts [N, P, 2] of two stains [N, 2, 3] whose sum comes closest to densities [N, P, 3]."""
    return pixels @ unmixing(stains).transpose(1, 2)


def unmixing(stains: Tensor) -> Tensor:
    """Pseudo-inverse [N, 2, 3] of unit stains [N, 2, 3], in closed form: amounts = it @ density."""
    first, second = stains[:, 0], stains[:, 1]
    cosine = (first * second).sum(dim=1, keepdim=True)
    square_sine = torch.linalg.cross(first, second).square().sum(dim=1, keepdim=True).clamp(min=1e-12)
    rows = torch.stack([first - cosine * second, second - cosine * first], dim=1)
    return rows / square_sine[:, None]


def _extremes(pixels: Tensor) -> Tensor:
    """Unit densities [N, 2, 3] at the extremes of the plane of the two largest principal axes."""
    centred = pixels - pixels.mean(dim=1, keepdim=True)
    covariance = centred.transpose(1, 2) @ centred / max(1, pixels.shape[1] - 1)
    _, axes = torch.linalg.eigh(covariance)
    plane = axes[:, :, 1:].flip(2)
    # The main axis must point to where stain is; the sign of the other only swaps the extremes.
    plane = plane * torch.where(plane.sum(dim=1, keepdim=True) < 0, -1.0, 1.0)
    along = pixels @ plane
    angles = torch.atan2(along[..., 1], along[..., 0])
    found = []
    for angle in quantiles(angles, _EXTREME_ANGLES):
        direction = torch.stack([torch.cos(angle), torch.sin(angle)], dim=1)[:, :, None]
        found.append((plane @ direction)[:, :, 0])
    stains = torch.stack(found, dim=1)
    return haematoxylin_first(stains)


def haematoxylin_first(stains: Tensor) -> Tensor:
    """Order two stains [N, 2, 3] so that the one that absorbs more red comes first."""
    swapped = (stains[:, 0, 0] < stains[:, 1, 0])[:, None, None]
    return torch.where(swapped, stains.flip(1), stains)
