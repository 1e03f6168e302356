"""Encoders by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from encoder.architectures import build_timm, check_timm_name, vector_length
from encoder.checkpoint import load_checkpoint, with_weights_hash
from encoder.colour import COLOUR_TILE_PX, ColourStatistics
from encoder.contract import EncoderSpec
from encoder.embed import TileEncoder
from encoder.errors import EncoderError
from encoder.plugins import load_plugin, plugin_names
from encoder.pretrained import download_timm, load_weights_file
from encoder.provenance import versions

FORMS = {
    "FOLDER": "a checkpoint, or a training run that holds one",
    "timm:MODEL@FILE": "a timm model with weights from a file",
    "timm:MODEL": "a timm model with weights from the model hub",
    "random:MODEL[@SEED]": "an untrained timm model, for comparison",
    "colour": "statistics of colour without a network, for comparison",
}


def load_encoder(name: str, device: str | None = None) -> TileEncoder:
    """Load an encoder by name.

    Args:
        name: `random:MODEL[@SEED]`, `timm:MODEL@FILE`, `timm:MODEL`, `colour`, the name of an installed
            entry point, or the path of a checkpoint folder or of a training run that holds one.
        device: where to compute; None takes CUDA where present, else the CPU.

    Raises:
        EncoderError: there is no such encoder, or it cannot be loaded; names what was tried.
    """
    kind, colon, rest = name.partition(":")
    if colon and kind == "random":
        return _untrained(name, rest, device)
    if colon and kind == "timm":
        return _pretrained(rest, device)
    if name == "colour":
        return _colour(device)
    if name in plugin_names():
        return _plugin(name, device)
    if Path(name).exists():
        return load_checkpoint(name, device)
    installed = f", or an installed one: {', '.join(plugin_names())}" if plugin_names() else ""
    raise EncoderError(
        f"There is no encoder {name!r}: no such folder, and no known name.", fix=f"Give {', '.join(FORMS)}{installed}."
    )


def timm_spec(name: str, method: str, model: str, module: nn.Module) -> EncoderSpec:
    """Spec of a timm model as its authors configured it; it was made for no particular mpp.

    Args:
        name: readable name of the encoder.
        method: `timm` or `random`.
        model: timm's name, with its tag if it has one.
        module: the network, without classifier.

    Raises:
        EncoderError: the model does not take square RGB tiles, or gives no vector.
    """
    settings: Mapping[str, Any] = getattr(module, "pretrained_cfg", None) or {}
    channels, height, width = settings.get("input_size", (3, 224, 224))
    if channels != 3 or height != width:
        raise EncoderError(
            f"{model} takes {channels} x {height} x {width}, not square RGB tiles.", fix="Choose another model."
        )
    mean = tuple(float(v) for v in settings.get("mean", (0.485, 0.456, 0.406)))
    std = tuple(float(v) for v in settings.get("std", (0.229, 0.224, 0.225)))
    return EncoderSpec(
        name=name,
        method=method,
        architecture={"kind": "timm", "model": model, "arguments": {}},
        dim=vector_length(module, height),
        tile_px=int(height),
        mpp=None,
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        precision="bf16",
        pooling=pooling_name(module),
    )


def pooling_name(module: nn.Module) -> str:
    """How a timm network turns its feature map into a vector."""
    pool = getattr(module, "global_pool", "avg")
    return pool if isinstance(pool, str) else str(getattr(pool, "pool_type", "avg"))


def _untrained(name: str, rest: str, device: str | None) -> TileEncoder:
    model, at, seed_text = rest.partition("@")
    try:
        seed = int(seed_text) if at else 0
    except ValueError as error:
        raise EncoderError(
            f"The seed of {name!r} is {seed_text!r}, not a whole number.", fix="Write random:MODEL@SEED."
        ) from error
    check_timm_name(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build_timm(model)
    spec = timm_spec(f"random:{model}@{seed}", "random", model, module)
    return TileEncoder(module, with_weights_hash(module, spec), device)


def _pretrained(rest: str, device: str | None) -> TileEncoder:
    model, at, file = rest.partition("@")
    check_timm_name(model)
    if at:
        module = load_weights_file(model, Path(file))
        name = f"timm:{model}@{Path(file).name}"
    else:
        module = download_timm(model)
        name = f"timm:{model}"
    spec = timm_spec(name, "timm", model, module)
    return TileEncoder(module, with_weights_hash(module, spec), device, {"provenance": {"versions": versions()}})


def _colour(device: str | None) -> TileEncoder:
    module = ColourStatistics()
    spec = EncoderSpec(
        name="colour",
        method="colour",
        architecture={"kind": "colour"},
        dim=ColourStatistics.dim,
        tile_px=COLOUR_TILE_PX,
        mpp=None,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        precision="fp32",
        pooling="statistics",
    )
    return TileEncoder(module, with_weights_hash(module, spec), device)


def _plugin(name: str, device: str | None) -> TileEncoder:
    plugin = load_plugin(name)
    spec = replace(plugin.spec, architecture={"kind": "plugin", "name": name})
    return TileEncoder(plugin.module, with_weights_hash(plugin.module, spec), device)
