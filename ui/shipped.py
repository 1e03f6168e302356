"""Where the shipped configs lie: beside the folders in a clone, under the prefix in an installation."""

from __future__ import annotations

import sys
from pathlib import Path

from encoder.errors import ConfigError


def config_path(name: str) -> Path:
    """Resolve a config file's path, or the name of a shipped encoder config.

    Args:
        name: a path, or a bare name such as `contrastive-small`.

    Raises:
        ConfigError: neither a file nor a shipped config.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.name == name and not path.suffix:
        shipped = _folder() / f"{name}.yaml"
        if shipped.is_file():
            return shipped
    raise ConfigError(
        f"config '{name}' is neither a file nor a shipped config.",
        f"Give a YAML file, or one of: {', '.join(shipped_configs())}.",
    )


def shipped_configs() -> list[str]:
    """Names of the shipped encoder configs, sorted."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def _folder() -> Path:
    clone = Path(__file__).resolve().parent.parent / "configs" / "encoder"
    if clone.is_dir():
        return clone
    return Path(sys.prefix) / "share" / "histoseek" / "configs" / "encoder"
