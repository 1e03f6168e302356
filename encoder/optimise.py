"""Optimisers of a method's phases, and one safe step of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from encoder.config import OptimiserConfig
from encoder.processes import Processes


def build_optimisers(phases: Mapping[str, nn.Module], config: OptimiserConfig) -> dict[str, Optimizer]:
    """Make one optimiser per phase; biases and normalisation weights are not decayed."""
    return {name: _build(module, config) for name, module in phases.items()}


def set_learning_rate(optimisers: Mapping[str, Optimizer], rate: float) -> None:
    """Give all parameter groups a learning rate."""
    for optimiser in optimisers.values():
        for group in optimiser.param_groups:
            group["lr"] = rate


def backward(
    losses: Mapping[str, Tensor], optimiser: Optimizer, clip_norm: float, processes: Processes
) -> tuple[dict[str, float], float]:
    """Compute the gradients of `loss` and clip them.

    All numbers are read in one transfer, since on a GPU each costs a wait.

    Args:
        losses: scalars of this process; `loss` is minimised.
        optimiser: of the weights concerned.
        clip_norm: largest norm of the gradient.
        processes: those whose mean loss is minimised.

    Returns:
        The scalars, as means over the processes, and the norm of the gradient before clipping.
    """
    optimiser.zero_grad(set_to_none=True)
    losses["loss"].backward()
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    processes.average_gradients(parameters)
    norm = nn.utils.clip_grad_norm_(parameters, clip_norm)
    means = processes.mean_(torch.stack([value.detach().float() for value in losses.values()]))
    *values, length = torch.cat([means, norm.detach().float()[None]]).tolist()
    return dict(zip(losses, values, strict=True)), length


def _build(module: nn.Module, config: OptimiserConfig) -> Optimizer:
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.kind == "sgd":
        return SGD(groups, lr=config.lr, momentum=0.9)
    return AdamW(groups, lr=config.lr)
