"""kill -9 at any point, resume: the same rows as without, none lost and none doubled."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from encoder.checkpoint import checkpoint_files
from encoder.embed import TileEncoder
from encoder.progress import SilentReporter
from encoder.registry import load_encoder
from indexer.commits import FLUSH_POINTS
from indexer.index_request import IndexReport, IndexRequest
from indexer.manifest import discover
from indexer.pipeline import index
from indexer.registration import in_shard
from indexer.store import open_store
from indexer.synthetic import draw_cohort
from indexer.verify import verify

KILLED = -signal.SIGKILL
REFUSED = 5
# What differs from run to run and is no row's content.
VOLATILE = {"at", "run_id", "failure_id", "tries", "resolved_by", "registered_at", "created_at"}
Runs = Callable[..., list[int]]


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    """Index in children of a warm process; gives their exit codes."""
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("crashing_run.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None and server.stdout is not None

    def ask(*requests: dict[str, Any]) -> list[int]:
        server.stdin.write(json.dumps({"runs": requests}) + "\n")
        server.stdin.flush()
        return json.loads(server.stdout.readline())

    yield ask
    server.stdin.close()
    assert server.wait(30) == 0


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny slides, and one that is broken."""
    folder = tmp_path_factory.mktemp("slides")
    draw_cohort(folder, slides=3, seed=5, width0=512, height0=512)
    paths = [entry.path for entry in discover([folder], folder / "manifest.csv")]
    paths[2].rename(folder / "third.bytes")
    paths[2].write_text("not a slide")
    return folder


@pytest.fixture(scope="module")
def second_encoder(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that differs from `tiny_encoder` by its name and mean."""
    first = load_encoder(str(tiny_encoder), "cpu")
    other = TileEncoder(first.module, replace(first.spec, name="second", mean=(0.1, 0.1, 0.1)), "cpu")
    folder = tmp_path_factory.mktemp("second")
    for name, content in checkpoint_files(other).items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(cohort: Path, tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cohort indexed in one go."""
    store = tmp_path_factory.mktemp("whole") / "s"
    _index(store, cohort, tiny_encoder)
    return store


@pytest.fixture(scope="module")
def changed(
    cohort: Path,
    uninterrupted: Path,
    tiny_encoder: Path,
    second_encoder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path, Path]:
    """A store with two encoders, slides that have changed since, and what indexing them again must give."""
    folder = tmp_path_factory.mktemp("changed")
    slides, before, after = (folder / name for name in ("slides", "before", "after"))
    shutil.copytree(cohort, slides)
    shutil.copytree(uninterrupted, before)
    _index(before, slides, tiny_encoder, second_encoder)
    entries = discover([slides], slides / "manifest.csv")
    shutil.copy(entries[0].path, slides / "first.bytes")
    entries[0].path.write_bytes(entries[1].path.read_bytes())
    entries[2].path.write_bytes((slides / "third.bytes").read_bytes())
    shutil.copytree(before, after)
    _index(after, slides, tiny_encoder)
    return slides, before, after


def _index(store: Path, slides: Path, *encoders: Path, keep_images: bool = False) -> IndexReport:
    loaded = [load_encoder(str(encoder), "cpu") for encoder in encoders]
    request = IndexRequest(loaded, discover([slides], slides / "manifest.csv"), readers=2, keep_images=keep_images)
    return index(str(store), request, SilentReporter())


def _content(store: Path) -> dict[str, list[Any]]:
    """Rows of every table but `runs`, without what differs from run to run, in an order of their own."""
    opened = open_store(str(store), read_only=True)
    content = {}
    for name in opened.tables():
        if name not in ("runs", "meta"):
            rows = opened.read(name)
            rows = rows.drop_columns([column for column in rows.column_names if column in VOLATILE])
            content[name] = sorted(map(repr, rows.to_pylist()))
    return content


def _open_failures(store: Path) -> list[str]:
    return sorted(open_store(str(store)).quarantine(open_only=True)["slide_id"].to_pylist())


def _check(store: Path, whole: Path) -> None:
    expected = _content(whole)
    found = _content(store)
    assert found.keys() == expected.keys()
    for name, rows in expected.items():
        assert found[name] == rows, name
    assert _open_failures(store) == _open_failures(whole)
    report = verify(str(store))
    assert report.ok, report.problems


FIRST_RUN = ["meta", "run-starting", "run-running", "columns", "registered", *FLUSH_POINTS, "run-finished"]
ABSENT_AT_FIRST = {"retracted", "cleared", "resolved"}


@pytest.mark.parametrize("point", [point for point in FIRST_RUN if point not in ABSENT_AT_FIRST])
def test_a_first_run_killed_after_a_commit_is_taken_up(
    point: str, runs: Runs, cohort: Path, tiny_encoder: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    store = tmp_path / "s"
    run = {"slides": str(cohort), "store": str(store), "encoders": [str(tiny_encoder)]}
    assert runs(run | {"kill_at": [point, 1]}) == [KILLED]
    report = _index(store, cohort, tiny_encoder)
    assert report.exit_code == 3 and report.indexed + report.already == 2
    _check(store, uninterrupted)
    statuses = open_store(str(store)).runs()["status"].to_pylist()
    assert statuses[-1] == "finished" and set(statuses[:-1]) <= {"died", "finished"}


@pytest.mark.parametrize("point", ["retracted", "cleared", "slides", "tiles", "vectors", "done", "resolved"])
def test_a_replacement_killed_after_a_commit_is_taken_up(
    point: str, runs: Runs, changed: tuple[Path, Path, Path], tiny_encoder: Path, tmp_path: Path
) -> None:
    slides, before, after = changed
    store = Path(shutil.copytree(before, tmp_path / "s"))
    run = {"slides": str(slides), "store": str(store), "encoders": [str(tiny_encoder)]}
    assert runs(run | {"kill_at": [point, 1]}) == [KILLED]
    assert _index(store, slides, tiny_encoder).exit_code == 0
    _check(store, after)


def test_a_run_killed_between_flushes_keeps_what_was_whole(
    runs: Runs, cohort: Path, tiny_encoder: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    store = tmp_path / "s"
    run = {"slides": str(cohort), "store": str(store), "encoders": [str(tiny_encoder)], "rows": 1}
    assert runs(run | {"kill_at": ["vectors", 2]}) == [KILLED]
    assert len(open_store(str(store)).done()) == 1
    assert not verify(str(store)).ok  # the second slide's rows are there, and it is not done
    report = _index(store, cohort, tiny_encoder)
    assert (report.already, report.indexed) == (1, 1)
    _check(store, uninterrupted)


@pytest.mark.parametrize("point", ["cleared", "vectors"])
def test_what_a_killed_replacement_wrote_is_never_taken_for_the_old_files(
    point: str,
    runs: Runs,
    changed: tuple[Path, Path, Path],
    tiny_encoder: Path,
    second_encoder: Path,
    tmp_path: Path,
) -> None:
    slides, before, _ = changed
    store = Path(shutil.copytree(before, tmp_path / "s"))
    run = {"slides": str(slides), "store": str(store), "encoders": [str(tiny_encoder)]}
    assert runs(run | {"kill_at": [point, 1]}) == [KILLED]
    path = discover([slides], slides / "manifest.csv")[0].path
    new = path.read_bytes()
    path.write_bytes((slides / "first.bytes").read_bytes())
    try:
        assert _index(store, slides, tiny_encoder, second_encoder).indexed
        found, expected = _content(store), _content(before)
        for name in found:
            if name.startswith(("tiles_", "vectors_")):  # the third slide is well now
                assert [row for row in found[name] if "'slide_no': 2," not in row] == expected[name], name
        assert verify(str(store)).ok
    finally:
        path.write_bytes(new)


def test_a_killed_recovery_is_taken_up(
    runs: Runs, cohort: Path, uninterrupted: Path, tiny_encoder: Path, second_encoder: Path, tmp_path: Path
) -> None:
    store = Path(shutil.copytree(uninterrupted, tmp_path / "s"))
    _index(store, cohort, tiny_encoder, second_encoder)
    whole = Path(shutil.copytree(store, tmp_path / "whole"))
    _index(whole, cohort, tiny_encoder, second_encoder, keep_images=True)
    run = {"slides": str(cohort), "store": str(store), "encoders": [str(tiny_encoder)]}
    # The tiles are written again for their images; the other encoder's slides are done, and lack them.
    assert runs(run | {"keep_images": True, "kill_at": ["cleared", 2]}) == [KILLED]
    assert runs(run | {"kill_at": ["purged-done", 1]}) == [KILLED]
    assert runs(run | {"kill_at": ["purged", 1]}) == [KILLED]
    assert _index(store, cohort, tiny_encoder, second_encoder, keep_images=True).indexed == 2
    _check(store, whole)


def test_of_two_drivers_one_is_refused_in_one_sentence(
    runs: Runs, cohort: Path, tiny_encoder: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    store = tmp_path / "s"
    run = {"slides": str(cohort), "store": str(store), "encoders": [str(tiny_encoder)]}
    run["pause_at"] = ["run-running", 1.5]
    both = [run | {"says": str(tmp_path / name)} for name in "ab"]
    codes = runs(*both)
    assert sorted(codes) == [0, REFUSED]
    refusal = Path(both[codes.index(REFUSED)]["says"]).read_text()
    assert "is being written by process" in refusal and "\n" not in refusal
    _check(store, uninterrupted)


def test_drivers_with_disjoint_shards_share_a_store(
    runs: Runs, cohort: Path, tiny_encoder: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    ids = [entry.slide_id for entry in discover([cohort], cohort / "manifest.csv")]
    # As many drivers as it takes for two of them to have something to do.
    count = next(n for n in range(2, 20) if not any(all(in_shard(i, (k, n)) for i in ids) for k in range(1, n + 1)))
    run = {"slides": str(cohort), "store": str(tmp_path / "s"), "encoders": [str(tiny_encoder)]}
    run["pause_at"] = ["run-running", 1.0]
    assert runs(*(run | {"shard": [part, count]} for part in range(1, count + 1))) == [0] * count
    store, whole = open_store(str(tmp_path / "s")), open_store(str(uninterrupted))
    assert store.slide_status() == whole.slide_status()
    assert sorted(store.vector_tables()) == sorted(whole.vector_tables())
    assert len(set(store.slides()["slide_no"].to_pylist())) == 3
    report = verify(store.uri)
    assert report.ok, report.problems
    assert _index(tmp_path / "s", cohort, tiny_encoder).already == 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_runs_killed_at_random_moments_end_with_the_same_rows(
    seed: int, runs: Runs, cohort: Path, tiny_encoder: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    choose = random.Random(seed)
    store = tmp_path / "s"
    run = {"slides": str(cohort), "store": str(store), "encoders": [str(tiny_encoder)], "rows": 1}
    for _ in range(6):
        assert runs(run | {"kill_after": choose.uniform(0.05, 2.5)})[0] in (KILLED, 0)
    report = _index(store, cohort, tiny_encoder)
    assert report.indexed + report.already == 2
    _check(store, uninterrupted)


@pytest.mark.slow
def test_a_replacement_killed_at_random_moments_ends_with_the_same_rows(
    runs: Runs, changed: tuple[Path, Path, Path], tiny_encoder: Path, tmp_path: Path
) -> None:
    slides, before, after = changed
    choose = random.Random(7)
    store = Path(shutil.copytree(before, tmp_path / "s"))
    run = {"slides": str(slides), "store": str(store), "encoders": [str(tiny_encoder)], "rows": 1}
    for _ in range(8):
        runs(run | {"kill_after": choose.uniform(0.05, 2.0)})
    assert _index(store, slides, tiny_encoder).exit_code == 0
    _check(store, after)


@pytest.mark.slow
def test_memory_is_flat_in_the_length_of_the_cohort(
    runs: Runs, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    drawn = tmp_path_factory.mktemp("drawn")
    draw_cohort(drawn, slides=3, seed=3, width0=1024, height0=1024)
    peaks = []
    for count in (12, 60):
        folder = tmp_path / f"slides{count}"
        folder.mkdir()
        for n in range(count):
            source = discover([drawn], drawn / "manifest.csv")[n % 3].path
            os.link(source, folder / f"slide{n}{source.suffix}")
        (folder / "manifest.csv").write_text("slide_id\n" + "".join(f"slide{n}\n" for n in range(count)))
        run = {"slides": str(folder), "store": str(tmp_path / f"s{count}"), "encoders": ["random:resnet18"]}
        # A flush every few slides, so that what waits for it is no part of the difference.
        assert runs(run | {"mpp": 0.5, "rows": 150, "says": str(tmp_path / "peak")}) == [0]
        peaks.append(int((tmp_path / "peak").read_text()))
    assert peaks[1] < 3 << 30
    assert peaks[1] - peaks[0] < 120 << 20, peaks
