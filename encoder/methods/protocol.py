"""What a training method is to the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from encoder.processes import ALONE, Processes

if TYPE_CHECKING:
    from encoder.embed import TileEncoder


class MethodOptions(BaseModel):
    """Base of every method's options; `name` says which method they are for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str


@dataclass(frozen=True)
class Batch:
    """This process's tiles of one step; where it trains alone, all of them.

    Attributes:
        tiles: uint8 [B, tile_px, tile_px, 3] on the training device.
        indices: their numbers in the source, int64 [B], on the CPU.
        generator: source of all randomness of the step, on the CPU, the same in all processes: draw for the
            whole step, then take the own share.
        progress: share of the training that is done, 0..1.
        epoch: passes over the tiles that are done.
        processes: those that share the step.
    """

    tiles: Tensor
    indices: Tensor
    generator: torch.Generator
    progress: float
    epoch: int = 0
    processes: Processes = ALONE

    @property
    def total(self) -> int:
        """Tiles of the step in all processes."""
        return len(self.indices) * self.processes.count

    @property
    def share(self) -> slice:
        """Which of the step's tiles these are."""
        return self.processes.share(self.total)


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

    def settled(self) -> Mapping[str, float]:
        """Sizes that the method settled on for these tiles, by name; shown and stored with the encoder."""

    def begin_epoch(self, epoch: int, processes: Processes) -> None:
        """Prepare a pass over the tiles, counted from 0; called before its first step."""

    def converged(self) -> bool:
        """Whether the run may end before its last step; asked after each `begin_epoch`."""

    def losses(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        """Compute the scalars of a phase; `loss` is minimised, the others are only logged.

        Called inside the autocast context of the config's precision. What is minimised is the mean over the
        processes, so that where a loss compares tiles with each other, `batch.processes.gather` joins them.
        """

    def after_step(self, progress: float) -> None:
        """Update what is not optimised, such as averaged weights."""

    def look(self, encoder: TileEncoder, tiles: NDArray[np.uint8]) -> dict[str, float]:
        """Measure what an encoder of this method is for, and settle what it decides without labels.

        Args:
            encoder: made of the kept network; its buffers may be set.
            tiles: plain tiles uint8 [M, tile_px, tile_px, 3].

        Returns:
            Figures to log; a `score` among them chooses the checkpoint in place of the monitor's.
        """

    def kept(self) -> KeptNetwork:
        """The network to keep as the encoder."""
