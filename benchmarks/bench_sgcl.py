"""One step of SGCL, the network left out, against the literal formulation: time and memory of losses and banks."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import literal_sgcl as literal
import numpy as np
import torch
from harness import Row, add_options, cores, describe_machine, interleave, median_ratio, report
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from encoder.augment import AugmentConfig
from encoder.config import TrainConfig
from encoder.methods.protocol import Batch
from encoder.methods.sgcl.method import Sgcl
from encoder.methods.sgcl.options import SgclOptions, Sizes, settle_sizes
from encoder.processes import ALONE

PROJECTED, POOLED = 128, 512
SLIDE_SIDE, PATCH_SIDE = 50, 5  # tiles
TILE_PX0 = 256
TILES_PER_KIND = 50
LITERAL, GATHERED_ONCE, SHARED, OWN = "literal", "literal, corners gathered once", "shared", "own"
# What a fresh process runs.
JOB = "import sys, bench_sgcl; bench_sgcl.work(*sys.argv[1:3], *map(int, sys.argv[3:]))"


@dataclass(frozen=True)
class Given:
    """What the network would say of the anchors of a step; leaves, so that gradients end here.

    Attributes:
        own: numbers of the anchors, int64 [B].
        projected: unit vectors of the whole views [B, P].
        corners: of the views of each corner [4, B, P].
        pooled: of the features of whole views [B, D].
    """

    own: Tensor
    projected: Tensor
    corners: Tensor
    pooled: Tensor


class Places:
    """Tiles that are only known by where they lie."""

    tile_px = 256
    labels = groups = splits = None

    def __init__(self, banks: literal.Banks) -> None:
        self.names = [str(number) for number in range(len(banks.places))]
        self.slide_ids = [str(number) for number in banks.slides.tolist()]
        self.positions_px0: NDArray[np.int64] = (banks.places * TILE_PX0).long().numpy()
        self.extents_px0: NDArray[np.int64] = np.full(len(self.names), TILE_PX0)

    def __len__(self) -> int:
        return len(self.names)

    def images(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """There are none."""
        raise NotImplementedError


class Method(Sgcl):
    """The method as it is, on vectors that are given instead of computed from pictures.

    Args:
        banks: to begin with; copied.
        anchors: B.
        shared: whether the anchors of a step share their random negatives.
    """

    def __init__(self, banks: literal.Banks, anchors: int, shared: bool) -> None:
        options = SgclOptions(shared_negatives=shared, projection_dim=PROJECTED)
        steps = 10 * (len(banks.whole) // anchors)
        config = TrainConfig(name="benchmark", method=options, tile_px=Places.tile_px, batch=anchors, max_steps=steps)
        super().__init__(config, Places(banks))
        self.memory = self._memory
        self._generator = torch.Generator().manual_seed(1)
        for name in ("whole", "corners", "pooled"):
            getattr(self.memory, name).copy_(getattr(banks, name))

    def step(self, given: Given, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Losses, gradients and new banks, with the spatial loss at its full strength."""
        self._given = given
        unseen = torch.empty(len(given.own), 0, dtype=torch.uint8)
        found = self.losses(Batch(unseen, given.own, generator or self._generator, 0.5, epoch=10), "network")
        found["loss"].backward()
        self.after_step(0.5)
        return found

    def tables(self) -> list[Tensor]:
        """What it keeps in memory beside the banks."""
        return [self._spatial, self.memory.semantic, self.memory.cells]

    def _view(
        self, batch: Batch, augment: AugmentConfig, view_px: int, centre: tuple[float, float] | None = None
    ) -> Tensor:
        return batch.tiles

    def _forward(self, views: Tensor) -> tuple[Tensor, Tensor]:
        return self._given.pooled, self._given.projected

    def _corners(self, batch: Batch) -> Tensor:
        return self._given.corners


class Literal:
    """The literal formulation on its banks.

    Args:
        banks: changed in place.
        sizes: as the method settles on them.
        gathered_once: whether the four corners of a tile are compared with the same negatives.
    """

    def __init__(self, banks: literal.Banks, sizes: Sizes, gathered_once: bool) -> None:
        self.banks, self._sizes, self._gathered_once = banks, sizes, gathered_once

    def step(self, given: Given, draws: literal.Draws | None = None) -> dict[str, Tensor]:
        """Losses, gradients and new banks."""
        if draws is None:
            draws = literal.draw(
                len(self.banks.whole),
                len(given.own),
                self._sizes.instance_negatives,
                self._sizes.hard_negatives,
                self._gathered_once,
            )
        found = literal.losses(
            self.banks, given.projected, given.corners, given.pooled, given.own, self._sizes.semantic_nearest, draws
        )
        found["loss"] = torch.stack(list(found.values())).sum()
        found["loss"].backward()
        literal.update(self.banks, given.own, given.projected, given.corners, given.pooled)
        return found

    def tables(self) -> list[Tensor]:
        """What it keeps in memory beside the banks."""
        return [self.banks.labels, self.banks.slides, self.banks.places]


def draw_banks(tiles: int, alone: int = 0) -> literal.Banks:
    """Slides of 50 x 50 tiles in patches of 5 x 5 of one kind, and banks in which tiles of a kind are alike.

    Args:
        tiles: how many.
        alone: the last so many lie each in a slide of its own, and half of them are each of a kind of its own.
    """
    generator = torch.Generator().manual_seed(0)
    number = torch.arange(tiles)
    slides, within = number // SLIDE_SIDE**2, number % SLIDE_SIDE**2
    places = torch.stack([within % SLIDE_SIDE, within // SLIDE_SIDE], dim=1)
    patch = (slides * SLIDE_SIDE + places[:, 1]) // PATCH_SIDE * SLIDE_SIDE + places[:, 0] // PATCH_SIDE
    kinds = tiles // TILES_PER_KIND
    _, patch = patch.unique(return_inverse=True)
    kind = torch.randperm(int(patch.max()) + 1, generator=generator)[patch] % kinds
    slides[tiles - alone :] = slides.max() + 1 + number[:alone]
    kind[tiles - alone // 2 :] = kinds + number[: alone // 2]

    def vectors(dim: int) -> Tensor:
        centres = F.normalize(torch.randn(kinds + alone, dim, generator=generator), dim=1)
        noise = F.normalize(torch.randn(tiles, dim, generator=generator), dim=1)
        return F.normalize(centres[kind] + noise, dim=1)

    labels = torch.stack([kind, *(2 * kind + torch.randint(2, (2, tiles), generator=generator))])
    corners = torch.stack([vectors(PROJECTED) for _ in range(4)])
    return literal.Banks(vectors(PROJECTED), corners, vectors(POOLED), labels, slides, places.float())


def give(banks: literal.Banks, own: Tensor, generator: torch.Generator | None = None) -> Given:
    """Vectors near to what the banks remember of some tiles."""

    def seen(remembered: Tensor) -> Tensor:
        noise = F.normalize(torch.randn(remembered.shape, generator=generator), dim=-1)
        return F.normalize(remembered + noise / 2, dim=-1).requires_grad_()

    return Given(own, seen(banks.whole[own]), seen(banks.corners[:, own]), seen(banks.pooled[own]))


def check_agreement(shared: bool, tiles: int = 4000, anchors: int = 32, alone: int = 40) -> None:
    """Check that both sides give the same losses, gradients and banks where they draw the same.

    So few tiles are all ranked and their cells all remembered, so that the method takes no short cut. Some anchors
    have no neighbours, some no positives at all, and some are among their own random negatives.
    """
    banks = draw_banks(tiles, alone)
    method, sizes = Method(banks, anchors, shared), settle_sizes(SgclOptions(), tiles)
    with mock.patch("encoder.methods.sgcl.method.cluster", side_effect=list(banks.labels)):
        method.begin_epoch(10, ALONE)
    own = torch.linspace(0, tiles - 1, anchors).long()
    own[-8:] = torch.arange(tiles)[[*range(-alone, 4 - alone), *range(-4, 0)]]
    given, again = (give(banks, own, torch.Generator().manual_seed(2)) for _ in range(2))
    found = method.step(given, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    shape = (sizes.instance_negatives,) if shared else (anchors, sizes.instance_negatives)
    drawn = torch.randint(tiles, shape, generator=generator).expand(anchors, -1)
    quarters = torch.stack(drawn.chunk(4, dim=1)).expand(1 if shared else 4, -1, -1, -1)
    draws = literal.Draws(drawn, quarters, literal.draw_ranks(tiles, sizes.hard_negatives, generator))
    expected = Literal(banks, sizes, gathered_once=shared).step(again, draws)
    assert sizes.ranked_tiles == tiles and (drawn == own[:, None]).any(), "the comparison would miss what it is for"
    torch.testing.assert_close({name: found[name] for name in expected}, expected, rtol=1e-4, atol=1e-5)
    for name in ("projected", "corners"):
        torch.testing.assert_close(getattr(given, name).grad, getattr(again, name).grad, rtol=1e-3, atol=1e-6)
    for name in ("whole", "corners", "pooled"):
        torch.testing.assert_close(getattr(method.memory, name), getattr(banks, name))


def open_side(side: str, banks: literal.Banks, anchors: int, tables: Path) -> Method | Literal:
    """Make one side ready for its steps.

    Args:
        side: its name.
        banks: the literal side works on these, the method on a copy.
        anchors: B.
        tables: what `begin_epoch` left behind.
    """
    cells, semantic = torch.load(tables)
    if side in (LITERAL, GATHERED_ONCE):
        # A cell is what three clusterings agree on, so that it can stand for the label in each of them.
        banks.labels[:] = cells
        return Literal(banks, settle_sizes(SgclOptions(), len(cells)), gathered_once=side == GATHERED_ONCE)
    method = Method(banks, anchors, shared=side == SHARED)
    method.memory.cells.copy_(cells)
    method.memory.semantic.copy_(semantic)
    return method


def work(job: str, tables: str, tiles: int, anchors: int, threads: int) -> None:
    """What a process of its own does: prepare an epoch and store its tables, or measure the memory of a step."""
    torch.set_num_threads(threads)
    torch.manual_seed(4)
    banks = draw_banks(tiles)
    if job == "epoch":
        method = Method(banks, anchors, shared=True)
        started = time.perf_counter()
        held = most_allocated(lambda: method.begin_epoch(1, ALONE))
        seconds = time.perf_counter() - started
        torch.save((method.memory.cells, method.memory.semantic), tables)
        listed = float((method.memory.semantic >= 0).sum(dim=1).float().mean())
        print(json.dumps({"seconds": seconds, "held": held, "semantic_neighbours_mean": listed}))
        return
    # Drawn first, so that all sides are given the same anchors.
    given = give(banks, torch.randperm(tiles)[:anchors])
    side = open_side(job, banks, anchors, Path(tables))
    found: dict[str, Tensor] = {}
    held = most_allocated(lambda: found.update(side.step(given)))
    losses = {name: value.item() for name, value in found.items()}
    print(json.dumps({"held": held, "tables": sum(table.nbytes for table in side.tables()), "losses": losses}))


def most_allocated(run: Callable[[], Any]) -> int:
    """Most bytes that PyTorch held at once during a call, above what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    changes = sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"])
    return int(np.cumsum([0, *(event["args"]["Bytes"] for event in changes)]).max())


def in_own_process(job: str, tables: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run `work` in a fresh process, which also keeps the profiler's chatter off the screen."""
    arguments = [job, str(tables), str(options.tiles), str(options.anchors), str(options.threads)]
    command = [sys.executable, "-c", JOB, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    if done.returncode:
        sys.exit(f"{job} failed:\n{done.stderr[-2000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def time_steps(tables: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds per step of all sides in turn, on new anchors each time."""
    banks = draw_banks(options.tiles)
    waiting: list[Given] = []

    def prepare() -> None:
        waiting[:] = [give(banks, torch.randperm(options.tiles)[: options.anchors])]

    def stepper(side: Method | Literal) -> Callable[[], Any]:
        return lambda: side.step(waiting[0])

    # The literal side labels and changes the banks that the others begin with, so it is opened last.
    sides = {
        name: stepper(open_side(name, banks, options.anchors, tables)) for name in (SHARED, OWN, LITERAL, GATHERED_ONCE)
    }
    return interleave(sides, options.repeats, before=prepare)


def check_likeness(losses: dict[str, float], expected: dict[str, float]) -> None:
    """Stop where both sides, on the same anchors but with random numbers of their own, differ by more than these do."""
    for term in ("instance_loss", "corner_loss", "spatial_loss"):
        if abs(losses[term] - expected[term]) > 0.05 * expected[term]:
            sys.exit(f"{term} is {losses[term]:.4g}, the literal one {expected[term]:.4g}: they are not the same step")


def compare(
    name: str, ours: str, steps: dict[str, dict[str, Any]], seconds: dict[str, list[float]], epoch_share: float
) -> list[Row]:
    """The rows of one way to draw negatives.

    Args:
        name: of that way.
        ours: its side.
        steps: memory and losses of a step, per side.
        seconds: of the steps, per side.
        epoch_share: seconds of `begin_epoch` that fall to each step.
    """
    ms = {side: 1e3 * statistics.median(values) for side, values in seconds.items()}
    # The tables of neighbours stand in for what the literal side looks for in every step, so they count.
    mib = {side: (figures["held"] + figures["tables"]) / 2**20 for side, figures in steps.items()}
    charged = [value + epoch_share for value in seconds[ours]]
    of_tables = steps[ours]["tables"] / 2**20
    return [
        Row(
            f"{name}: time, literal / ours",
            median_ratio(seconds[LITERAL], seconds[ours]),
            "x",
            5,
            detail=f"{ms[LITERAL]:.0f} ms, {ms[ours]:.0f} ms per step",
        ),
        Row(
            "  with the step's share of begin_epoch",
            median_ratio(seconds[LITERAL], charged),
            "x",
            5,
            detail=f"{1e3 * epoch_share:.1f} ms; the literal side's own clusterings are not charged to it",
        ),
        Row(
            "  memory above the banks, ours / literal",
            mib[ours] / mib[LITERAL],
            "x",
            round(1 / 3, 3),
            at_least=False,
            detail=f"{mib[ours]:.0f} MiB, {of_tables:.0f} of them tables of neighbours; {mib[LITERAL]:.0f} MiB",
        ),
        Row(
            "  time, if the literal side gathered once for all corners",
            median_ratio(seconds[GATHERED_ONCE], charged),
            "x",
            detail=f"{ms[GATHERED_ONCE]:.0f} ms, {mib[GATHERED_ONCE]:.0f} MiB; begin_epoch included",
        ),
    ]


def main() -> None:
    """Check that both sides agree, then measure them with the paper's batch and counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--tiles", type=int, default=100_000, help="rows of the banks")
    parser.add_argument("--anchors", type=int, default=32, help="tiles of a step")
    parser.add_argument("--threads", type=int, default=cores())
    options = parser.parse_args()
    machine = describe_machine()
    torch.set_num_threads(options.threads)
    for shared in (True, False):
        check_agreement(shared)
    with tempfile.TemporaryDirectory() as folder:
        tables = Path(folder) / "tables.pt"
        epoch = in_own_process("epoch", tables, options)
        steps = {side: in_own_process(side, tables, options) for side in (LITERAL, GATHERED_ONCE, SHARED, OWN)}
        for side in (SHARED, OWN):
            check_likeness(steps[side]["losses"], steps[LITERAL]["losses"])
        seconds = time_steps(tables, options)
    epoch_share = epoch["seconds"] / (options.tiles / options.anchors)
    rows = [
        *compare(f"{options.tiles:,} tiles, shared negatives", SHARED, steps, seconds, epoch_share),
        *compare("each anchor its own negatives", OWN, steps, seconds, epoch_share),
        Row("begin_epoch", epoch["seconds"], "s", detail=f"holds {epoch['held'] / 2**20:.0f} MiB for that time"),
    ]
    facts = {"threads": options.threads, "anchors": options.anchors, "epoch": epoch, "steps": steps}
    report("sgcl", rows, options.out, machine, seconds=seconds, **facts)


if __name__ == "__main__":
    main()
