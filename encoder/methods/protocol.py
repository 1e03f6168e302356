"""What a training method is to the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn


class MethodOptions(BaseModel):
    """Base of every method's options; `name` says which method they are for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str


@dataclass(frozen=True)
class Batch:
    """Tiles of one step.

    Attributes:
        tiles: uint8 [B, tile_px, tile_px, 3] on the training device.
        indices: their numbers in the source, int64 [B], on the CPU.
        generator: source of all randomness of the step, on the CPU.
        progress: share of the training that is done, 0..1.
    """

    tiles: Tensor
    indices: Tensor
    generator: torch.Generator
    progress: float


@dataclass(frozen=True)
class KeptNetwork:
    """The part of a method that becomes the encoder.

    Attributes:
        module: maps normalised [N, 3, H, W] to [N, dim].
        architecture: from which `build_network` makes it again.
        pooling: how it turns the feature map into a vector.
    """

    module: nn.Module
    architecture: Mapping[str, Any]
    pooling: str


class Method(Protocol):
    """A way of learning from tiles without labels."""

    @property
    def module(self) -> nn.Module:
        """Everything with weights or buffers, averaged copies included: what a resumed run needs."""

    def phases(self) -> Mapping[str, nn.Module]:
        """The parts that are optimised in turn within a step, each by an optimiser of its own."""

    def losses(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        """Compute the scalars of a phase; `loss` is minimised, the others are only logged.

        Called inside the autocast context of the config's precision.
        """

    def after_step(self, progress: float) -> None:
        """Update what is not optimised, such as averaged weights."""

    def kept(self) -> KeptNetwork:
        """The network to keep as the encoder."""
