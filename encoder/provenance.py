"""Versions of what computes, for the record of a training run."""

from __future__ import annotations

import platform

import numpy as np
import timm
import torch


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide the numbers."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "numpy": np.__version__,
    }
