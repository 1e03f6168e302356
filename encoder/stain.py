"""Stain mathematics: optical density and the haematoxylin-eosin basis."""

from __future__ import annotations

import torch
from torch import Tensor

# Unit optical densities of haematoxylin and eosin in red, green, blue, as measured by Ruifrok and
# Johnston (2001); the residual axis is orthogonal to both.
HAEMATOXYLIN = (0.650, 0.704, 0.286)
EOSIN = (0.072, 0.990, 0.105)


def he_basis() -> Tensor:
    """Rows haematoxylin, eosin, residual: unit optical densities in red, green, blue, float32 [3, 3]."""
    stains = torch.tensor([HAEMATOXYLIN, EOSIN], dtype=torch.float64)
    stains = stains / stains.norm(dim=1, keepdim=True)
    residual = torch.linalg.cross(stains[0], stains[1])
    return torch.cat([stains, (residual / residual.norm())[None]]).float()


def to_density(rgb: Tensor) -> Tensor:
    """Optical density, natural logarithm, of RGB in 0..1; one grey level is added so that black is finite."""
    return -torch.log((rgb * 255 + 1) / 256)


def from_density(density: Tensor) -> Tensor:
    """RGB in 0..1 of an optical density; what lies outside the range is cut."""
    return ((torch.exp(-density) * 256 - 1) / 255).clamp(0, 1)
