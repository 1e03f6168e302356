"""Collections by command and on their page."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from query import open_cohort
from query.cohort import Cohort
from query.collections import collections, load_collection, save_collection


@pytest.fixture
def cohort(store_copy: Path) -> Cohort:
    """A store with one collection of six tiles of two slides."""
    found = open_cohort(str(store_copy))
    tiles = found.vectors(columns=["tile_key"]).table["tile_key"].to_pylist()
    save_collection(found, "Glands & co", [*tiles[:4], *tiles[-2:]], author="Ada", note="for the study")
    return found


def test_the_command_lists_and_shows(histoseek, cohort: Cohort, store_copy: Path, tmp_path: Path) -> None:
    listed = histoseek("collections", "--store", store_copy, "--json")
    (info,) = json.loads(listed.out)["collections"]
    assert (info["name"], info["tiles"], info["slides"], info["author"]) == ("Glands & co", 6, 2, "Ada")
    assert "Glands & co" in histoseek("collections", "--store", store_copy).out
    files = {"--csv": tmp_path / "g.csv", "--geojson": tmp_path / "g.zip", "--sheet": tmp_path / "g.png"}
    arguments = [str(item) for pair in files.items() for item in pair]
    shown = histoseek("collections", "--store", store_copy, "--show", "glands & CO", *arguments, "--json")
    document = json.loads(shown.out)
    keys = load_collection(cohort, "glands & co").tile_keys
    assert document["tile_keys"] == list(keys) == [row["tile_key"] for row in document["rows"]]
    with files["--csv"].open(encoding="utf-8-sig", newline="") as stream:
        assert [row["tile_key"] for row in csv.DictReader(stream)] == list(keys)
    slides = {key.rpartition("@")[0] for key in keys}
    with zipfile.ZipFile(files["--geojson"]) as archive:
        assert set(archive.namelist()) == {f"{slide}.geojson" for slide in slides}
    assert Image.open(files["--sheet"]).width > 500
    plain = histoseek(
        "collections", "--store", store_copy, "--show", "Glands & co", "--geojson", tmp_path / "g.geojson"
    )
    assert "note: for the study" in plain.out and "outlines of 2 slides" in plain.out
    assert len(json.loads((tmp_path / "g.geojson").read_text())["features"]) == 6


def test_the_command_deletes(histoseek, cohort: Cohort, store_copy: Path) -> None:
    deleted = histoseek("collections", "--store", store_copy, "--delete", "Glands & co", "--json")
    assert json.loads(deleted.out) == {"deleted": "Glands & co"}
    assert collections(cohort) == ()
    assert json.loads(histoseek("collections", "--store", store_copy, "--json").out) == {"collections": []}
    assert "no collections yet" in histoseek("collections", "--store", store_copy).out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--show", "x", "--delete", "x"], "does one thing"),
        (["--csv", "x.csv"], "belong to --show"),
        (["--show", "glands", "--csv", "x.txt"], "does not end in .csv"),
        (["--show", "glands"], "Did you mean 'Glands & co'?"),
        (["--delete", "other"], "There is no collection 'other'"),
    ],
)
def test_the_command_refuses_in_a_sentence(histoseek, cohort: Cohort, store_copy: Path, arguments, says) -> None:
    outcome = histoseek("collections", "--store", store_copy, *arguments)
    assert outcome.code == 2 and says in outcome.err and not outcome.out
    assert len(collections(cohort)) == 1
