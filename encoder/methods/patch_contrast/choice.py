"""Which map is that of nuclei, without labels: the one over the most haematoxylin, of a plausible size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from encoder.nets.confidence import NO_CHANNEL
from encoder.stain.density import GLASS_DENSITY, to_density
from encoder.stain.haematoxylin import haematoxylin
from encoder.stain.normalise import fit_stains


@dataclass(frozen=True)
class Choice:
    """What the maps cover.

    Attributes:
        channel: of nuclei, or C more than that of a map that holds all but them, as nothing tells a map which
            side to hold; -1 where none qualifies, a collapse.
        coverage: share of the tissue that each map covers, then of what it leaves out, float32 [2C].
        haematoxylin: mean amount in the same, float32 [2C].
        separation: share of haematoxylin's variance over the tissue that lies between what the chosen map
            covers and the rest, 0..1 (Otsu's measure); 0 without a choice.
    """

    channel: int
    coverage: Tensor
    haematoxylin: Tensor
    separation: float


class MapTally:
    """Adds up, batch by batch, what each map covers.

    Args:
        classes: number of maps.
    """

    def __init__(self, classes: int) -> None:
        # Pixels of tissue, amounts and squared amounts; then the pixels and amounts under each map.
        self._tissue = torch.zeros(3, dtype=torch.float64)
        self._under = torch.zeros(2, classes, dtype=torch.float64)

    def add(self, confidence: Tensor, rgb: Tensor) -> None:
        """Count maps [N, C, H, W] over RGB in 0..1, [N, 3, H, W]."""
        tissue = (to_density(rgb.amin(dim=1)) > GLASS_DENSITY).float()
        amount = haematoxylin(rgb, fit_stains("macenko", rgb))[:, 0] * tissue
        self._tissue += torch.stack([tissue.sum(), amount.sum(), amount.square().sum()]).double().cpu()
        mask = (confidence > 0.5).float()
        counted = torch.einsum("nchw,nhw->c", mask, tissue)
        self._under += torch.stack([counted, torch.einsum("nchw,nhw->c", mask, amount)]).double().cpu()

    def choose(self, least_coverage: float, most_coverage: float) -> Choice:
        """The map with the highest mean amount of haematoxylin among those whose coverage is in the range."""
        pixels, amount, squares = (max(float(value), 1e-9) for value in self._tissue)
        counted = torch.cat([self._under[0], self._tissue[0] - self._under[0]])
        under = torch.cat([self._under[1], self._tissue[1] - self._under[1]])
        coverage = counted / pixels
        mean = under / counted.clamp(min=1)
        fits = (coverage >= least_coverage) & (coverage <= most_coverage)
        if not fits.any():
            return Choice(NO_CHANNEL, coverage.float(), mean.float(), 0.0)
        channel = int(torch.where(fits, mean, -torch.inf).argmax())
        share, inside = float(coverage[channel]), float(mean[channel])
        beside = (amount - float(under[channel])) / max(pixels - float(counted[channel]), 1.0)
        variance = max(squares / pixels - (amount / pixels) ** 2, 1e-12)
        separation = share * (1 - share) * (inside - beside) ** 2 / variance
        return Choice(channel, coverage.float(), mean.float(), separation)
