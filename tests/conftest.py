"""Fixtures that several test folders share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real slides and labelled tiles; skips where the environment names none."""
    folder = os.environ.get("HISTOSEEK_TEST_DATA")
    if not folder:
        pytest.skip("HISTOSEEK_TEST_DATA names no folder of real slides")
    return Path(folder)
