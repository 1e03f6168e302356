"""Stain normalisation of a batch against torchstain, one picture at a time on the same cores."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from harness import Row, add_options, describe_machine, interleave, median_ratio, report
from torchstain.numpy.normalizers import NumpyMacenkoNormalizer, NumpyReinhardNormalizer
from torchstain.torch.normalizers import TorchMacenkoNormalizer, TorchReinhardNormalizer

from encoder.stain.normalise import STAIN_METHODS, fit_stains, normalise

DYES = np.array([[0.65, 0.70, 0.29], [0.10, 0.97, 0.22]])
BATCHES = 5
OTHERS: dict[str, dict[str, Callable[[], Any]]] = {
    "macenko": {"torchstain, torch": TorchMacenkoNormalizer, "torchstain, NumPy": NumpyMacenkoNormalizer},
    "reinhard": {"torchstain, torch": TorchReinhardNormalizer, "torchstain, NumPy": NumpyReinhardNormalizer},
}


def stained_tiles(count: int, side: int) -> np.ndarray:
    """Nuclei and stroma in random stains, uint8 [count, side, side, 3]; a tenth is glass."""
    rng = np.random.default_rng(0)
    tiles = np.empty((count, side, side, 3), np.uint8)
    for i in range(count):
        nuclei = rng.gamma(2, 0.35, (side, side)) * (rng.random((side, side)) < 0.3)
        amounts = np.stack([nuclei, rng.gamma(4, 0.12, (side, side))], axis=-1)
        amounts[: side // 10] = 0
        dyes = DYES + rng.normal(0, 0.04, DYES.shape)
        tiles[i] = np.clip(245 * np.exp(-(amounts @ dyes)) + rng.normal(0, 2, (side, side, 3)), 0, 255)
    return tiles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--tile", type=int, default=224, help="side of the tiles in pixels")
    parser.add_argument("--device", default="cpu")
    add_options(parser)
    options = parser.parse_args()
    machine = describe_machine()
    tiles = stained_tiles(options.batch + 1, options.tile)
    target, tiles = tiles[-1], tiles[:-1]
    planes = [torch.from_numpy(tile).permute(2, 0, 1) for tile in tiles]
    batch = torch.stack(planes).to(options.device)
    aim = torch.from_numpy(target).permute(2, 0, 1)[None].float().div(255).to(options.device)
    rows, rates, first = [], {}, {}
    for method in STAIN_METHODS:
        fit = fit_stains(method, aim)
        started = time.perf_counter()
        normalise(method, batch, fit)
        # Includes loading or compiling what the method runs by.
        first[method] = time.perf_counter() - started

        # From uint8 to uint8, as the others do it; batch after batch, as a run does it.
        def ours(method: Any = method, fit: Any = fit) -> None:
            for _ in range(BATCHES):
                normalise(method, batch, fit)
            if options.device.startswith("cuda"):
                torch.cuda.synchronize()

        runs: dict[str, Callable[[], Any]] = {"ours": ours}
        for name, build in OTHERS.get(method, {}).items():
            other, pictures = build(), planes if name.endswith("torch") else list(tiles)
            other.fit(planes[0] if name.endswith("torch") else tiles[0])
            runs[name] = lambda other=other, pictures=pictures: [other.normalize(picture) for picture in pictures]
        seconds = interleave(runs, options.repeats)
        seconds["ours"] = [value / BATCHES for value in seconds["ours"]]
        rates[method] = {name: options.batch / statistics.median(values) for name, values in seconds.items()}
        detail = ", ".join(f"{name} {rate:.0f}" for name, rate in rates[method].items()) + " tiles/s"
        detail += f", first call {first[method]:.1f} s"
        if method not in OTHERS:
            rows.append(Row(f"{method} (torchstain has none)", rates[method]["ours"], "tiles/s", detail=detail))
            continue
        for name in OTHERS[method]:
            rows.append(
                Row(f"{method} over {name}", median_ratio(seconds[name], seconds["ours"]), "x", 10, detail=detail)
            )
    report(
        "stain",
        rows,
        options.out,
        machine,
        tiles_per_second=rates,
        first_seconds=first,
        batch=options.batch,
        tile_px=options.tile,
    )


if __name__ == "__main__":
    main()
