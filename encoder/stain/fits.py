"""What a normaliser knows of each tile, and why it leaves some as they are."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor


class Outcome(IntEnum):
    """What normalisation did to a tile; every outcome but the first leaves it exactly as it was."""

    NORMALISED = 0
    LITTLE_TISSUE = 1
    DARK = 2
    ONE_STAIN = 3
    NO_TARGET = 4

    @property
    def reason(self) -> str:
        """In words."""
        return _REASONS[self]


_REASONS = {
    Outcome.NORMALISED: "normalised",
    Outcome.LITTLE_TISSUE: "less than 5 % of the tile is stained",
    Outcome.DARK: "the tile is dark as no brightfield tissue is",
    Outcome.ONE_STAIN: "no two stains can be told apart",
    Outcome.NO_TARGET: "there is no target",
}


@dataclass(frozen=True)
class Fit:
    """A normaliser's figures of N tiles.

    Attributes:
        values: float32 [N, ...]; what they mean is the method's own.
        outcome: `Outcome` of each, int64 [N]; where it is not 0, the values are finite but mean nothing.
    """

    values: Tensor
    outcome: Tensor

    def __len__(self) -> int:
        return len(self.outcome)

    @property
    def usable(self) -> Tensor:
        """Which tiles could be fitted, bool [N]."""
        return self.outcome == Outcome.NORMALISED

    def row(self, index: int | Tensor) -> Fit:
        """One tile's figures, as those of a single tile."""
        rows = torch.as_tensor(index, device=self.outcome.device).reshape(1)
        return Fit(self.values[rows], self.outcome[rows])


def first_outcome(*checks: tuple[Tensor, Outcome]) -> Tensor:
    """The outcome of the first check that each tile fails, int64 [N]; pairs of failures bool [N] and outcome."""
    outcome = torch.zeros_like(checks[0][0], dtype=torch.int64)
    for failed, what in reversed(checks):
        outcome = torch.where(failed, int(what), outcome)
    return outcome
