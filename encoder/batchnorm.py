"""Batch-normalisation statistics fit for inference."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def recalibrate(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace running statistics by the plain mean over batches of what the network will really see.

    While training, batches are augmented views and the running mean follows the last few of them only;
    embedding sees plain tiles. Networks without batch normalisation are left as they are.

    Args:
        module: changed in place; left in evaluation mode.
        batches: normalised tiles [B, 3, H, W] on the module's device, B of at least 2.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    module.eval()
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        # None makes the layer keep the mean over all batches instead of a moving one.
        layer.momentum = None
        layer.train()
    for batch in batches:
        module(batch)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    module.eval()
