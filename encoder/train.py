"""The training loop, one for all methods."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch

from encoder.architectures import build_network
from encoder.candidate import candidate_encoder, trained_spec
from encoder.checkpoint import load_checkpoint, save_checkpoint
from encoder.config import TrainConfig
from encoder.contract import EncoderSpec
from encoder.device import arithmetic, autocast, choose_device
from encoder.errors import EncoderError, UsageError
from encoder.interrupt import StopRequest
from encoder.loader import BatchLoader, GoodTiles, ReadBatch
from encoder.methods.catalogue import build_method
from encoder.methods.protocol import Batch
from encoder.metrics_log import MetricsLog
from encoder.monitor import LabelledProbe, Monitor
from encoder.optimise import backward, build_optimisers, set_learning_rate
from encoder.progress import Reporter, format_seconds
from encoder.provenance import versions
from encoder.rng import rng_kept, seed_all
from encoder.run_folder import RunFolder, source_digest
from encoder.sampler import BatchSampler
from encoder.schedule import learning_rate, progress
from encoder.tiles import CachedTiles, TileSource
from encoder.trainer_state import Best, TrainerState


@dataclass(frozen=True)
class TrainResult:
    """How a call of `train` ended.

    Attributes:
        finished: whether the run is complete and has its checkpoint.
        ran: whether this call trained at all; False where the run was complete before.
        checkpoint: the checkpoint folder, or None while unfinished.
        spec: of the encoder, or None while unfinished.
        step: steps done in the whole run.
        seconds: time of the whole run.
        metrics: of the kept encoder, as the monitor measured them.
        broken: name and reason of the tiles that could not be read in this call.
    """

    finished: bool
    ran: bool
    checkpoint: Path | None
    spec: EncoderSpec | None
    step: int
    seconds: float
    metrics: dict[str, float]
    broken: list[tuple[str, str]] = field(default_factory=list)


def train(
    config: TrainConfig,
    source: TileSource,
    out: Path | str,
    reporter: Reporter,
    device: str | None = None,
    labelled: TileSource | None = None,
) -> TrainResult:
    """Train an encoder, going on where an earlier call in the same folder stopped.

    Ctrl-C saves the state and returns; a second one stops at once, which costs the steps since the last
    saved state. A finished run is left as it is.

    Args:
        config: everything but the tiles.
        source: tiles of side `config.tile_px`.
        out: folder of the run.
        reporter: told how it goes.
        device: where to compute; None takes CUDA where present, else the CPU.
        labelled: tiles whose kNN accuracy is logged; None takes `source` where it has labels.

    Raises:
        UsageError: the tiles do not fit the config, or the folder holds a run of another config or tiles.
        EncoderError: the loss or the gradient is not finite; the last saved state stays.
        TileError: most tiles cannot be read.
    """
    folder = RunFolder(out)
    place = choose_device(device)
    _check_tiles(config, source)
    folder.claim(config)
    with folder.locked():
        if folder.finished:
            return _already_finished(folder, source, reporter)
        with rng_kept():
            return _Run(config, source, folder, reporter, place, labelled).run()


class _Run:
    """One call of `train` on an unfinished run; every attribute but the state is fixed."""

    def __init__(
        self,
        config: TrainConfig,
        source: TileSource,
        folder: RunFolder,
        reporter: Reporter,
        device: torch.device,
        labelled: TileSource | None,
    ) -> None:
        self._config, self._folder, self._reporter, self._device = config, folder, reporter, device
        self._source = source
        # A source that already holds its decoded tiles says so; a second copy would only cost memory.
        held = bool(getattr(source, "in_memory", False))
        self._cached = CachedTiles(source, 0 if held else config.cache_mb << 20)
        self._tiles = GoodTiles(self._cached)
        self._state = self._start()
        self._monitor = Monitor(self._cached, config.monitor, config.seed)
        self._probe = _probe(labelled or source, config)
        self._resumed_at = self._state.seconds
        self._started = time.monotonic()
        self._reported_broken = 0

    def run(self) -> TrainResult:
        """Train to the end, or until asked to stop."""
        config, state = self._config, self._state
        self._announce()
        total = None if config.max_seconds else config.max_steps * config.batch
        self._reporter.start(f"training {config.name}", total, "tiles")
        sampler = BatchSampler(len(self._source), config.batch, config.seed)
        pin = self._device.type == "cuda"
        board = self._folder.tensorboard if config.tensorboard else None
        with (
            MetricsLog(self._folder.metrics, board, state.step, self._reporter) as log,
            StopRequest() as stop,
            BatchLoader(self._tiles, sampler, state.step, config.max_steps, pin) as loader,
        ):
            if state.step:
                self._reporter.advance(state.step * config.batch)
            try:
                self._loop(loader, log, stop)
            finally:
                self._reporter.finish()
        if stop.requested and self._done() < 1:
            self._save()
            self._reporter.note(f"Stopped after step {state.step}; the same command goes on from there.")
            return self._result(None, None)
        return self._finish()

    def _loop(self, loader: BatchLoader, log: MetricsLog, stop: StopRequest) -> None:
        config, state = self._config, self._state
        sums: dict[str, float] = {}
        since, clock = 0, time.monotonic()
        while self._done() < 1 and not stop.requested:
            figures = self._step(loader.next())
            since += 1
            for name, value in figures.items():
                sums[name] = sums.get(name, 0.0) + value
            self._reporter.advance(config.batch, self._detail(figures["loss"]))
            if state.step % config.log_every_steps == 0:
                now = time.monotonic()
                means = {name: value / since for name, value in sums.items()}
                rate = since * config.batch / max(now - clock, 1e-9)
                log.write("train", state.step, {**means, "tiles_per_s": rate, "seconds": state.seconds})
                sums, since, clock = {}, 0, now
                self._warn_broken()
            due = int(self._done() * config.monitor.looks + 1e-9)
            if due > state.looks:
                state.looks = due
                log.write("monitor", state.step, self._look())
                self._save()
                clock = time.monotonic()
            elif state.step % config.save_every_steps == 0:
                self._save()
        self._warn_broken()

    def _step(self, read: ReadBatch) -> dict[str, float]:
        config, state = self._config, self._state
        done = self._done()
        rate = learning_rate(config.optimiser, state.step, done)
        set_learning_rate(state.optimisers, rate)
        tiles = read.tiles.to(self._device, non_blocking=True)
        batch = Batch(tiles, torch.from_numpy(read.indices), state.generator, done)
        state.method.module.train()
        figures: dict[str, float] = {}
        for phase, optimiser in state.optimisers.items():
            with autocast(config.precision, self._device):
                losses = state.method.losses(batch, phase)
            loss, norm = backward(losses["loss"], optimiser, config.optimiser.clip_norm)
            if not (np.isfinite(loss) and np.isfinite(norm)):
                self._refuse_not_finite(read, loss, norm)
            optimiser.step()
            prefix = "" if len(state.optimisers) == 1 else f"{phase}_"
            figures |= {f"{prefix}{name}": float(value.detach()) for name, value in losses.items() if name != "loss"}
            figures |= {f"{prefix}loss": loss, f"{prefix}grad_norm": norm}
        figures.setdefault("loss", sum(v for k, v in figures.items() if k.endswith("_loss")))
        figures["lr"] = rate
        state.step += 1
        state.seconds = self._resumed_at + time.monotonic() - self._started
        state.method.after_step(self._done())
        return figures

    def _look(self) -> dict[str, float]:
        state = self._state
        encoder = candidate_encoder(self._config, state.method.kept(), self._monitor.sample, self._device)
        metrics = self._monitor.look(encoder)
        best = state.best is None or metrics["score"] >= state.best.metrics["score"]
        if self._probe is not None:
            metrics |= self._probe.measure(encoder)
        if best:
            weights = {name: tensor.cpu().clone() for name, tensor in encoder.module.state_dict().items()}
            state.best = Best(state.step, metrics, weights)
        shown = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in metrics.items())
        self._reporter.note(f"step {state.step}: {shown}")
        return metrics

    def _finish(self) -> TrainResult:
        state, config = self._state, self._config
        if state.best is None:
            raise EncoderError("The run ended without a look of its monitor.", fix="Report this as a fault.")
        kept = state.method.kept()
        module = build_network(kept.architecture)
        module.load_state_dict(state.best.weights)
        metrics = {**state.best.metrics, "kept_step": state.best.step, "steps": state.step}
        provenance = {
            "seed": config.seed,
            "tiles": len(self._source),
            "tiles_digest": state.digest,
            "broken_tiles": len(self._tiles.broken),
            "tiles_seen": state.step * config.batch,
            "seconds": round(state.seconds, 1),
            "device": str(self._device),
            "arithmetic": arithmetic(config.precision, self._device),
            "versions": versions(),
        }
        spec = save_checkpoint(
            self._folder.checkpoint,
            module,
            trained_spec(config, kept),
            config.model_dump(mode="json"),
            provenance,
            metrics,
        )
        self._folder.drop_state()
        self._reporter.note(
            f"Trained {state.step} steps in {format_seconds(state.seconds)}; kept step {state.best.step} "
            f"as {spec.encoder_id} in {self._folder.checkpoint}"
        )
        return self._result(self._folder.checkpoint, spec)

    def _start(self) -> TrainerState:
        config = self._config
        digest = source_digest(self._source)
        packed = self._folder.load_state()
        if packed is not None:
            _check_digest(self._folder, packed["digest"], self._source)
        seed_all(config.seed)
        method = build_method(config, self._source)
        method.module.to(self._device)
        if config.channels_last and self._device.type in ("cpu", "cuda"):
            method.module.to(memory_format=torch.channels_last)
        optimisers = build_optimisers(method.phases(), config.optimiser)
        generator = torch.Generator().manual_seed(config.seed)
        state = TrainerState(method, optimisers, generator, digest)
        if packed is not None:
            state.unpack(packed)
        if config.compile:
            method.kept().module.compile()
        return state

    def _done(self) -> float:
        config, state = self._config, self._state
        return progress(state.step, config.max_steps, state.seconds, config.max_seconds)

    def _save(self) -> None:
        self._folder.save_state(self._state.pack())

    def _announce(self) -> None:
        config, state = self._config, self._state
        used = arithmetic(config.precision, self._device)
        limit = f" or {format_seconds(config.max_seconds)}" if config.max_seconds else ""
        begun = f", going on after step {state.step}" if state.step else ""
        self._reporter.note(
            f"{len(self._source)} tiles of {config.tile_px} px, {config.batch} a step, "
            f"{config.max_steps} steps{limit}, {used} on {self._device}{begun}"
        )
        if used != config.precision:
            self._reporter.note(f"{self._device} has no native {config.precision}; computing in {used}")

    def _detail(self, loss: float) -> str:
        text = f"step {self._state.step}, loss {loss:.3f}"
        done = self._done()
        if self._config.max_seconds and done > 0:
            text += f", {format_seconds(self._state.seconds * (1 - done) / done)} left"
        return text

    def _warn_broken(self) -> None:
        broken = self._tiles.broken
        if len(broken) > self._reported_broken:
            latest = list(broken.values())[-1]
            self._reporter.warn(f"{len(broken)} tiles cannot be read and are skipped; the last: {latest}")
            self._reported_broken = len(broken)

    def _refuse_not_finite(self, read: ReadBatch, loss: float, norm: float) -> NoReturn:
        names = [self._source.names[int(i)] for i in read.indices]
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        what = "loss" if not np.isfinite(loss) else "gradient"
        raise EncoderError(
            f"The {what} of step {read.step + 1} is not finite ({loss if what == 'loss' else norm}); "
            f"its tiles: {shown}.",
            fix=f"The last saved state in {self._folder.path} is untouched. Train in a new folder with a lower "
            "optimiser.lr or precision=fp32, or without these tiles.",
        )

    def _result(self, checkpoint: Path | None, spec: EncoderSpec | None) -> TrainResult:
        state = self._state
        return TrainResult(
            finished=checkpoint is not None,
            ran=True,
            checkpoint=checkpoint,
            spec=spec,
            step=state.step,
            seconds=state.seconds,
            metrics=dict(state.best.metrics) if state.best is not None else {},
            broken=[(self._source.names[i], reason) for i, reason in sorted(self._tiles.broken.items())],
        )


def _check_digest(folder: RunFolder, known: str, source: TileSource) -> None:
    if known != source_digest(source):
        raise UsageError(
            f"{folder.path} holds a run on other tiles than these {len(source)}.",
            fix="Give another folder, or the same tiles to go on.",
        )


def _check_tiles(config: TrainConfig, source: TileSource) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("Training on several processes is not supported.", fix="Start one process.")
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


def _probe(source: TileSource, config: TrainConfig) -> LabelledProbe | None:
    if source.labels is None or not config.monitor.labelled_tiles:
        return None
    probe = LabelledProbe(source, config.monitor, config.seed)
    return probe if probe.usable else None


def _already_finished(folder: RunFolder, source: TileSource, reporter: Reporter) -> TrainResult:
    encoder = load_checkpoint(folder.checkpoint, "cpu")
    _check_digest(folder, encoder.record["provenance"]["tiles_digest"], source)
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
