"""Paths of results: refused before any work, written whole or not at all."""

from __future__ import annotations

import os

import numpy as np
import pytest

from encoder.errors import UsageError
from query import open_cohort
from query.export import export_parquet, export_tiles
from query.output_path import check_output_file, check_output_folder, whole_file, whole_folder
from query.report import write_report


def test_a_path_that_can_be_written_is_given_back_and_nothing_is_made(tmp_path):
    target = tmp_path / "new" / "deeper" / "a.PNG"
    assert check_output_file(str(target), (".png",)) == target
    assert check_output_folder(tmp_path / "other" / "tiles") == tmp_path / "other" / "tiles"
    (tmp_path / "a.txt").write_text("old")
    assert check_output_file(tmp_path / "a.txt") == tmp_path / "a.txt"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.txt"]


def test_unusable_paths_are_one_sentence(tmp_path):
    file = tmp_path / "file.txt"
    file.write_text("old")
    for path, suffixes, says in [
        (tmp_path, None, "is a folder"),
        (tmp_path / "a.doc", (".png", ".jpg"), "does not end in .jpg, .png"),
        (tmp_path / "a", (".png",), "does not end in .png"),
        (file / "a.png", None, "is a file"),
        (file / "b" / "a.png", None, "is a file"),
        (tmp_path / ("x" * 300), None, "cannot be used"),
    ]:
        with pytest.raises(UsageError) as caught:
            check_output_file(path, suffixes)
        assert says in str(caught.value) and "\n" not in str(caught.value)
    for path, says in [(tmp_path, "not an empty folder"), (file, "not an empty folder"), (file / "b", "is a file")]:
        with pytest.raises(UsageError, match=says):
            check_output_folder(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UsageError, match="may not write"):
            check_output_file(tmp_path / "a.png")
    finally:
        tmp_path.chmod(0o700)


def test_a_failure_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def fail_to_write():
        with whole_file(target) as part:
            part.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(UsageError, match="No space left"):
        fail_to_write()
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]
    with whole_file(target) as part:
        part.write_text("new")
    assert target.read_text() == "new" and list(tmp_path.iterdir()) == [target]


def test_a_folder_is_made_whole_or_not_at_all(tmp_path):
    target = tmp_path / "tiles"

    def fail_to_write():
        with whole_folder(target) as part:
            (part / "a").write_text("half")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail_to_write()
    assert list(tmp_path.iterdir()) == []
    target.mkdir()
    with whole_folder(target) as part:
        (part / "a").write_text("new")
    assert (target / "a").read_text() == "new" and list(tmp_path.iterdir()) == [target]


def test_results_are_refused_at_unusable_paths_before_any_work(small, tmp_path, monkeypatch):
    cohort = open_cohort(str(small.path))
    results = cohort.search(np.ones(16), k=3)
    file = tmp_path / "file.txt"
    file.write_text("old")
    monkeypatch.setattr("query.tile_list.draw_montage", None)
    for path in (tmp_path, tmp_path / "a.docx", tmp_path / "a", file / "a.png"):
        with pytest.raises(UsageError):
            results.montage(path)
    monkeypatch.setattr(type(cohort), "slides", None)
    for path in (tmp_path, file / "a.parquet", file):
        with pytest.raises(UsageError):
            export_parquet(cohort, path)
    for path in (tmp_path, file / "tiles", file):
        with pytest.raises(UsageError):
            export_tiles(cohort, path)
    for path in (tmp_path, file / "a.html"):
        with pytest.raises(UsageError):
            write_report(None, path)
    assert list(tmp_path.iterdir()) == [file] and file.read_text() == "old"
