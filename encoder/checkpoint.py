"""Checkpoints: a folder, or the same files in memory, with a network's weights and its spec."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import nn

from encoder.architectures import build_network
from encoder.contract import EncoderSpec
from encoder.embed import TileEncoder
from encoder.errors import EncoderError

WEIGHTS_FILE = "encoder.safetensors"
SPEC_FILE = "encoder.json"
FORMAT = 1
_RECORD_PARTS = ("config", "provenance", "metrics")


def save_checkpoint(
    folder: Path | str,
    module: nn.Module,
    spec: EncoderSpec,
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> EncoderSpec:
    """Write a checkpoint folder in one step: there is never half of one.

    Args:
        folder: replaced if it exists.
        module: the network that `spec.architecture` rebuilds.
        spec: its spec; the weights' hash is filled in.
        config: what it was trained with.
        provenance: versions, seed, counts of the data.
        metrics: last figures of the training.

    Returns:
        The spec with the weights' hash.
    """
    folder = Path(folder)
    weights = weights_bytes(module)
    spec = replace(spec, weights_sha256=hashlib.sha256(weights).hexdigest())
    fresh = folder.with_name(f".{folder.name}.new-{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    _write_synced(fresh / WEIGHTS_FILE, weights)
    _write_synced(fresh / SPEC_FILE, _spec_json(spec, config, provenance, metrics))
    move_folder(fresh, folder)
    return spec


def move_folder(fresh: Path, folder: Path) -> None:
    """Put a finished folder in the place of another, or of none."""
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old)
    else:
        fresh.rename(folder)


def load_checkpoint(folder: Path | str, device: str | None = None) -> TileEncoder:
    """Load an encoder from a checkpoint folder, or from a training run that holds one.

    Raises:
        EncoderError: it is no checkpoint, is damaged, or was written by another version.
    """
    folder = Path(folder)
    for candidate in (folder, folder / "checkpoint"):
        if (candidate / SPEC_FILE).is_file() and (candidate / WEIGHTS_FILE).is_file():
            files = {name: (candidate / name).read_bytes() for name in (SPEC_FILE, WEIGHTS_FILE)}
            return _from_files(files, device, str(candidate))
    raise EncoderError(
        f"{folder} holds no finished checkpoint ({SPEC_FILE} and {WEIGHTS_FILE}).",
        fix="Give the folder of a finished training run; an unfinished one goes on with its own command.",
    )


def checkpoint_files(encoder: TileEncoder) -> dict[str, bytes]:
    """The files from which `encoder_from_files` makes the same encoder again, of whatever kind it is."""
    weights = weights_bytes(encoder.module)
    spec = replace(encoder.spec, weights_sha256=hashlib.sha256(weights).hexdigest())
    made = [encoder.record.get(part, {}) for part in _RECORD_PARTS]
    return {SPEC_FILE: _spec_json(spec, *made), WEIGHTS_FILE: weights}


def encoder_from_files(files: Mapping[str, bytes], device: str | None = None) -> TileEncoder:
    """Make an encoder from the files that `checkpoint_files` gave.

    Raises:
        EncoderError: a file is missing or damaged, or was written by another version.
    """
    missing = [name for name in (SPEC_FILE, WEIGHTS_FILE) if name not in files]
    if missing:
        raise EncoderError(
            f"The encoder's files lack {', '.join(missing)}.", fix="Index again with the encoder at hand."
        )
    return _from_files(files, device, "the stored encoder")


def weights_bytes(module: nn.Module) -> bytes:
    """Weights and buffers of a network as the bytes of a safetensors file."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    return safetensors.torch.save(state)


def with_weights_hash(module: nn.Module, spec: EncoderSpec) -> EncoderSpec:
    """The spec with the hash of the network's weights filled in."""
    return replace(spec, weights_sha256=hashlib.sha256(weights_bytes(module)).hexdigest())


def _spec_json(
    spec: EncoderSpec, config: Mapping[str, Any], provenance: Mapping[str, Any], metrics: Mapping[str, Any]
) -> bytes:
    document = {
        "format": FORMAT,
        "spec": asdict(spec),
        "config": dict(config),
        "provenance": dict(provenance),
        "metrics": dict(metrics),
    }
    return json.dumps(document, indent=2, sort_keys=True).encode()


def _from_files(files: Mapping[str, bytes], device: str | None, where: str) -> TileEncoder:
    spec, record = _read_spec(files[SPEC_FILE], where)
    if hashlib.sha256(files[WEIGHTS_FILE]).hexdigest() != spec.weights_sha256:
        raise EncoderError(
            f"The weights of {where} are not those that its {SPEC_FILE} describes.",
            fix="The copy is damaged; copy the checkpoint again.",
        )
    module = build_network(spec.architecture)
    try:
        module.load_state_dict(safetensors.torch.load(files[WEIGHTS_FILE]))
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise EncoderError(
            f"The weights of {where} do not fit its architecture: {error}",
            fix="It was written with other versions; its encoder.json names them.",
        ) from error
    return TileEncoder(module, spec, device, record)


def _read_spec(text: bytes, where: str) -> tuple[EncoderSpec, dict[str, Any]]:
    try:
        document = json.loads(text)
        if document["format"] != FORMAT:
            raise EncoderError(
                f"{where} has checkpoint format {document['format']}; this version reads {FORMAT}.",
                fix="Use the version of HistoSeek that wrote it.",
            )
        values = dict(document["spec"])
        values["mean"], values["std"] = tuple(values["mean"]), tuple(values["std"])
        known = {field.name for field in fields(EncoderSpec)}
        if set(values) - known:
            raise KeyError(", ".join(sorted(set(values) - known)))
        return EncoderSpec(**values), {part: document.get(part, {}) for part in _RECORD_PARTS}
    except (ValueError, KeyError, TypeError) as error:
        raise EncoderError(
            f"{SPEC_FILE} of {where} cannot be read: {type(error).__name__}: {error}",
            fix="The copy is damaged; copy the checkpoint again.",
        ) from error


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
