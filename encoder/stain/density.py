"""Optical density: the haematoxylin-eosin basis, and the pixels of a tile that hold stain."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Unit optical densities of haematoxylin and eosin in red, green, blue, as measured by Ruifrok and
# Johnston (2001); the residual axis is orthogonal to both.
HAEMATOXYLIN = (0.650, 0.704, 0.286)
EOSIN = (0.072, 0.990, 0.105)

# Macenko et al. (2009): what is less dense than this is glass.
GLASS_DENSITY = 0.15


def he_basis() -> Tensor:
    """Rows haematoxylin, eosin, residual: unit optical densities in red, green, blue, float32 [3, 3]."""
    stains = torch.tensor([HAEMATOXYLIN, EOSIN], dtype=torch.float64)
    stains = stains / stains.norm(dim=1, keepdim=True)
    residual = torch.linalg.cross(stains[0], stains[1])
    return torch.cat([stains, (residual / residual.norm())[None]]).float()


def to_density(rgb: Tensor, white: float = 1.0) -> Tensor:
    """Optical density, natural logarithm, of RGB in 0..white; one grey level is added so that black is finite."""
    return torch.add(rgb, white / 255).mul_(255 / 256 / white).log_().neg_()


def from_density(density: Tensor) -> Tensor:
    """RGB in 0..1 of an optical density; what lies outside the range is cut."""
    return torch.neg(density).exp_().mul_(256 / 255).sub_(1 / 255).clamp_(0, 1)


def pick_pixels(density: Tensor, chosen: Tensor, count: int | None) -> tuple[Tensor, Tensor]:
    """Pick evenly spaced pixels of each tile among the chosen ones, in the order of rows.

    Args:
        density: optical densities [N, 3, P].
        chosen: which pixels may be picked, bool [N, P].
        count: how many to pick; a tile with fewer gives them repeatedly, one with none gives its last pixel.
            None for as many as the tile has pixels.

    Returns:
        Densities float32 [N, count, 3], and the share of pixels that could be picked, float32 [N].
    """
    count = count or chosen.shape[1]
    ranks = chosen.cumsum(dim=1, dtype=torch.int32)
    held = ranks[:, -1:]
    steps = torch.arange(count, device=density.device, dtype=torch.float32) + 0.5
    wanted = torch.minimum((steps * held / count).floor().int() + 1, held.clamp(min=1))
    places = torch.searchsorted(ranks, wanted).clamp_(max=chosen.shape[1] - 1)
    picked = density.gather(2, places[:, None, :].expand(-1, 3, -1))
    return picked.transpose(1, 2).contiguous(), held[:, 0] / chosen.shape[1]


def quantiles(values: Tensor, shares: Sequence[float]) -> list[Tensor]:
    """Quantiles along the last dimension, between order statistics as NumPy's default has it."""
    ordered = values.sort(dim=-1).values
    found = []
    for share in shares:
        place = share * (values.shape[-1] - 1)
        low = int(place)
        high = min(low + 1, values.shape[-1] - 1)
        found.append(torch.lerp(ordered[..., low], ordered[..., high], place - low))
    return found
