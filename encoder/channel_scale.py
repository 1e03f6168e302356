"""The scale a network takes colour in: less the mean and over the spread of each channel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class ChannelScale:
    """Turns RGB in 0..1 [N, 3, H, W] into what a network takes, and back.

    Args:
        mean: of red, green and blue.
        std: their standard deviations.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self._mean = torch.tensor(mean).view(1, 3, 1, 1)
        self._std = torch.tensor(std).view(1, 3, 1, 1)

    def __call__(self, rgb: Tensor) -> Tensor:
        """Scale to what the network takes."""
        return (rgb - self._mean.to(rgb.device)) / self._std.to(rgb.device)

    def undo(self, planes: Tensor) -> Tensor:
        """RGB in 0..1 of what the network takes; rounding is cut off."""
        return (planes * self._std.to(planes.device) + self._mean.to(planes.device)).clamp(0, 1)
