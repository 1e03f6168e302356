"""Colour statistics: the baseline without a network that every encoder must beat."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# Optical density of a pixel of value 1/255, the darkest that counts.
_MAX_OD = 5.541
COLOUR_TILE_PX = 128


class ColourStatistics(nn.Module):
    """Mean, standard deviation and five quantiles of red, green, blue and of their optical densities.

    Maps RGB [N, 3, H, W] in 0..1 to [N, 42]: mean (6), standard deviation (6), then the 5, 25, 50, 75 and
    95 % quantiles (6 each). Densities are divided by the largest that 8 bits can show, so all lie in 0..1;
    then the values of blank white glass are subtracted, so that the cosine compares what the tissue adds.
    """

    dim = 6 * (2 + len(_QUANTILES))

    def __init__(self) -> None:
        super().__init__()
        levels = torch.tensor(_QUANTILES)
        self.register_buffer("levels", levels)
        white = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
        self.register_buffer("glass", torch.cat([white, torch.zeros(6), white.repeat(len(_QUANTILES))]))
        self.levels: Tensor
        self.glass: Tensor

    def forward(self, tiles: Tensor) -> Tensor:
        """Compute the statistics [N, 42] of tiles [N, 3, H, W] in 0..1."""
        pixels = tiles.float().flatten(2)
        density = -torch.log(pixels.clamp(min=1 / 255)) / _MAX_OD
        values = torch.cat([pixels, density], dim=1)
        ordered = values.sort(dim=2).values
        places = (self.levels * (ordered.shape[2] - 1)).round().long()
        quantiles = ordered[:, :, places].permute(0, 2, 1).flatten(1)
        return torch.cat([values.mean(dim=2), values.std(dim=2), quantiles], dim=1) - self.glass
