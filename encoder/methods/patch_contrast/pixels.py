"""The published loss (Boserup and Selvan, NLDL 2023): windows under their maps, compared pixel by pixel."""

from __future__ import annotations

import torch
from torch import Tensor


def pixel_contrast(
    patches: Tensor, positive: Tensor, anchors: Tensor, per_positive: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw positives of a class together, away from its negatives and from the positives of other classes.

    With s the negated mean square difference of two patches, each class c adds, for its anchors a and positives p,
    the sum of -s(a, p) + log sum exp s(a, m) over its negatives m, and the same over the positives m of the other
    classes; divided by the number of anchors times the number of draws.

    Args:
        patches: windows times maps, float32 [C, M, D].
        positive: which are positive, bool [C, M].
        anchors: uniform in 0..1, float32 [C, A]: which positives are anchors.
        per_positive: divide by the number of positives instead of the number of draws.

    Returns:
        The loss, the mean over classes of s(positive, positive) - s(positive, negative), and 1 where the step
        counts: a class without positives or negatives makes loss and gradients zero.
    """
    classes, draws, _ = patches.shape
    count = positive.sum(dim=1)
    valid = ((count > 0) & (count < draws)).all()
    chosen = pick_positive(positive, anchors)
    anchor = patches.gather(1, chosen[:, :, None].expand(-1, -1, patches.shape[2]))
    similarity = similarities(anchor, patches)
    own = torch.arange(classes, device=patches.device)
    same = similarity[own, :, own]
    weight = positive.float()
    attraction = (same * weight[:, None]).sum(dim=2)
    scale = (count if per_positive else torch.full_like(count, draws)).clamp(min=1) * anchors.shape[1]
    repulsion = _log_sum_exp(same, ~positive[:, None])
    if classes > 1:
        other = positive[None].expand(classes, -1, -1) & (own[:, None, None] != own[None, :, None])
        repulsion = repulsion + _log_sum_exp(similarity.flatten(2), other.flatten(1)[:, None])
        attraction = 2 * attraction
    each = (-attraction + count[:, None] * repulsion).sum(dim=1) / scale
    alike = attraction.sum(dim=1) / ((2 if classes > 1 else 1) * anchors.shape[1] * count.clamp(min=1))
    unlike = (same * (1 - weight)[:, None]).sum(dim=2).mean(dim=1) / (draws - count).clamp(min=1)
    zero = patches.sum() * 0
    gap = (alike - unlike).mean().detach()
    return torch.where(valid, each.sum(), zero), torch.where(valid, gap, torch.zeros_like(gap)), valid.float()


def pick_positive(positive: Tensor, uniform: Tensor) -> Tensor:
    """Numbers int64 [C, A] of positives [C, M], drawn evenly with replacement; any where a class has none."""
    ranks = positive.cumsum(dim=1)
    wanted = (uniform * ranks[:, -1:]).floor().long() + 1
    return torch.searchsorted(ranks, wanted).clamp_(max=positive.shape[1] - 1)


def similarities(anchors: Tensor, patches: Tensor) -> Tensor:
    """Negated mean square differences [C, A, C, M] of anchors [C, A, D] and patches [C, M, D]: one matrix product."""
    (classes, count, depth), draws = anchors.shape, patches.shape[1]
    rows, columns = anchors.flatten(0, 1), patches.flatten(0, 1)
    squares = rows.square().sum(dim=1)[:, None] + columns.square().sum(dim=1)[None]
    distance = torch.addmm(squares, rows, columns.T, alpha=-2).clamp(min=0) / depth
    return -distance.view(classes, count, classes, draws)


def _log_sum_exp(similarity: Tensor, held: Tensor) -> Tensor:
    """Logarithm of the sum of exponentials over what is held; finite also where nothing is."""
    # Similarities lie in -1..0, so that nothing overflows and one that is left out adds nothing.
    return torch.where(held, similarity.exp(), 0.0).sum(dim=2).clamp(min=1e-30).log()
