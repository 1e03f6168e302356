"""How much haematoxylin every pixel holds."""

from __future__ import annotations

import torch
from torch import Tensor

from encoder.stain.density import he_basis, to_density
from encoder.stain.fits import Fit
from encoder.stain.macenko import unmixing


def haematoxylin(rgb: Tensor, fit: Fit) -> Tensor:
    """Amount of haematoxylin [N, 1, H, W], about 1 in the darkest nuclei, not below 0.

    Args:
        rgb: RGB in 0..1, [N, 3, H, W].
        fit: Macenko's of the tiles that they are cut from; where there is none, the basis of Ruifrok and
            Johnston stands in.
    """
    amounts = unmixing(fit.values[:, :2])[:, 0] / fit.values[:, 2, :1].clamp(min=1e-3)
    standard = torch.linalg.inv(he_basis())[:, 0].to(rgb.device)
    unmix = torch.where(fit.usable[:, None], amounts, standard)
    return torch.einsum("nchw,nc->nhw", to_density(rgb), unmix).clamp(min=0)[:, None]
