"""Fixtures that several test folders share."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

# Several test processes share the cores: libraries that start a thread per core read this when they are imported.
if processes := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real slides and labelled tiles; skips where the environment names none."""
    folder = os.environ.get("HISTOSEEK_TEST_DATA")
    if not folder:
        pytest.skip("HISTOSEEK_TEST_DATA names no folder of real slides")
    return Path(folder)


@pytest.fixture(scope="session")
def cohort_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three synthetic slides of 1,536 level-0 pixels at 0.5 um/px, with their manifest.csv; do not change it."""
    from indexer.synthetic import draw_cohort

    folder = tmp_path_factory.mktemp("cohort")
    draw_cohort(folder, slides=3, seed=11, width0=1536, height0=1536)
    return folder


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder: an untrained colour encoder for tiles of 64 px at 1.0 um/px, in milliseconds."""
    from dataclasses import replace

    from encoder.checkpoint import checkpoint_files
    from encoder.embed import TileEncoder
    from encoder.registry import load_encoder

    encoder = load_encoder("colour")
    spec = replace(encoder.spec, name="tiny", tile_px=64, mpp=1.0)
    folder = tmp_path_factory.mktemp("encoder") / "tiny"
    folder.mkdir()
    for name, content in checkpoint_files(TileEncoder(encoder.module, spec, encoder.device)).items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="session")
def tiny_store(cohort_folder: Path, tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three slides of `cohort_folder` indexed with `tiny_encoder`, tile images kept; do not change it."""
    from encoder.progress import SilentReporter
    from encoder.registry import load_encoder
    from indexer.index_request import IndexRequest
    from indexer.manifest import discover
    from indexer.pipeline import index

    store = tmp_path_factory.mktemp("store") / "tiny"
    request = IndexRequest(
        entries=discover([cohort_folder], cohort_folder / "manifest.csv"),
        encoders=[load_encoder(str(tiny_encoder))],
        keep_images=True,
    )
    report = index(str(store), request, SilentReporter())
    assert report.exit_code == 0
    return store


@pytest.fixture
def store_copy(tiny_store: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_store` that a test may change."""
    return Path(shutil.copytree(tiny_store, tmp_path / "store"))


@dataclass(frozen=True)
class Outcome:
    """What a run of the command line left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


@pytest.fixture
def histoseek(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Run the histoseek command inside this process, as its entry point does."""
    from ui.cli.main import run

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["histoseek", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            run()
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        out, err = capfd.readouterr()
        return Outcome(code, out, err)

    return call
