"""What two processes find when they try what they share; `torchrun` starts this file for test_processes.py.

`process_job.py FOLDER` wants `tiles/`, `contrastive.yaml` and `sgcl.yaml` in the folder; of other configs there it
compares single steps. Each process leaves its figures there as `report-RANK.json`; nothing is judged here.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from encoder.config import TrainConfig, load_config
from encoder.loader import GoodTiles
from encoder.methods.catalogue import build_method
from encoder.methods.protocol import Batch, Method
from encoder.optimise import backward, build_optimisers, set_learning_rate
from encoder.processes import ALONE, Processes, joined
from encoder.progress import SilentReporter
from encoder.rng import rng_kept, seed_all
from encoder.run_folder import RunFolder
from encoder.sampler import BatchSampler
from encoder.shared_batchnorm import SharedBatchNorm, share_batchnorm
from encoder.tiles import TileSource, open_for_training
from encoder.training_run import TrainingRun

CPU = torch.device("cpu")
STOP_AT = 11
Figures = dict[str, object]


class StopAfter(SilentReporter):
    """Sends Ctrl-C to this process after some steps; 0 never does."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._left = steps

    def advance(self, n: int = 1, detail: str = "") -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGINT)


def apart(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, as a share of the largest value that is wanted."""
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return float("inf")
    mine, other = found.detach().double(), wanted.detach().double()
    gap = (mine - other).abs().max() / other.abs().max().clamp(min=1e-12)
    return float(gap.nan_to_num(nan=float("inf")))


def exchange(processes: Processes) -> Figures:
    """Gather and total, forward and backward, where every process has a loss of its own."""
    generator = torch.Generator().manual_seed(1)
    whole = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    weights = torch.randn(processes.count, 6, 4, generator=generator, dtype=torch.float64)
    share = processes.share(len(whole))

    # Rows that are not contiguous in memory, as the columns of another tensor.
    own = whole[share].T.contiguous().T.requires_grad_()
    gathered = processes.gather(own)
    (gathered**3 * weights[processes.rank]).sum().backward()
    every = whole.clone().requires_grad_()
    (every**3 * weights.sum(dim=0)).sum().backward()
    assert own.grad is not None and every.grad is not None
    figures: Figures = {"gather": apart(gathered, whole), "gather_gradient": apart(own.grad, every.grad[share])}

    own = whole[share].clone().requires_grad_()
    processes.gather(own).sum().backward()
    assert own.grad is not None
    figures["gather_gradient_of_a_sum"] = apart(own.grad, torch.full_like(own, processes.count))
    numbers = torch.arange(6)
    figures["gather_numbers"] = bool((processes.gather(numbers[share]) == numbers).all())

    own = whole[share].clone().requires_grad_()
    summed = processes.total(own)
    (summed**2 * weights[processes.rank][:3]).sum().backward()
    every = whole.clone().requires_grad_()
    expected = every.view(processes.count, 3, 4).sum(dim=0)
    (expected**2 * weights[:, :3].sum(dim=0)).sum().backward()
    assert own.grad is not None and every.grad is not None
    figures |= {"total": apart(summed, expected), "total_gradient": apart(own.grad, every.grad[share])}

    rank = float(processes.rank)
    figures["mean"] = float(processes.mean_(torch.tensor(rank)))
    figures["from_first"] = float(processes.from_first(torch.tensor(rank + 7)))
    figures["collect"] = processes.collect({"rank": processes.rank})
    parameters = [nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(4, dtype=torch.float64))]
    parameters.append(nn.Parameter(torch.zeros(2)))
    parameters[0].grad = torch.full((2, 3), rank)
    parameters[1].grad = torch.arange(4, dtype=torch.float64) * rank
    processes.average_gradients(parameters)
    figures["average"] = [p.grad if p.grad is None else p.grad.tolist() for p in parameters]
    return figures


def normalisation(processes: Processes) -> Figures:
    """Each kind of batch normalisation against the plain one on the joined batch, over three steps."""
    kinds: dict[str, tuple[nn.modules.batchnorm._BatchNorm, list[int]]] = {
        "BatchNorm1d": (nn.BatchNorm1d(5), [8, 5]),
        "BatchNorm2d": (nn.BatchNorm2d(5, eps=1e-3, momentum=0.3), [8, 5, 3, 4]),
        "BatchNormAct2d": (BatchNormAct2d(5, act_layer=nn.SiLU), [8, 5, 3, 4]),
    }
    return {name: one_normalisation(layer, shape, processes) for name, (layer, shape) in kinds.items()}


def one_normalisation(
    layer: nn.modules.batchnorm._BatchNorm, shape: list[int], processes: Processes
) -> dict[str, object]:
    """Differences of output, gradients, running statistics and keys."""
    generator = torch.Generator().manual_seed(2)
    plain = copy.deepcopy(layer)
    with torch.no_grad():
        for mine, other in zip(layer.parameters(), plain.parameters(), strict=True):
            other.copy_(torch.randn(other.shape, generator=generator))
            mine.copy_(other)
    shared = SharedBatchNorm(layer, processes)
    share = processes.share(shape[0])
    figures = dict.fromkeys(("output", "input_gradient", "weight_gradient", "bias_gradient"), 0.0)
    for step in range(3):
        # The processes' shares differ in mean and spread, so that statistics of one's own would be seen.
        spread = torch.linspace(1, 4, shape[0]).view(-1, *[1] * (len(shape) - 1))
        whole = torch.randn(shape, generator=generator) * spread + 3 * step * spread
        coefficients = torch.randn(shape, generator=generator)
        own, every = whole[share].clone().requires_grad_(), whole.clone().requires_grad_()
        found, wanted = shared(own), plain(every)
        (found * coefficients[share]).sum().backward()
        (wanted * coefficients).sum().backward()
        assert own.grad is not None and every.grad is not None
        gaps = {"output": apart(found, wanted[share]), "input_gradient": apart(own.grad, every.grad[share])}
        for name in ("weight", "bias"):
            mine, other = getattr(shared, name).grad, getattr(plain, name).grad
            gaps[f"{name}_gradient"] = apart(processes.total(mine), other)
        figures = {name: max(value, gaps[name]) for name, value in figures.items()}
        shared.zero_grad()
        plain.zero_grad()
    for name in ("running_mean", "running_var"):
        figures[name] = apart(getattr(shared, name), getattr(plain, name))
    shared.eval()
    plain.eval()
    figures["evaluated"] = apart(shared(whole), plain(whole))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = whole[share].bfloat16()
        same_type = shared.train()(half).dtype == plain.train()(half).dtype
    counted = int(shared.num_batches_tracked) == int(plain.num_batches_tracked) == 4
    keys = list(shared.state_dict()) == list(plain.state_dict())
    return {**figures, "same_type": same_type, "counted": counted, "same_keys": keys}


def build(config: TrainConfig, source: TileSource, processes: Processes) -> Method:
    """The method as a training run builds it."""
    with rng_kept():
        seed_all(config.seed)
        method = build_method(config, source)
    share_batchnorm(method.module, processes)
    method.module.train()
    return method


def steps(config: TrainConfig, source: TileSource, processes: Processes) -> list[dict[str, Tensor]]:
    """Gradients and logged scalars of four steps over two epochs; at the end also what the method remembers."""
    method = build(config, source, processes)
    optimisers = build_optimisers(method.phases(), config.optimiser)
    set_learning_rate(optimisers, config.optimiser.lr)
    sampler = BatchSampler(len(source), config.batch, config.seed)
    tiles, generator = GoodTiles(source), torch.Generator().manual_seed(config.seed)
    found = []
    for step in range(4):
        epoch = step // 2
        if step % 2 == 0:
            method.begin_epoch(epoch, processes)
        indices, pixels = tiles.read(sampler.indices(step)[processes.share(config.batch)])
        batch = Batch(torch.from_numpy(pixels), torch.from_numpy(indices), generator, step / 4, epoch, processes)
        for phase, optimiser in optimisers.items():
            values, norm = backward(method.losses(batch, phase), optimiser, 1e9, processes)
            optimiser.step()
            found.append({name: torch.tensor(value) for name, value in {**values, "norm": norm}.items()})
            found[-1] |= {name: p.grad.clone() for name, p in method.module.named_parameters() if p.grad is not None}
        method.after_step(step / 4)
    found.append({name: value for name, value in method.module.state_dict().items() if value.is_floating_point()})
    return found


def compared(config: TrainConfig, source: TileSource, processes: Processes) -> Figures:
    """The largest difference between what the processes find together and what one finds alone, for each step."""
    together, alone = steps(config, source, processes), steps(config, source, ALONE)
    gaps = []
    for mine, other in zip(together, alone, strict=True):
        each = {name: apart(mine[name], value) for name, value in other.items()} if mine.keys() == other.keys() else {}
        worst = max(each, key=lambda name: each[name])
        gaps.append([worst, each[worst], len(each)])
    return {"apart": gaps}


def clusters(config: TrainConfig, source: TileSource, processes: Processes) -> Figures:
    """The cells and semantic neighbours of each process after the first clustering."""
    method = build(config, source, processes)
    method.begin_epoch(0, processes)
    state = method.module.state_dict()
    return {"cells": state["memory.cells"].tolist(), "semantic": digest([state["memory.semantic"]])}


def digest(tensors: Iterable[Tensor]) -> str:
    """Hash of tensors, bit for bit."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


def go_on(
    config: TrainConfig, source: TileSource, path: Path, processes: Processes, stop_after: int = 0
) -> dict[str, object]:
    """Train in a folder to the end, or stop after some steps; what remains in this process."""
    folder = RunFolder(path)
    with folder.owned(config, processes), rng_kept():
        reporter = StopAfter(stop_after) if processes.first else SilentReporter()
        seed_all(config.seed)
        run = TrainingRun(config, source, folder, reporter, CPU, processes, build_method(config, source), None)
        result = run.run()
    state = run._state.method.module.state_dict()
    return {"step": result.step, "finished": result.finished, "digest": digest(state.values())}


def runs(config: TrainConfig, source: TileSource, folder: Path, processes: Processes) -> Figures:
    """A run of two; one that stopped and went on; and such where one process became two, or two one."""
    figures: Figures = {"whole": go_on(config, source, folder / "whole", processes)}
    figures["stopped"] = go_on(config, source, folder / "parts", processes, STOP_AT)
    if processes.first:
        shutil.copytree(folder / "parts", folder / "two-one")
        figures["two-one"] = go_on(config, source, folder / "two-one", ALONE)
        go_on(config, source, folder / "one-two", ALONE, STOP_AT)
    processes.wait()
    figures["parts"] = go_on(config, source, folder / "parts", processes)
    figures["one-two"] = go_on(config, source, folder / "one-two", processes)
    return figures


def main(folder: Path) -> None:
    """Try everything in one launch, since starting takes longer than all of it."""
    torch.set_num_threads(1)
    with joined("cpu") as (processes, device):
        assert device == CPU
        configs = {name: load_config(folder / f"{name}.yaml", ["max_steps=16"]) for name in ("contrastive", "sgcl")}
        source = open_for_training([folder / "tiles"], configs["sgcl"].tile_px, None, SilentReporter())
        report: dict[str, Figures] = {"exchange": exchange(processes), "normalisation": normalisation(processes)}
        # Negatives of each anchor's own, fewer ranked tiles than there are, and anchors without any positive, not
        # as many in each process.
        options = {"shared_negatives": "false", "ranked_tiles": 100, "clusterings": 6, "semantic_nearest": 1}
        other = load_config(folder / "sgcl.yaml", [f"method.{name}={value}" for name, value in options.items()])
        single = {
            path.stem: load_config(path) for path in folder.glob("*.yaml") if path.stem not in {*configs, "sgcl-other"}
        }
        for name, config in {**configs, "sgcl-other": other, **dict(sorted(single.items()))}.items():
            report[f"steps {name}"] = compared(config, source, processes)
        report["clusters"] = clusters(configs["sgcl"], source, processes)
        faulty = load_config(folder / "sgcl.yaml", ["method.faults.unshared_clusters=true"])
        report["clusters unshared"] = clusters(faulty, source, processes)
        report["contrastive"] = {"whole": go_on(configs["contrastive"], source, folder / "contrastive", processes)}
        (folder / "sgcl").mkdir(exist_ok=True)
        report["sgcl"] = runs(configs["sgcl"], source, folder / "sgcl", processes)
        (folder / f"report-{processes.rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
