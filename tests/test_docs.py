"""The documents: every link to a file leads somewhere, every command that they name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ui.cli.main import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    for target in targets:
        assert "://" in target or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_commands_and_targets_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    known = {command.callback.__name__ for command in app.registered_commands if command.callback}
    assert set(re.findall(r"^histoseek (\w+)", text, re.MULTILINE)) <= known
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake ([a-z-]+)\b", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
