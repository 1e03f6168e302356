"""Reinhard et al. (2001): mean and spread of each channel of a perceptual colour space, here CIELAB."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from encoder.stain.fits import Fit, Outcome, first_outcome
from encoder.stain.macenko import LEAST_TISSUE

# sRGB to CIE XYZ, and the white of daylight D65 (IEC 61966-2-1).
TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
WHITE = (0.95047, 1.0, 1.08883)
# Below these shares the curves of the two colour spaces are straight (IEC 61966-2-1; CIE 15).
_LINEAR_RGB, _LINEAR_LIGHT = 0.04045, 0.0031308
_LINEAR_ROOT = 6 / 29
_LINEAR_XYZ = _LINEAR_ROOT**3
_ROOT_SLOPE = (29 / 6) ** 2 / 3
# Spread of a channel, in units of CIELAB, below which it would be noise that is blown up.
_LEAST_SPREAD = 0.5
_DARKEST_LIGHTNESS = 10.0


# CIELAB is a linear map of the cube roots of XYZ, and an offset of the lightness.
ROOTS_TO_LAB = ((0.0, 116.0, 0.0), (500.0, -500.0, 0.0), (0.0, 200.0, -200.0))
LIGHTNESS_OFFSET = -16.0


def to_lab(rgb: Tensor) -> Tensor:
    """CIELAB [N, 3, P], lightness 0..100, of RGB in 0..1."""
    lab = _like(ROOTS_TO_LAB, rgb) @ to_roots(rgb)
    lab[:, 0] += LIGHTNESS_OFFSET
    return lab


def from_lab(lab: Tensor) -> Tensor:
    """RGB in 0..1 of CIELAB [N, 3, P]; what lies outside the range is cut."""
    offset = _like((LIGHTNESS_OFFSET, 0.0, 0.0), lab)[:, None]
    return from_roots(torch.linalg.inv(_like(ROOTS_TO_LAB, lab)) @ (lab - offset))


def to_roots(rgb: Tensor) -> Tensor:
    """Cube roots of XYZ relative to white light [N, 3, P], straight near black, of RGB in 0..1."""
    return _root(_light_to_xyz(rgb) @ _light(rgb))


def from_roots(roots: Tensor) -> Tensor:
    """RGB in 0..1 of such cube roots; what lies outside the range is cut."""
    return _encoded(torch.linalg.inv(_light_to_xyz(roots)) @ _cube(roots)).clamp_(0, 1)


# Each curve is the bent part of what is above the knee plus the straight part of what is below it: choosing
# between two results (`torch.where`) takes longer than a logarithm.
def _light(rgb: Tensor) -> Tensor:
    """Linear light of RGB in 0..1 (IEC 61966-2-1)."""
    above = rgb.clamp(min=_LINEAR_RGB)
    below = rgb - above
    return above.add_(0.055).mul_(1 / 1.055).log_().mul_(2.4).exp_().add_(below, alpha=1 / 12.92)


def _encoded(light: Tensor) -> Tensor:
    """RGB, which may lie outside 0..1, of linear light."""
    above = light.clamp(min=_LINEAR_LIGHT)
    below = light - above
    return above.log_().mul_(1 / 2.4).exp_().mul_(1.055).sub_(0.055).add_(below, alpha=12.92)


def _root(xyz: Tensor) -> Tensor:
    above = xyz.clamp(min=_LINEAR_XYZ)
    below = xyz - above
    return above.log_().mul_(1 / 3).exp_().add_(below, alpha=_ROOT_SLOPE)


def _cube(roots: Tensor) -> Tensor:
    above = roots.clamp(min=_LINEAR_ROOT)
    below = roots - above
    return torch.addcmul(below.mul_(1 / _ROOT_SLOPE), above * above, above)


def _light_to_xyz(like: Tensor) -> Tensor:
    return _like(TO_XYZ, like) / _like(WHITE, like)[:, None]


def shift_of_roots(source: Fit, target: Fit) -> tuple[Tensor, Tensor]:
    """The matrix [N, 3, 3] and offset [N, 3, 1] on roots that give CIELAB the target's mean and spread."""
    mean, spread = source.values.unbind(1)
    target_mean, target_spread = target.values.unbind(1)
    ratio = target_spread / spread
    to_lab_matrix = _like(ROOTS_TO_LAB, mean)
    back = torch.linalg.inv(to_lab_matrix)
    offset = _like((LIGHTNESS_OFFSET, 0.0, 0.0), mean)
    matrix = back @ (ratio[:, :, None] * to_lab_matrix)
    moved = target_mean - mean * ratio + (ratio - 1) * offset
    return matrix, (moved @ back.T)[:, :, None]


def fit_reinhard(lab: Tensor, stained: Tensor) -> Fit:
    """Mean and standard deviation of the stained pixels of every tile.

    Args:
        lab: CIELAB [N, 3, P].
        stained: which pixels count, bool [N, P].

    Returns:
        Values float32 [N, 2, 3]: means, and standard deviations.
    """
    weight = stained[:, None].to(lab.dtype)
    count = weight.sum(dim=2).clamp(min=1)
    mean = (lab * weight).sum(dim=2) / count
    spread = ((lab - mean[:, :, None]).square() * weight).sum(dim=2).div(count).sqrt()
    return judged(mean, spread, stained.float().mean(dim=1))


def judged(mean: Tensor, spread: Tensor, share: Tensor) -> Fit:
    """Put the figures of tiles together: mean and standard deviation [N, 3], and the share [N] of stained pixels."""
    outcome = first_outcome(
        (share < LEAST_TISSUE, Outcome.LITTLE_TISSUE),
        (mean[:, 0] < _DARKEST_LIGHTNESS, Outcome.DARK),
        ((spread < _LEAST_SPREAD).any(dim=1), Outcome.ONE_STAIN),
    )
    values = torch.stack([mean, spread], dim=1)
    return Fit(torch.where((outcome == 0)[:, None, None], values, torch.ones_like(values)), outcome)


def _like(values: tuple[Any, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)
