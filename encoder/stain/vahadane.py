"""Vahadane et al. (IEEE TMI 2016): two stains whose sparse non-negative amounts explain the optical densities."""

from __future__ import annotations

import torch
from torch import Tensor

from encoder.stain.density import GLASS_DENSITY, pick_pixels
from encoder.stain.fits import Fit
from encoder.stain.macenko import fit_extremes, haematoxylin_first, stain_fit

# Penalties on amounts while the stains are sought, and when amounts are computed.
_SEEK_PENALTY = 0.1
AMOUNT_PENALTY = 0.01
_ROUNDS = 60


def fit_vahadane(density: Tensor, sample_px: int | None) -> Fit:
    """Find haematoxylin and eosin of every tile by sparse non-negative factorisation.

    Minimises, over stains of at most unit length and amounts, both not negative, half the squared residual plus
    0.1 times the sum of the amounts; amounts and stains in turn, from Macenko's stains on.

    Args:
        density: optical densities float32 [N, 3, P].
        sample_px: stained pixels of each tile that are looked at; None for all.

    Returns:
        Values float32 [N, 3, 3], as those of `fit_macenko`.
    """
    # Macenko's stricter rule leaves out pixels of eosin alone, which fix the second stain here.
    pixels, share = pick_pixels(density, density.amax(dim=1) > GLASS_DENSITY, sample_px)
    stains = fit_extremes(pixels, share).values[:, :2].clamp(min=0)
    stains = _unit(stains)
    planes = pixels.transpose(1, 2).contiguous()
    for _ in range(_ROUNDS):
        amounts = sparse_amounts(stains, planes, _SEEK_PENALTY)
        stains = _better_stains(stains, amounts, planes)
    stains = haematoxylin_first(stains)
    return stain_fit(stains, sparse_amounts(stains, planes, AMOUNT_PENALTY).transpose(1, 2), pixels, share)


def sparse_amounts(stains: Tensor, density: Tensor, penalty: float) -> Tensor:
    """Amounts that minimise half the squared residual plus the penalty times their sum, none negative; exact.

    With two stains that have no negative part there are three cases: both amounts positive, or one of them zero.

    Args:
        stains: unit densities [N, 2, 3], none negative.
        density: [N, 3, P].
        penalty: of each unit of amount.

    Returns:
        Amounts [N, 2, P].
    """
    fitted = torch.baddbmm(density.new_tensor(-penalty), stains, density)
    cosine = (stains[:, 0] * stains[:, 1]).sum(dim=1)[:, None]
    square_sine = torch.linalg.cross(stains[:, 0], stains[:, 1]).square().sum(dim=1)[:, None].clamp(min=1e-6)
    first, second = fitted[:, 0], fitted[:, 1]
    both_first = torch.addcmul(first, cosine, second, value=-1).div_(square_sine)
    both_second = torch.addcmul(second, cosine, first, value=-1).div_(square_sine)
    without_first, without_second = both_first < 0, both_second < 0
    return torch.stack(
        [
            torch.where(without_second, first, both_first).masked_fill_(without_first, 0).clamp_(min=0),
            torch.where(without_first, second, both_second).masked_fill_(without_second, 0).clamp_(min=0),
        ],
        dim=1,
    )


def _better_stains(stains: Tensor, amounts: Tensor, density: Tensor) -> Tensor:
    """One round of block coordinate descent over the stains (Mairal et al., JMLR 2010, algorithm 2)."""
    together = amounts @ amounts.transpose(1, 2)
    explained = amounts @ density.transpose(1, 2)
    rows = list(stains.unbind(1))
    for i in range(2):
        weight = together[:, i, i][:, None].clamp(min=1e-6)
        mixed = together[:, i, 0][:, None] * rows[0] + together[:, i, 1][:, None] * rows[1]
        better = (rows[i] + (explained[:, i] - mixed) / weight).clamp(min=0)
        rows[i] = better / better.norm(dim=1, keepdim=True).clamp(min=1)
    return torch.stack(rows, dim=1)


def _unit(stains: Tensor) -> Tensor:
    return stains / stains.norm(dim=2, keepdim=True).clamp(min=1e-6)
