"""TileEncoder.embed, from uint8 tiles to vectors, against the bare network on a batch already on the device."""

from __future__ import annotations

import argparse
import statistics

import numpy as np
import torch
from harness import Row, add_options, cores, describe_machine, interleave, median_ratio, report

from encoder.registry import load_encoder


def main() -> None:
    """Compare in bf16 with channels_last, with autocast as the encoder does and with bf16 weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.set_defaults(repeats=9)
    parser.add_argument("--encoder", default="random:resnet18@0")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    machine = describe_machine()
    torch.set_num_threads(cores())
    encoder = load_encoder(options.encoder, options.device)
    tile_px = encoder.spec.tile_px
    tiles = np.random.default_rng(0).integers(0, 256, (options.batch, tile_px, tile_px, 3), dtype=np.uint8)
    batch = torch.from_numpy(tiles).permute(0, 3, 1, 2).float().div(255)
    batch = batch.contiguous(memory_format=torch.channels_last).to(options.device)
    low, low_batch = load_encoder(options.encoder, options.device).module.bfloat16(), batch.bfloat16()

    def wait() -> None:
        if options.device.startswith("cuda"):
            torch.cuda.synchronize()

    @torch.inference_mode()
    def bare() -> None:
        with torch.autocast(encoder.device.type, torch.bfloat16):
            encoder.module(batch)
        wait()

    @torch.inference_mode()
    def bare_low() -> None:
        low(low_batch)
        wait()

    seconds = interleave(
        {"embed": lambda: encoder.embed(tiles), "bare": bare, "bf16 weights": bare_low}, options.repeats
    )
    rate = {name: options.batch / statistics.median(values) for name, values in seconds.items()}
    what = f"{options.encoder}, {options.batch} x {tile_px} px, {options.device}"
    rows = [
        Row(
            f"{what}: embed / bare",
            median_ratio(seconds["bare"], seconds["embed"]),
            "x",
            0.95,
            detail=f"embed {rate['embed']:.0f}, bare under autocast {rate['bare']:.0f} tiles/s",
        ),
        Row(
            "embed / bare network with bf16 weights",
            median_ratio(seconds["bf16 weights"], seconds["embed"]),
            "x",
            detail=f"{rate['bf16 weights']:.0f} tiles/s",
        ),
    ]
    native = encoder.arithmetic
    report("embedding", rows, options.out, machine, tiles_per_second=rate, arithmetic=native)
    if native != "bf16":
        print(f"This device has no native bf16: the encoder computes in {native}, so the ratio says little.")


if __name__ == "__main__":
    main()
