"""Which windows are drawn, and which of them are positive: where a map is certain, by its mean."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from encoder.methods.patch_contrast.options import WindowOptions

# Every window keeps some chance, however uncertain its map.
_LEAST_CERTAINTY = 1e-3


@dataclass(frozen=True)
class Windows:
    """Windows drawn for B pictures and C classes, n each.

    Attributes:
        number: of each window in the grid of windows, row by row, int64 [B, C, n].
        positive: whether it counts as positive, bool [B, C, n].
        columns: windows in a row of the grid.
    """

    number: Tensor
    positive: Tensor
    columns: int


def draw_windows(confidence: Tensor, options: WindowOptions, places: Tensor, coins: Tensor) -> Windows:
    """Draw windows with a chance that grows with their certainty; without gradients.

    The certainty of a window is one minus the mean binary entropy of its map in bits. A window is positive with
    the probability of its mean confidence: thrown once per window, however often it is drawn.

    Args:
        confidence: maps [B, C, H, W].
        options: of the windows.
        places: uniform in 0..1, float32 [B, C, n].
        coins: uniform in 0..1, one for each window of the grid, float32 [B, C, P].
    """
    with torch.no_grad():
        maps = confidence.detach().float()
        entropy = F.avg_pool2d(binary_entropy(maps), options.side_px, options.stride_px)
        mean = F.avg_pool2d(maps, options.side_px, options.stride_px).flatten(2)
        sums = (1 - entropy).clamp(min=_LEAST_CERTAINTY).flatten(2).cumsum(dim=2)
        number = torch.searchsorted(sums, places * sums[:, :, -1:], right=True).clamp_(max=sums.shape[2] - 1)
        positive = (coins < mean).gather(2, number)
        return Windows(number, positive, entropy.shape[3])


def grid_size(height: int, width: int, options: WindowOptions) -> int:
    """Number of windows in a picture."""
    down, across = ((side - options.side_px) // options.stride_px + 1 for side in (height, width))
    return down * across


def binary_entropy(confidence: Tensor) -> Tensor:
    """Entropy in bits of each confidence; 0 at 0 and 1."""
    inverse = 1 - confidence
    return -(torch.xlogy(confidence, confidence) + torch.xlogy(inverse, inverse)) / math.log(2)


def cut_windows(pictures: Tensor, windows: Windows, options: WindowOptions) -> Tensor:
    """Pixels [B, C, n, D, K * K] of drawn windows of pictures [B, D, H, W], or of each class's map [B, C, 1, H, W]."""
    side = options.side_px
    width = pictures.shape[-1]
    inside = torch.arange(side, device=pictures.device)
    within = (inside[:, None] * width + inside).flatten()
    corner = (windows.number // windows.columns) * (options.stride_px * width) + (
        windows.number % windows.columns
    ) * options.stride_px
    index = corner[..., None] + within
    batch, classes, draws, pixels = index.shape
    if pictures.ndim == 5:
        cut = pictures.flatten(3).gather(3, index.view(batch, classes, 1, draws * pixels))
        return cut.view(batch, classes, draws, 1, pixels)
    depth = pictures.shape[1]
    flat = index.view(batch, 1, classes * draws * pixels).expand(-1, depth, -1)
    cut = pictures.flatten(2).gather(2, flat)
    return cut.view(batch, depth, classes, draws, pixels).permute(0, 2, 3, 1, 4)
