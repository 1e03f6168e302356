"""The training methods by name, imported only when asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from encoder.methods.protocol import Method, MethodOptions

if TYPE_CHECKING:
    from encoder.config import TrainConfig
    from encoder.tiles import TileSource

# Name of the method: its module, its class, and the class of its options.
_METHODS = {
    "contrastive": ("encoder.methods.contrastive", "Contrastive", "ContrastiveOptions"),
    "patch_contrast": ("encoder.methods.patch_contrast.method", "PatchContrast", "PatchContrastOptions"),
    "sgcl": ("encoder.methods.sgcl.method", "Sgcl", "SgclOptions"),
    "stain_invariant": ("encoder.methods.stain_invariant", "StainInvariant", "StainInvariantOptions"),
}


def method_names() -> list[str]:
    """Names of all methods."""
    return sorted(_METHODS)


def options_class(name: str) -> type[MethodOptions]:
    """The options of a method; `name` is one of `method_names()`."""
    module, _, options = _METHODS[name]
    found: type[MethodOptions] = getattr(importlib.import_module(module), options)
    return found


def build_method(config: TrainConfig, source: TileSource) -> Method:
    """Build the method that a config names, with untrained weights, on the CPU."""
    module, name, _ = _METHODS[config.method.name]
    method: Method = getattr(importlib.import_module(module), name)(config, source)
    return method
