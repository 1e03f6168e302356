"""One call of `train` on an unfinished run: steps, looks of the monitor, saved states, the kept encoder."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from encoder.architectures import build_network
from encoder.candidate import candidate_encoder, trained_spec
from encoder.checkpoint import load_checkpoint, save_checkpoint
from encoder.config import TrainConfig
from encoder.contract import EncoderSpec
from encoder.device import arithmetic, autocast
from encoder.errors import EncoderError
from encoder.interrupt import StopRequest
from encoder.loader import BatchLoader, GoodTiles, ReadBatch
from encoder.methods.protocol import Batch, Method
from encoder.metrics_log import MetricsLog
from encoder.monitor import LabelledProbe, Monitor
from encoder.optimise import backward, build_optimisers, set_learning_rate
from encoder.processes import Processes
from encoder.progress import Reporter, format_seconds
from encoder.provenance import versions
from encoder.run_folder import RunFolder, source_digest
from encoder.sampler import BatchSampler
from encoder.schedule import learning_rate, progress
from encoder.shared_batchnorm import share_batchnorm
from encoder.stain.fits import Outcome
from encoder.stain.normaliser import fit_normaliser
from encoder.tiles import CachedTiles, TileSource
from encoder.trainer_state import Best, TrainerState

# Before a third of the run the rate is still high and the weights have hardly moved: where slides differ in more
# than their stain, their share of the variance grows from the start, and the score alone would keep a beginner.
_YOUNGEST = 1 / 3 - 1e-6
_STAIN_TILES = 64


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


class TrainingRun:
    """An unfinished run in this process; every attribute but the state is fixed.

    Args:
        config: everything but the tiles.
        source: tiles of side `config.tile_px`.
        folder: of the run, owned by its processes.
        reporter: told how it goes.
        device: where this process computes.
        processes: those that share the run; the first one looks, logs and saves.
        method: with the weights of a run that begins, on the CPU.
        labelled: tiles whose kNN accuracy is logged; None takes `source` where it has labels.
    """

    def __init__(
        self,
        config: TrainConfig,
        source: TileSource,
        folder: RunFolder,
        reporter: Reporter,
        device: torch.device,
        processes: Processes,
        method: Method,
        labelled: TileSource | None,
    ) -> None:
        self._config, self._folder, self._reporter = config, folder, reporter
        self._device, self._processes = device, processes
        self._source = source
        # A source that already holds its decoded tiles says so; a second copy would only cost memory.
        held = bool(getattr(source, "in_memory", False))
        self._cached = CachedTiles(source, 0 if held else config.cache_mb << 20)
        self._tiles = GoodTiles(self._cached)
        self._sampler = BatchSampler(len(source), config.batch, config.seed)
        self._normaliser = None
        if config.stain_normalisation is not None:
            self._normaliser = fit_normaliser(config.stain_normalisation, self._stain_sample())
        self._state = self._start(method)
        self._monitor = Monitor(self._cached, config.monitor, config.seed) if processes.first else None
        self._probe = _probe(labelled or source, config) if processes.first else None
        self._resumed_at = self._state.seconds
        self._started = time.monotonic()
        self._broken: dict[int, str] = {}

    def run(self) -> TrainResult:
        """Train to the end, or until asked to stop."""
        config, state = self._config, self._state
        self._announce()
        total = None if config.max_seconds else config.max_steps * config.batch
        self._reporter.start(f"training {config.name}", total, "tiles")
        pin = self._device.type == "cuda"
        share = self._processes.share(config.batch)
        with (
            self._open_log() as log,
            StopRequest() as stop,
            BatchLoader(self._tiles, self._sampler, state.step, config.max_steps, share, pin) as loader,
        ):
            if state.step:
                self._reporter.advance(state.step * config.batch)
            try:
                done = self._loop(loader, log, stop)
            finally:
                self._reporter.finish()
        self._gather_broken()
        if done < 1:
            self._save()
            self._processes.wait()
            self._reporter.note(f"Stopped after step {state.step}; the same command goes on from there.")
            return self._result(None, None)
        spec = self._finish() if self._processes.first else None
        self._processes.wait()
        return self._result(self._folder.checkpoint, spec or load_checkpoint(self._folder.checkpoint, "cpu").spec)

    def _loop(self, loader: BatchLoader, log: MetricsLog, stop: StopRequest) -> float:
        config, state = self._config, self._state
        sums: dict[str, float] = {}
        since, clock = 0, time.monotonic()
        done, stopped = self._agree(stop)
        while done < 1 and not stopped:
            epoch, place = divmod(state.step, self._sampler.steps_per_epoch)
            if place == 0:
                state.method.begin_epoch(epoch, self._processes)
                if state.method.converged():
                    self._reporter.note(f"step {state.step}: converged")
                    done = 1.0
                    self._look_and_save(log, done)
                    break
            figures = self._step(loader.next(), done, epoch)
            self._reporter.advance(config.batch, self._detail(figures["loss"], done))
            done, stopped = self._agree(stop)
            state.method.after_step(done)
            since += 1
            for name, value in figures.items():
                sums[name] = sums.get(name, 0.0) + value
            if state.step % config.log_every_steps == 0:
                now = time.monotonic()
                means = {name: value / since for name, value in sums.items()}
                rate = since * config.batch / max(now - clock, 1e-9)
                log.write("train", state.step, {**means, "tiles_per_s": rate, "seconds": state.seconds})
                sums, since, clock = {}, 0, now
                self._gather_broken()
            due = int(done * config.monitor.looks + 1e-9)
            if due > state.looks:
                state.looks = due
                self._look_and_save(log, done)
                clock = time.monotonic()
            elif state.step % config.save_every_steps == 0:
                self._save()
        return done

    def _agree(self, stop: StopRequest) -> tuple[float, bool]:
        """Share of the run that is done, and whether it shall stop; the first process's word for all."""
        config, state = self._config, self._state
        done = progress(state.step, config.max_steps, state.seconds, config.max_seconds)
        said = self._processes.from_first(torch.tensor([done, float(stop.requested)], dtype=torch.float64))
        return float(said[0]), bool(said[1])

    def _step(self, read: ReadBatch, done: float, epoch: int) -> dict[str, float]:
        config, state = self._config, self._state
        rate = learning_rate(config.optimiser, state.step, done)
        set_learning_rate(state.optimisers, rate)
        tiles = read.tiles.to(self._device, non_blocking=True)
        figures: dict[str, float] = {}
        if self._normaliser is not None:
            tiles, outcomes = self._normaliser.on_tiles(tiles)
            figures["stain_left_share"] = float((outcomes != Outcome.NORMALISED).float().mean())
        batch = Batch(tiles, torch.from_numpy(read.indices), state.generator, done, epoch, self._processes)
        state.method.module.train()
        for phase, optimiser in state.optimisers.items():
            with autocast(config.precision, self._device):
                losses = state.method.losses(batch, phase)
            means, norm = backward(losses, optimiser, config.optimiser.clip_norm, self._processes)
            if not (np.isfinite(means["loss"]) and np.isfinite(norm)):
                self._refuse_not_finite(read, means["loss"], norm)
            optimiser.step()
            prefix = "" if len(state.optimisers) == 1 else f"{phase}_"
            figures |= {f"{prefix}{name}": value for name, value in means.items()}
            figures[f"{prefix}grad_norm"] = norm
        figures.setdefault("loss", sum(v for k, v in figures.items() if k.endswith("_loss")))
        figures["lr"] = rate
        state.step += 1
        state.seconds = self._resumed_at + time.monotonic() - self._started
        return figures

    def _look_and_save(self, log: MetricsLog, done: float) -> None:
        if self._processes.first:
            log.write("monitor", self._state.step, self._look(done))
        self._save()

    def _look(self, done: float) -> dict[str, float]:
        assert self._monitor is not None
        state = self._state
        encoder = candidate_encoder(
            self._config, state.method.kept(), self._monitor.sample, self._device, self._normaliser
        )
        metrics = self._monitor.look(encoder) | state.method.look(encoder, self._monitor.sample)
        best = done >= _YOUNGEST and (state.best is None or metrics["score"] >= state.best.metrics["score"])
        if self._probe is not None:
            metrics |= self._probe.measure(encoder)
        if best:
            weights = {name: tensor.cpu().clone() for name, tensor in encoder.module.state_dict().items()}
            state.best = Best(state.step, metrics, weights)
        shown = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in metrics.items())
        self._reporter.note(f"step {state.step}: {shown}")
        return metrics

    def _finish(self) -> EncoderSpec:
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
            "broken_tiles": len(self._broken),
            "tiles_seen": state.step * config.batch,
            "settled": dict(state.method.settled()),
            "seconds": round(state.seconds, 1),
            "device": str(self._device),
            "processes": self._processes.count,
            "arithmetic": arithmetic(config.precision, self._device),
            "versions": versions(),
        }
        spec = save_checkpoint(
            self._folder.checkpoint,
            module,
            trained_spec(config, kept, self._normaliser),
            config.model_dump(mode="json"),
            provenance,
            metrics,
        )
        self._folder.drop_state()
        self._reporter.note(
            f"Trained {state.step} steps in {format_seconds(state.seconds)}; kept step {state.best.step} "
            f"as {spec.encoder_id} in {self._folder.checkpoint}"
        )
        return spec

    def _start(self, method: Method) -> TrainerState:
        config = self._config
        packed = self._folder.load_state()
        if packed is not None:
            self._folder.check_tiles(packed["digest"], self._source)
        share_batchnorm(method.module, self._processes)
        method.module.to(self._device)
        if config.channels_last and self._device.type in ("cpu", "cuda"):
            method.module.to(memory_format=torch.channels_last)
        optimisers = build_optimisers(method.phases(), config.optimiser)
        generator = torch.Generator().manual_seed(config.seed)
        state = TrainerState(method, optimisers, generator, source_digest(self._source))
        if packed is not None:
            state.unpack(packed)
        if config.compile:
            method.kept().module.compile()
        return state

    def _stain_sample(self) -> NDArray[np.uint8]:
        """Tiles that the target of a normalisation is fitted to: the same in every process and resumed run."""
        count = min(_STAIN_TILES, len(self._source))
        chosen = np.sort(np.random.default_rng([self._config.seed, 3]).choice(len(self._source), count, replace=False))
        return self._tiles.read(chosen)[1]

    def _save(self) -> None:
        if self._processes.first:
            self._folder.save_state(self._state.pack())

    def _open_log(self) -> MetricsLog:
        if not self._processes.first:
            return MetricsLog(None, None, 0, self._reporter)
        board = self._folder.tensorboard if self._config.tensorboard else None
        return MetricsLog(self._folder.metrics, board, self._state.step, self._reporter)

    def _announce(self) -> None:
        config, state = self._config, self._state
        used = arithmetic(config.precision, self._device)
        limit = f" or {format_seconds(config.max_seconds)}" if config.max_seconds else ""
        among = f" among {self._processes.count} processes" if self._processes.count > 1 else ""
        begun = f", going on after step {state.step}" if state.step else ""
        self._reporter.note(
            f"{len(self._source)} tiles of {config.tile_px} px, {config.batch} a step{among}, "
            f"{config.max_steps} steps{limit}, {used} on {self._device}{begun}"
        )
        settled = state.method.settled()
        if settled:
            shown = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in settled.items())
            self._reporter.note(f"{config.method.name} on {len(self._source)} tiles: {shown}")
        if used != config.precision:
            self._reporter.note(f"{self._device} has no native {config.precision}; computing in {used}")

    def _detail(self, loss: float, done: float) -> str:
        text = f"step {self._state.step}, loss {loss:.3f}"
        if self._config.max_seconds and done > 0:
            text += f", {format_seconds(self._state.seconds * (1 - done) / done)} left"
        return text

    def _gather_broken(self) -> None:
        """Learn which tiles any process found broken, and tell of new ones."""
        before = len(self._broken)
        for found in self._processes.collect(self._tiles.broken):
            self._broken |= found
        if len(self._broken) > before:
            latest = list(self._broken.values())[-1]
            self._reporter.warn(f"{len(self._broken)} tiles cannot be read and are skipped; the last: {latest}")

    def _refuse_not_finite(self, read: ReadBatch, loss: float, norm: float) -> NoReturn:
        indices = np.concatenate(self._processes.collect(read.indices))
        names = [self._source.names[int(i)] for i in indices]
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
            broken=[(self._source.names[i], reason) for i, reason in sorted(self._broken.items())],
        )


def _probe(source: TileSource, config: TrainConfig) -> LabelledProbe | None:
    if source.labels is None or not config.monitor.labelled_tiles:
        return None
    probe = LabelledProbe(source, config.monitor, config.seed)
    return probe if probe.usable else None
