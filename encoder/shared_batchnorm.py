"""Batch normalisation over the batch of all processes; PyTorch's own knows only GPUs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from encoder.errors import EncoderError
from encoder.processes import Processes


class SharedBatchNorm(nn.Module):
    """A batch normalisation whose statistics in training are those of all processes' rows together.

    It takes over the parameters and buffers of another, under their names, so that weights fit both.

    Args:
        layer: the one to stand in for.
        processes: who shares the batch; every process holds as many rows.
    """

    def __init__(self, layer: _BatchNorm, processes: Processes) -> None:
        super().__init__()
        if layer.momentum is None or layer.weight is None or layer.running_mean is None:
            raise EncoderError(
                "The network has a batch normalisation without momentum, weights or running statistics.",
                fix="Train it in one process.",
            )
        self.weight, self.bias = layer.weight, layer.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(layer, name))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.num_batches_tracked: Tensor
        self._eps, self._momentum, self._processes = layer.eps, layer.momentum, processes
        # timm joins an activation to the normalisation, which may have weights of its own.
        self.drop = getattr(layer, "drop", None) or nn.Identity()
        self.act = getattr(layer, "act", None) or nn.Identity()
        self.train(layer.training)

    def forward(self, values: Tensor) -> Tensor:
        """Normalise [N, C, ...] per channel."""
        if self.training:
            mean, variance = self._batch_statistics(values)
        else:
            mean, variance = self.running_mean, self.running_var
        scale = self.weight * torch.rsqrt(variance + self._eps)
        shape = (1, -1, *[1] * (values.ndim - 2))
        out = (values.float() * scale.view(shape) + (self.bias - mean * scale).view(shape)).to(values.dtype)
        activated: Tensor = self.act(self.drop(out))
        return activated

    @torch.compiler.disable
    def _batch_statistics(self, values: Tensor) -> tuple[Tensor, Tensor]:
        across = [0, *range(2, values.ndim)]
        wide = values.float()
        count = self._processes.count
        mean = self._processes.total(wide.mean(dim=across)) / count
        centred = wide - mean.view(1, -1, *[1] * (values.ndim - 2))
        variance = self._processes.total(centred.square().mean(dim=across)) / count
        with torch.no_grad():
            rows = count * values.numel() // values.shape[1]
            self.running_mean.lerp_(mean, self._momentum)
            self.running_var.lerp_(variance * rows / max(rows - 1, 1), self._momentum)
            self.num_batches_tracked += 1
        return mean, variance


def share_batchnorm(module: nn.Module, processes: Processes) -> None:
    """Let all batch normalisations below a module see the batch of all processes; one process alone changes nothing.

    Raises:
        EncoderError: one of them is of a kind that cannot be shared.
    """
    if processes.count == 1:
        return
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, SharedBatchNorm(child, processes))
        else:
            share_batchnorm(child, processes)
