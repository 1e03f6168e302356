"""Where OpenSeadragon is, which shows the slides in the browser: set-up installs it, a wheel carries it."""

from __future__ import annotations

import json
from pathlib import Path

HOW_TO_INSTALL = "Run `make viewer`, which needs the npm registry."

_PACKAGE = Path(__file__).resolve().parent.parent / "viewer" / "node_modules" / "openseadragon"


def openseadragon_folder() -> Path | None:
    """The folder that a browser may load from; None where OpenSeadragon is not installed."""
    folder = _PACKAGE / "build" / "openseadragon"
    return folder if (folder / "openseadragon.min.js").is_file() else None


def openseadragon_version() -> str:
    """Version of the installed OpenSeadragon."""
    return str(json.loads((_PACKAGE / "package.json").read_text(encoding="utf-8"))["version"])
