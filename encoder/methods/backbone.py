"""The network that a method trains and keeps, as its options name it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict
from torch import nn

from encoder.architectures import build_timm
from encoder.errors import ConfigError
from encoder.methods.protocol import KeptNetwork
from encoder.registry import pooling_name


class NetworkOptions(BaseModel):
    """A timm network.

    Attributes:
        model: timm's name.
        arguments: passed to its constructor, such as `channels` of a ResNet.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "resnet18"
    arguments: dict[str, Any] = {}


def build_backbone(options: NetworkOptions) -> nn.Module:
    """Build the network with untrained weights.

    Raises:
        EncoderError: timm does not know it, or its arguments do not fit.
    """
    return build_timm(options.model, options.arguments)


def kept_backbone(options: NetworkOptions, backbone: nn.Module) -> KeptNetwork:
    """The network as the encoder to keep: its pooled features are the embedding."""
    architecture = {"kind": "timm", "model": options.model, "arguments": dict(options.arguments)}
    return KeptNetwork(backbone, architecture, pooling_name(backbone))


def check_view(name: str, view_px: int, largest_px: int) -> None:
    """Check that views are not larger than what they are cut from.

    Raises:
        ConfigError: they are.
    """
    if view_px > largest_px:
        raise ConfigError(
            f"method.{name} is {view_px}, larger than the {largest_px} px that views are cut from.",
            fix=f"Set method.{name} to at most {largest_px}, or a larger tile_px.",
        )
