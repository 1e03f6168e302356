"""Antialiased resizing of uint8 tiles on any device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def resize_tiles(tiles: Tensor, tile_px: int) -> Tensor:
    """Resize tiles uint8 [N, H, W, 3] to uint8 [N, tile_px, tile_px, 3]; returns them as they are if they fit."""
    if tiles.shape[1] == tile_px and tiles.shape[2] == tile_px:
        return tiles
    # A channels-last view, not a copy; float32 because not every device resizes uint8.
    planes = tiles.permute(0, 3, 1, 2).float()
    resized = F.interpolate(planes, size=(tile_px, tile_px), mode="bilinear", antialias=True)
    return resized.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
