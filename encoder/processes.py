"""Several processes that train one network together, as `torchrun` starts them; one process alone is the plain case."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from encoder.device import choose_device
from encoder.errors import UsageError

# The others wait while the first process looks at the encoder, clusters or writes.
_PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class Processes:
    """This process among those that share a training run; every method is called by all of them alike.

    Attributes:
        rank: number of this process, from 0.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks for all."""
        return self.rank == 0

    def share(self, total: int) -> slice:
        """Which of `total` rows of a step are this process's; `total` divides by `count`."""
        size = total // self.count
        return slice(self.rank * size, (self.rank + 1) * size)

    def gather(self, rows: Tensor) -> Tensor:
        """Join the rows [b, ...] of all processes, in order of rank; gradients flow back to where rows came from."""
        gathered: Tensor = rows if self.count == 1 else _Gather.apply(rows, self.share(len(rows) * self.count))
        return gathered

    def total(self, values: Tensor) -> Tensor:
        """Sum over the processes; gradients flow back to all."""
        summed: Tensor = values if self.count == 1 else _Total.apply(values)
        return summed

    def mean_(self, values: Tensor) -> Tensor:
        """Replace values by their mean over the processes, without gradients."""
        if self.count > 1:
            dist.all_reduce(values)
            values.div_(self.count)
        return values

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace gradients by their mean, in one message for each kind of number.

        What is minimised is then the mean of the processes' losses. PyTorch's own wrapper hides the messages
        behind the computation but wants one forward call per step, which methods with several phases do not have.
        """
        if self.count == 1:
            return
        kinds: dict[torch.dtype, list[Tensor]] = {}
        for parameter in parameters:
            if parameter.grad is not None:
                kinds.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        for gradients in kinds.values():
            flat = self.mean_(torch.cat([gradient.flatten() for gradient in gradients]))
            for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def from_first(self, values: Tensor) -> Tensor:
        """The first process's values; the others' are replaced in place."""
        if self.count > 1:
            dist.broadcast(values, src=0)
        return values

    def collect(self, thing: Any) -> list[Any]:
        """The plain values that the processes give, in order of rank."""
        if self.count == 1:
            return [thing]
        things: list[Any] = [None] * self.count
        dist.all_gather_object(things, thing)
        return things

    def wait(self) -> None:
        """Wait until every process has come here."""
        if self.count > 1:
            dist.barrier()


# One process that trains by itself.
ALONE = Processes()


@contextmanager
def joined(device: str | None) -> Iterator[tuple[Processes, torch.device]]:
    """Join the processes that `torchrun` started, or be the only one; gives them and this process's device.

    Args:
        device: where to compute; None takes CUDA where present, a card of its own for each process.

    Raises:
        UsageError: there are more processes than CUDA devices, or a device was named for all of them.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE, choose_device(device)
        return
    place = _own_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    # A second run in the same processes finds them joined: torchrun's meeting place serves only once.
    if not dist.is_initialized():
        # What the processes agree on beside the computation lies on the CPU and must not wait for the card.
        backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=_PATIENCE)
        atexit.register(dist.destroy_process_group)
    yield Processes(dist.get_rank(), count), place


def _own_device(device: str | None, local_rank: int) -> torch.device:
    place = choose_device(device)
    if place.type != "cuda":
        return place
    if place.index is not None:
        raise UsageError(f"All processes were given the device {device}.", fix="Give cuda; each takes its own card.")
    return choose_device(f"cuda:{local_rank}")


class _Gather(torch.autograd.Function):
    """All rows on every process; backward, the gradients that all processes have for this one's rows are added."""

    @staticmethod
    def forward(context: Any, rows: Tensor, share: slice) -> Tensor:
        context.share = share
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        whole = gradients[0].contiguous().clone()
        dist.all_reduce(whole)
        return whole[context.share], None


class _Total(torch.autograd.Function):
    """A sum over the processes, forward and backward."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        summed = values.detach().clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].contiguous().clone()
        dist.all_reduce(summed)
        return summed
