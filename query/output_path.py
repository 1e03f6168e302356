"""Where results are written: paths checked before any work, files written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from encoder.errors import UsageError


def check_output_file(path: Path | str, suffixes: Collection[str] | None = None) -> Path:
    """Check that a file can be written at a path, without writing anything.

    Args:
        path: of the file; folders that are missing will be made.
        suffixes: the allowed endings, lower case with their dot; None for any.

    Raises:
        UsageError: it is a folder, has another ending, or its folder cannot be made or written to.
    """
    path = Path(path)
    if _is_folder(path):
        raise UsageError(f"{path} is a folder.", fix="Name a file.")
    if suffixes is not None and path.suffix.lower() not in suffixes:
        raise UsageError(f"{path} does not end in {', '.join(sorted(suffixes))}.", fix="Name a file that does.")
    _check_parent(path)
    return path


def check_output_folder(path: Path | str) -> Path:
    """Check that a new folder can be made at a path, without making it.

    Args:
        path: must be absent or an empty folder.

    Raises:
        UsageError: it is in use, or the folder above it cannot be made or written to.
    """
    path = Path(path)
    if _is_folder(path):
        try:
            in_use = any(path.iterdir())
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}.", fix="Name a new folder.") from error
    else:
        in_use = path.exists()
    if in_use:
        raise UsageError(f"{path} exists and is not an empty folder.", fix="Name a new folder.")
    _check_parent(path)
    return path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file beside the target that becomes the target when all went well, and vanishes otherwise.

    Raises:
        UsageError: the file system refuses.
    """
    part = _beside(path)
    with _refusals_said(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder beside the target that becomes the target when all went well, and vanishes otherwise.

    Raises:
        UsageError: the file system refuses.
    """
    part = _beside(path)
    with _refusals_said(path):
        part.mkdir(parents=True)
        try:
            yield part
            if path.exists():
                path.rmdir()
            part.replace(path)
        finally:
            shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _refusals_said(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error}.", fix="Name another place.") from error


def _beside(path: Path) -> Path:
    """A name beside the target that no other process takes."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise UsageError(f"{path} cannot be used: {error.strerror}.", fix="Name another place.") from error


def _check_parent(path: Path) -> None:
    """Check that the nearest folder that exists above a path can be written to."""
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise UsageError(f"{path} cannot be written: {above} is a file.", fix="Name another place.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(f"{path} cannot be written: you may not write to {above}.", fix="Name another place.")
