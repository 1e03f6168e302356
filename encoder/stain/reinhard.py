"""Reinhard et al. (2001): mean and spread of each channel of a perceptual colour space, here CIELAB."""

from __future__ import annotations

import torch
from torch import Tensor

from encoder.stain.fits import Fit, Outcome, first_outcome
from encoder.stain.macenko import LEAST_TISSUE

# sRGB to CIE XYZ, and the white of daylight D65 (IEC 61966-2-1).
_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_WHITE = (0.95047, 1.0, 1.08883)
# Below these shares the curves of the two colour spaces are straight.
_LINEAR_RGB, _LINEAR_LIGHT, _LINEAR_XYZ = 0.04045, 0.0031308, 0.008856
# Spread of a channel, in units of CIELAB, below which it would be noise that is blown up.
_LEAST_SPREAD = 0.5
_DARKEST_LIGHTNESS = 10.0


def to_lab(rgb: Tensor) -> Tensor:
    """CIELAB [N, 3, P], lightness 0..100, of RGB in 0..1."""
    curved = torch.add(rgb, 0.055).mul_(1 / 1.055).log_().mul_(2.4).exp_()
    light = torch.where(rgb > _LINEAR_RGB, curved, rgb / 12.92)
    xyz = _mix(_matrix(rgb) / _white(rgb)[:, None], light)
    root = xyz.clamp(min=_LINEAR_XYZ).log_().mul_(1 / 3).exp_()
    x, y, z = torch.where(xyz > _LINEAR_XYZ, root, 7.787 * xyz + 16 / 116).unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def from_lab(lab: Tensor) -> Tensor:
    """RGB in 0..1 of CIELAB [N, 3, P]; what lies outside the range is cut."""
    lightness, a, b = lab.unbind(1)
    y = (lightness + 16) / 116
    curved = torch.stack([a / 500 + y, y, y - b / 200], dim=1)
    xyz = torch.where(curved > _LINEAR_XYZ ** (1 / 3), curved.square() * curved, (curved - 16 / 116) / 7.787)
    light = _mix(torch.linalg.inv(_matrix(lab)) * _white(lab), xyz)
    bent = light.clamp(min=_LINEAR_LIGHT).log_().mul_(1 / 2.4).exp_().mul_(1.055).sub_(0.055)
    return torch.where(light > _LINEAR_LIGHT, bent, 12.92 * light).clamp_(0, 1)


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
    outcome = first_outcome(
        (stained.float().mean(dim=1) < LEAST_TISSUE, Outcome.LITTLE_TISSUE),
        (mean[:, 0] < _DARKEST_LIGHTNESS, Outcome.DARK),
        ((spread < _LEAST_SPREAD).any(dim=1), Outcome.ONE_STAIN),
    )
    values = torch.stack([mean, spread], dim=1)
    return Fit(torch.where((outcome == 0)[:, None, None], values, torch.ones_like(values)), outcome)


def _mix(matrix: Tensor, planes: Tensor) -> Tensor:
    return torch.matmul(matrix, planes)


def _matrix(like: Tensor) -> Tensor:
    return torch.tensor(_TO_XYZ, dtype=like.dtype, device=like.device)


def _white(like: Tensor) -> Tensor:
    return torch.tensor(_WHITE, dtype=like.dtype, device=like.device)
