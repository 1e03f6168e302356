"""A contrast that does not collapse: what a window holds under a map against what it holds beside it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from encoder.methods.patch_contrast.options import WindowOptions
from encoder.methods.patch_contrast.windows import Windows

# The other mode loses small distances to cancellation.
_EXACT = "donot_use_mm_for_euclid_dist"


class Held(NamedTuple):
    """Drawn windows of all pictures, for each of C classes.

    Attributes:
        covered: mean confidence [C, M].
        inside: mean density under the map [C, M, D].
        outside: mean density beside it [C, M, D].
    """

    covered: Tensor
    inside: Tensor
    outside: Tensor


def held_by_windows(confidence: Tensor, density: Tensor, windows: Windows, options: WindowOptions) -> Held:
    """Weigh the densities [B, D, H, W] of drawn windows by their maps [B, C, H, W]."""
    (batch, classes), depth = confidence.shape[:2], density.shape[1]
    weighted = (confidence[:, :, None] * density[:, None]).flatten(1, 2)
    covered = _pool(confidence, options).flatten(2)
    under = _pool(weighted, options).view(batch, classes, depth, -1)
    whole = _pool(density, options).flatten(2)[:, None].expand(-1, classes, -1, -1)
    covered = covered.gather(2, windows.number)
    index = windows.number[:, :, None].expand(-1, -1, depth, -1)
    under, whole = under.gather(3, index), whole.gather(3, index)
    share = covered[:, :, None]
    inside = under / share.clamp(min=1e-3)
    outside = (whole - under) / (1 - share).clamp(min=1e-3)
    by_class = [part.permute(1, 0, 3, 2).flatten(1, 2) for part in (inside, outside)]
    return Held(covered.transpose(0, 1).flatten(1), *by_class)


def mean_contrast(held: Held, other_classes: float) -> tuple[Tensor, Tensor]:
    """Keep what a map holds apart from what lies beside it in the same window, and the maps from each other.

    Each class takes away the mean over windows of covered x (1 - covered) x |inside - outside|^2: the variance
    between the two sides (Otsu 1979), of a window in place of a whole picture. The product of coverages keeps a
    map from shrinking to the few densest pixels or growing over everything, where the published loss has its best
    values. For what different classes hold, the distance is taken over pairs of windows.

    Args:
        held: drawn windows.
        other_classes: weight of the second part.

    Returns:
        The loss, and the mean distance that the first part weighs.
    """
    covered, inside, outside = held
    spread = covered * (1 - covered)
    apart = (inside - outside).square().sum(dim=2)
    loss = -(spread * apart).mean()
    classes, count = covered.shape
    if other_classes and classes > 1:
        between = torch.cdist(inside.flatten(0, 1), inside.flatten(0, 1), compute_mode=_EXACT).square()
        weight = 4 * spread.flatten()[:, None] * spread.flatten()[None]
        number = torch.arange(classes, device=covered.device).repeat_interleave(count)
        different = number[:, None] != number[None]
        loss = loss - other_classes * (weight * between * different).sum() / different.sum()
    return loss, ((spread * apart).sum() / spread.sum().clamp(min=1e-6)).detach()


def _pool(maps: Tensor, options: WindowOptions) -> Tensor:
    return F.avg_pool2d(maps, options.side_px, options.stride_px)
