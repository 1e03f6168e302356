"""The network that a method trains and keeps, as its options name it."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from encoder.architectures import NARROW_RESNET, build_network, vector_length
from encoder.errors import ConfigError
from encoder.methods.protocol import KeptNetwork
from encoder.registry import pooling_name


class NetworkOptions(BaseModel):
    """The network that a method trains.

    Attributes:
        model: timm's name, or `narrow-resnet` for the small ResNet of stain-invariant learning.
        arguments: passed to its constructor, such as `channels` of a timm ResNet or `widths` of the narrow one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "resnet18"
    arguments: dict[str, Any] = {}


def build_backbone(options: NetworkOptions) -> nn.Module:
    """Build the network with untrained weights.

    Raises:
        EncoderError: there is no such network, or its arguments do not fit.
    """
    return build_network(_architecture(options))


def kept_backbone(options: NetworkOptions, backbone: nn.Module) -> KeptNetwork:
    """The network as the encoder to keep: its pooled features are the embedding."""
    return KeptNetwork(backbone, _architecture(options), pooling_name(backbone))


def _architecture(options: NetworkOptions) -> dict[str, Any]:
    if options.model == NARROW_RESNET:
        return {"kind": NARROW_RESNET, "arguments": dict(options.arguments)}
    return {"kind": "timm", "model": options.model, "arguments": dict(options.arguments)}


def check_view(name: str, view_px: int, largest_px: int, backbone: nn.Module) -> None:
    """Check that views are not larger than what they are cut from, nor too small for the network.

    A view that is down to one pixel before a convolution that would halve it shows the network nothing more;
    and the weight gradient of such a convolution in bfloat16 on a CPU is uninitialised memory in PyTorch 2.15.

    Args:
        name: of the option, for the message.
        view_px: side of the views.
        largest_px: side of what they are cut from.
        backbone: the network, on the CPU.

    Raises:
        ConfigError: they are.
    """
    if view_px > largest_px:
        raise ConfigError(
            f"method.{name} is {view_px}, larger than the {largest_px} px that views are cut from.",
            fix=f"Set method.{name} to at most {largest_px}, or a larger tile_px.",
        )
    if not _lasts(backbone, view_px):
        least = next((side for side in range(view_px, largest_px + 1) if _lasts(backbone, side)), None)
        raise ConfigError(
            f"method.{name} is {view_px}: such views shrink to one pixel before the network's last halving.",
            fix=f"Set method.{name} to {least} or more."
            if least
            else "Use larger tiles, or a network that halves less.",
        )


def _lasts(backbone: nn.Module, view_px: int) -> bool:
    """Whether every convolution with a stride still finds more than one pixel to choose from."""
    smallest = view_px

    def look(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal smallest
        if isinstance(layer, nn.Conv2d) and max(layer.stride) > 1:
            smallest = min(smallest, *inputs[0].shape[-2:])

    hooks = [layer.register_forward_pre_hook(look) for layer in backbone.modules() if isinstance(layer, nn.Conv2d)]
    try:
        vector_length(backbone, view_px)
    finally:
        for hook in hooks:
            hook.remove()
    return smallest > 1
