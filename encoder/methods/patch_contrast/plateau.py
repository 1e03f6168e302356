"""When a run has converged: the gap between like and unlike windows does not grow any more."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from encoder.methods.patch_contrast.options import StopOptions
from encoder.processes import Processes


class Plateau(nn.Module):
    """Mean gap of every pass over the tiles; a module, so that a resumed run remembers it.

    Args:
        options: when the gap counts as settled.

    Attributes:
        reached: whether it has.
    """

    sums: Tensor
    history: Tensor
    epochs: Tensor

    def __init__(self, options: StopOptions) -> None:
        super().__init__()
        self._options = options
        self.register_buffer("sums", torch.zeros(2))
        self.register_buffer("history", torch.zeros(options.epochs + 1))
        self.register_buffer("epochs", torch.zeros(1, dtype=torch.int64))
        self.reached = False

    def note(self, gap: Tensor, counted: Tensor) -> None:
        """Add a step's gap, where the step counts."""
        if self._options.epochs:
            self.sums += torch.stack([gap * counted, counted])

    def end_epoch(self, processes: Processes) -> None:
        """Close a pass, if it had steps, and judge."""
        if not self._options.epochs:
            return
        # The first process's word, so that all end together.
        gap, steps = processes.from_first(self.sums.clone()).tolist()
        self.sums.zero_()
        if not steps:
            return
        self.history.copy_(self.history.roll(-1))
        self.history[-1] = gap / steps
        self.epochs += 1
        before, now = float(self.history[0]), float(self.history[-1])
        enough = int(self.epochs) >= max(self._options.least_epochs, self._options.epochs + 1)
        self.reached = enough and abs(now - before) < self._options.least_change * abs(before)
