"""Train an encoder: the checks before, and the run itself."""

from __future__ import annotations

from pathlib import Path

from encoder.checkpoint import load_checkpoint
from encoder.config import TrainConfig
from encoder.errors import UsageError
from encoder.methods.catalogue import build_method
from encoder.methods.protocol import Method
from encoder.processes import Processes, joined
from encoder.progress import Reporter, SilentReporter
from encoder.rng import rng_kept, seed_all
from encoder.run_folder import RunFolder
from encoder.tiles import TileSource
from encoder.training_run import TrainingRun, TrainResult


def train(
    config: TrainConfig,
    source: TileSource,
    out: Path | str,
    reporter: Reporter,
    device: str | None = None,
    labelled: TileSource | None = None,
) -> TrainResult:
    """Train an encoder, going on where an earlier call in the same folder stopped.

    Where `torchrun` started several processes, each takes its share of every batch; the first one writes.

    Ctrl-C saves the state and returns; a second one stops at once, which costs the steps since the last
    saved state. A finished run is left as it is.

    Args:
        config: everything but the tiles.
        source: tiles of side `config.tile_px`.
        out: folder of the run.
        reporter: told how it goes.
        device: where to compute; None takes CUDA where present, else the CPU. Of several processes each takes
            a card of its own.
        labelled: tiles whose kNN accuracy is logged; None takes `source` where it has labels.

    Raises:
        UsageError: the tiles do not fit the config, or the folder holds a run of another config or tiles.
        EncoderError: the loss or the gradient is not finite; the last saved state stays.
        TileError: most tiles cannot be read.
    """
    folder = RunFolder(out)
    with joined(device) as (processes, place), rng_kept():
        _check_tiles(config, source, processes)
        teller = reporter if processes.first else SilentReporter()
        # Built before the folder is claimed: what a method refuses leaves nothing behind.
        method = None if folder.finished else _seeded_method(config, source)
        with folder.owned(config, processes):
            if method is None or folder.finished:
                return _already_finished(folder, source, teller, processes)
            return TrainingRun(config, source, folder, teller, place, processes, method, labelled).run()


def _seeded_method(config: TrainConfig, source: TileSource) -> Method:
    seed_all(config.seed)
    return build_method(config, source)


def _check_tiles(config: TrainConfig, source: TileSource, processes: Processes) -> None:
    if config.batch % processes.count:
        raise UsageError(
            f"A batch of {config.batch} does not divide among {processes.count} processes.",
            fix=f"Set batch={max(1, round(config.batch / processes.count)) * processes.count}.",
        )
    if source.tile_px != config.tile_px:
        smaller = "smaller than" if source.tile_px < config.tile_px else "not"
        raise UsageError(
            f"The tiles are {source.tile_px} px, {smaller} the {config.tile_px} px of the config.",
            fix=f"Set tile_px={source.tile_px}, or give tiles of {config.tile_px} px.",
        )
    if len(source) < config.batch:
        raise UsageError(
            f"There are {len(source)} tiles, fewer than the {config.batch} of one step.",
            fix=f"Set batch={max(2, len(source) // 2)} or less, or give more tiles.",
        )


def _already_finished(folder: RunFolder, source: TileSource, reporter: Reporter, processes: Processes) -> TrainResult:
    encoder = load_checkpoint(folder.checkpoint, "cpu")
    folder.check_tiles(encoder.record["provenance"]["tiles_digest"], source)
    if processes.first:
        folder.drop_state()
    metrics = {name: float(value) for name, value in encoder.record["metrics"].items()}
    reporter.note(f"This run is finished: {encoder.spec.encoder_id} in {folder.checkpoint}. Nothing to do.")
    return TrainResult(
        finished=True,
        ran=False,
        checkpoint=folder.checkpoint,
        spec=encoder.spec,
        step=int(metrics["steps"]),
        seconds=float(encoder.record["provenance"]["seconds"]),
        metrics=metrics,
    )
