"""Builds the network that a spec's `architecture` describes; timm takes seconds to import, so only where it builds."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from encoder.colour import ColourStatistics
from encoder.errors import EncoderError
from encoder.plugins import load_plugin

NARROW_RESNET = "narrow-resnet"
# Networks of our own: where they are built.
_OWN = {
    NARROW_RESNET: ("encoder.nets.narrow_resnet", "NarrowResnet"),
    "confidence": ("encoder.nets.confidence", "ConfidenceDescriptor"),
}


def build_network(architecture: Mapping[str, Any]) -> nn.Module:
    """Build an untrained network that maps [N, 3, H, W] to [N, dim].

    Args:
        architecture: `kind` is `timm` (with `model` and `arguments`), `narrow-resnet` or `confidence` (with
            `arguments`), `colour`, or `plugin` (with `name`).

    Raises:
        EncoderError: the kind or the model is unknown here, or its arguments do not fit.
    """
    kind = architecture.get("kind")
    if kind == "timm":
        return build_timm(str(architecture["model"]), dict(architecture.get("arguments", {})))
    if kind in _OWN:
        return _own(str(kind), dict(architecture.get("arguments", {})))
    if kind == "colour":
        return ColourStatistics()
    if kind == "plugin":
        return load_plugin(str(architecture["name"])).module
    raise EncoderError(
        f"The encoder's architecture is of the unknown kind {kind!r}.",
        fix="It was written by another version of HistoSeek; use that version.",
    )


def _own(kind: str, arguments: Mapping[str, Any]) -> nn.Module:
    module, name = _OWN[kind]
    try:
        network: nn.Module = getattr(importlib.import_module(module), name)(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise EncoderError(f"{kind} cannot be built with {dict(arguments)}: {error}", fix="Correct them.") from error
    return network


def build_timm(model: str, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """Build a timm model without classifier and with random weights.

    Args:
        model: a name that timm knows, with or without a pretraining tag.
        arguments: passed to the model's constructor.

    Raises:
        EncoderError: timm does not know the name, or the arguments do not fit.
    """
    import timm

    check_timm_name(model)
    try:
        return timm.create_model(model, pretrained=False, num_classes=0, **dict(arguments or {}))
    except (TypeError, ValueError, RuntimeError, KeyError, AssertionError) as error:
        raise EncoderError(
            f"timm cannot build {model} with {dict(arguments or {})}: {error}", fix="Correct its arguments."
        ) from error


def check_timm_name(model: str) -> None:
    """Check that timm knows a model.

    Raises:
        EncoderError: it does not; suggests near names.
    """
    import timm

    if timm.is_model(model):
        return
    near = difflib.get_close_matches(model, timm.list_models(), n=3, cutoff=0.5)
    hint = f"Did you mean {', '.join(near)}?" if near else "timm.list_models() lists the names."
    raise EncoderError(f"timm {timm.__version__} has no model named {model!r}.", fix=hint)


def vector_length(module: nn.Module, tile_px: int) -> int:
    """Length of the vector that a network gives for tiles of a side.

    Raises:
        EncoderError: the network does not take such tiles, or does not give one vector per tile.
    """
    was_training = module.training
    module.eval()
    device = next((t.device for t in [*module.parameters(), *module.buffers()]), torch.device("cpu"))
    try:
        with torch.inference_mode():
            out = module(torch.zeros(1, 3, tile_px, tile_px, device=device))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise EncoderError(
            f"The network does not take tiles of {tile_px} px: {error}", fix="Choose another tile_px or network."
        ) from error
    finally:
        module.train(was_training)
    if not isinstance(out, torch.Tensor) or out.ndim != 2:
        raise EncoderError("The network does not give one vector per tile.", fix="Choose one with pooling.")
    return int(out.shape[1])
