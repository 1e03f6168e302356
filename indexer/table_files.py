"""Where LanceDB keeps a table's files in a local store, and how much they are."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def table_folder(store: Path, name: str) -> Path:
    """Folder of a table in a local store."""
    return store / f"{name}.lance"


def versions_folder(store: Path, name: str) -> Path:
    """Folder that every commit to a table adds a file to."""
    return table_folder(store, name) / "_versions"


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder; 0 where there is none.

    A file that goes away while they are counted is left out.
    """
    total = 0
    for place, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                total += (Path(place) / file).stat().st_size
    return total


def count_versions(store: Path, name: str) -> int:
    """Versions that a table of a local store keeps; 0 where it does not exist."""
    folder = versions_folder(store, name)
    return sum(file.suffix == ".manifest" for file in folder.iterdir()) if folder.is_dir() else 0
