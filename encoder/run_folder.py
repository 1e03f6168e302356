"""A run folder: its config, its state, its checkpoint, and that nobody else is at work in it."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from encoder.config import TrainConfig, dump_config
from encoder.errors import EncoderError, HistoSeekError, UsageError
from encoder.processes import Processes
from encoder.tiles import TileSource

STATE_FORMAT = 1


class RunFolder:
    """Paths and files of one training run.

    Layout: `config.yaml`, `metrics.jsonl`, `tensorboard/`, `state.pt` while the run is unfinished, and
    `checkpoint/` once it is finished.

    Args:
        path: the folder; made when needed.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.checkpoint = self.path / "checkpoint"
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self._config = self.path / "config.yaml"
        self._state = self.path / "state.pt"

    @property
    def finished(self) -> bool:
        """Whether the run has ended and left its checkpoint."""
        return self.checkpoint.is_dir()

    def claim(self, config: TrainConfig) -> None:
        """Make the folder, or check that it belongs to this config.

        Raises:
            UsageError: it holds a run of another config, or something that is no run.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path} is a file, not a folder for a run.", fix="Give another folder.")
        if self._config.is_file():
            self._refuse_other(config)
            return
        if self.path.is_dir() and any(self.path.iterdir()):
            raise UsageError(
                f"{self.path} is not empty and holds no training run.", fix="Give a new folder for the run."
            )
        self.path.mkdir(parents=True, exist_ok=True)
        _write_atomic(self._config, dump_config(config).encode())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training in this folder; the operating system frees it after a kill.

        Raises:
            UsageError: another process trains in it.
        """
        try:
            import fcntl
        except ImportError:
            # Windows: without this guard two runs in one folder would overwrite each other's state.
            yield
            return
        with (self.path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UsageError(
                    f"Another process is training in {self.path}.", fix="Wait for it or give another folder."
                ) from error
            yield

    @contextmanager
    def owned(self, config: TrainConfig, processes: Processes) -> Iterator[None]:
        """Claim and lock the folder in the first process, while the others wait and then share it.

        Raises:
            UsageError: as `claim` and `locked` do, in the first process, and that it does in the others.
        """
        refusal: HistoSeekError | None = None
        with ExitStack() as held:
            if processes.first:
                try:
                    self.claim(config)
                    held.enter_context(self.locked())
                except HistoSeekError as error:
                    refusal = error
            refused = processes.collect(refusal is not None)[0]
            if refusal is not None:
                raise refusal
            if refused:
                raise UsageError("The first process cannot use the run folder.", fix="Its message says why.")
            yield

    def check_tiles(self, known: str, source: TileSource) -> None:
        """Check that a run on tiles with the digest `known` goes on with the same ones.

        Raises:
            UsageError: these are others.
        """
        if known != source_digest(source):
            raise UsageError(
                f"{self.path} holds a run on other tiles than these {len(source)}.",
                fix="Give another folder, or the same tiles to go on.",
            )

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Replace the state in one step: after a kill there is the old or the new one, whole."""
        fresh = self._state.with_name("state.pt.new")
        with fresh.open("wb") as stream:
            torch.save({"format": STATE_FORMAT, **state}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(self._state)

    def load_state(self) -> dict[str, Any] | None:
        """The last saved state on the CPU, or None where there is none.

        Raises:
            EncoderError: it is damaged, or of another version.
        """
        if not self._state.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(self._state, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise EncoderError(
                f"{self._state} is damaged: {error}", fix="Delete it to train again from the start."
            ) from error
        if state.get("format") != STATE_FORMAT:
            raise EncoderError(
                f"{self._state} was written by another version.",
                fix="Go on with that version, or delete it to train again from the start.",
            )
        return state

    def drop_state(self) -> None:
        """Remove what only an unfinished run needs."""
        for name in ("state.pt", "state.pt.new"):
            (self.path / name).unlink(missing_ok=True)
        # A kill while the checkpoint was written leaves its unfinished folder behind.
        for unfinished in self.path.glob(".checkpoint.*"):
            shutil.rmtree(unfinished)

    def _refuse_other(self, config: TrainConfig) -> None:
        before = _flat(yaml.safe_load(self._config.read_text(encoding="utf-8")))
        now = _flat(config.model_dump(mode="json"))
        differing = (key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        # Another method has other options throughout; that it is another one is what must be read first.
        changed = sorted(differing, key=lambda key: (key != "method.name", key))
        if changed:
            listed = ", ".join(f"{key} ({before.get(key)} there, {now.get(key)} now)" for key in changed[:4])
            more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
            raise UsageError(
                f"{self.path} holds a run of another config: {listed}{more}.",
                fix="Give another folder, or the same config to go on.",
            )


def source_digest(source: TileSource) -> str:
    """Hash of what identifies a source for resuming: its tiles' names, in order, and their side."""
    digest = hashlib.sha256(f"{source.tile_px}\n".encode())
    for name in source.names:
        digest.update(name.encode() + b"\n")
    return digest.hexdigest()


def _write_atomic(path: Path, content: bytes) -> None:
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_bytes(content)
    fresh.replace(path)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
