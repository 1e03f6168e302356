"""What a training run carries from step to step, and how it is saved and put back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from encoder.methods.protocol import Method
from encoder.rng import capture_rng, restore_rng


@dataclass
class Best:
    """The best encoder so far.

    Attributes:
        step: steps that it was trained for.
        metrics: what the monitor said of it.
        weights: its network's weights, ready for inference, on the CPU.
    """

    step: int
    metrics: dict[str, float]
    weights: dict[str, Tensor]


@dataclass
class TrainerState:
    """A run between two steps.

    Attributes:
        method: the method with its weights.
        optimisers: one per phase.
        generator: source of the views' randomness.
        digest: hash of the tiles that are trained on.
        step: steps done.
        seconds: time spent, resumed parts together.
        looks: times that the monitor has looked.
        best: the best encoder so far, once the monitor has looked.
    """

    method: Method
    optimisers: Mapping[str, Optimizer]
    generator: torch.Generator
    digest: str
    step: int = 0
    seconds: float = 0.0
    looks: int = 0
    best: Best | None = field(default=None)

    def pack(self) -> dict[str, Any]:
        """Everything as tensors and plain values, random states included."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "looks": self.looks,
            "digest": self.digest,
            "module": self.method.module.state_dict(),
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
            "generator": self.generator.get_state(),
            "rng": capture_rng(),
            "best": None if self.best is None else vars(self.best),
        }

    def unpack(self, packed: Mapping[str, Any]) -> None:
        """Put back what `pack` gave, random states included."""
        self.method.module.load_state_dict(packed["module"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(packed["optimisers"][name])
        self.generator.set_state(packed["generator"])
        restore_rng(packed["rng"])
        self.step, self.seconds, self.looks = packed["step"], packed["seconds"], packed["looks"]
        self.best = None if packed["best"] is None else Best(**packed["best"])
