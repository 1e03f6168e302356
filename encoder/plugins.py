"""Encoders of other installed packages, found through the entry-point group `histoseek.encoders`."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from torch import nn

from encoder.contract import EncoderSpec
from encoder.errors import EncoderError

GROUP = "histoseek.encoders"


@dataclass(frozen=True)
class Plugin:
    """What the function behind an entry point returns.

    Attributes:
        module: the network with its weights, on the CPU: [N, 3, tile_px, tile_px] to [N, dim].
        spec: its spec; `architecture` and `weights_sha256` are filled in by HistoSeek.
    """

    module: nn.Module
    spec: EncoderSpec


def plugin_names() -> list[str]:
    """Names of the installed encoders of other packages."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def load_plugin(name: str) -> Plugin:
    """Call the function that an entry point names.

    Raises:
        EncoderError: no package offers the name, several do, or it does not return a `Plugin`.
    """
    points: list[EntryPoint] = list(entry_points(group=GROUP, name=name))
    if len(points) != 1:
        offered = ", ".join(plugin_names()) or "none"
        problem = "is offered by no installed package" if not points else f"is offered by {len(points)} packages"
        raise EncoderError(
            f"Encoder {name!r} {problem} (entry points {GROUP}: {offered}).",
            fix="Install the one package that offers it.",
        )
    try:
        made = points[0].load()()
    except Exception as error:
        raise EncoderError(
            f"Encoder {name!r} of {points[0].value} cannot be made: {type(error).__name__}: {error}",
            fix="Repair or remove that package.",
        ) from error
    if not isinstance(made, Plugin):
        raise EncoderError(
            f"Encoder {name!r} of {points[0].value} returned {type(made).__name__}, not encoder.plugins.Plugin.",
            fix="Repair that package.",
        )
    return made
