"""Collections by command and on their page."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

from encoder.errors import StoreError
from indexer.store import open_store
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


def draw(monkeypatch: pytest.MonkeyPatch, store: Path, went: list[tuple[str, dict]], **query: str) -> AppTest:
    """The page without the frame; where it would lead is noted."""

    def note(page: str, **params: object) -> None:
        went.append((page, params))

    def script() -> None:
        import os

        from query import open_cohort
        from ui.views.collections_page import show

        show(open_cohort(os.environ["HISTOSEEK_STORE"]))

    monkeypatch.setenv("HISTOSEEK_STORE", str(store))
    monkeypatch.setattr("ui.views.collections_page.go", note)
    test = AppTest.from_function(script, default_timeout=60)
    for name, value in query.items():
        test.query_params[name] = value
    return test.run()


def texts(test: AppTest) -> str:
    kinds = (test.markdown, test.caption, test.info, test.warning, test.error, test.subheader)
    return " ".join(element.value for kind in kinds for element in kind).replace("\\", "")


def test_a_store_without_collections_says_how_to_make_one(monkeypatch: pytest.MonkeyPatch, tiny_store: Path) -> None:
    test = draw(monkeypatch, tiny_store, [])
    assert not test.exception and "Save as collection" in texts(test)
    assert not test.selectbox


def test_one_is_open_and_the_link_says_which(monkeypatch: pytest.MonkeyPatch, cohort: Cohort, store_copy: Path) -> None:
    tiles = cohort.vectors(columns=["tile_key"]).table["tile_key"].to_pylist()
    save_collection(cohort, "*bold* [x](y)", tiles[:1])
    test = draw(monkeypatch, store_copy, [])
    assert not test.exception
    assert test.selectbox(key="collection_choice").options == ["*bold* [x](y)", "Glands & co"]
    assert test.subheader[0].value.replace("\\", "") == "*bold* [x](y)" and "\\*" in test.subheader[0].value
    test = draw(monkeypatch, store_copy, [], collection="Glands & co")
    assert not test.exception
    assert test.selectbox(key="collection_choice").value == "Glands & co"
    assert "6 tiles of 2 slides" in texts(test) and "by Ada" in texts(test) and "for the study" in texts(test)
    frame = test.dataframe[0].value
    assert frame["Name"].tolist() == ["*bold* [x](y)", "Glands & co"] and frame["Tiles"].tolist() == [1, 6]
    test.selectbox(key="collection_choice").select("*bold* [x](y)").run()
    assert not test.exception and "1 tile of 1 slide " in texts(test)
    gone = draw(monkeypatch, store_copy, [], collection="gone")
    assert not gone.exception and "no collection “gone”" in texts(gone)
    assert gone.selectbox(key="collection_choice").value == "*bold* [x](y)"


def test_its_tiles_become_examples(monkeypatch: pytest.MonkeyPatch, cohort: Cohort, store_copy: Path) -> None:
    tiles = cohort.vectors(columns=["tile_key"]).table["tile_key"].to_pylist()
    save_collection(cohort, "many", tiles[:50])
    went: list[tuple[str, dict]] = []
    test = draw(monkeypatch, store_copy, went, collection="Glands & co")
    test.button(key="search_examples").click().run()
    assert not test.exception
    saved = load_collection(cohort, "glands & co").tile_keys
    assert went == [("search", {"vectors": None, "q": None, "like": list(saved), "unlike": None, "lasso": None})]
    test = draw(monkeypatch, store_copy, went, collection="many")
    assert test.button(key="search_examples").label == "Search with 20 of these as examples"
    test.button(key="search_examples").click().run()
    like = went[1][1]["like"]
    assert len(set(like)) == 20 and like[0] == tiles[0] and set(like) <= set(tiles[:50]) and like[-1] in tiles[45:50]


def test_it_is_deleted_after_a_question(monkeypatch: pytest.MonkeyPatch, cohort: Cohort, store_copy: Path) -> None:
    tiles = cohort.vectors(columns=["tile_key"]).table["tile_key"].to_pylist()
    save_collection(cohort, "other", tiles[:2])
    test = draw(monkeypatch, store_copy, [], collection="Glands & co")
    test.button(key="delete").click().run()
    assert not test.exception and [info.name for info in collections(cohort)] == ["Glands & co", "other"]
    test.button(key="delete_surely").click().run()
    assert not test.exception
    assert [info.name for info in collections(cohort)] == ["other"]
    assert test.selectbox(key="collection_choice").value == "other" and "2 tiles of 1 slide " in texts(test)
    test.button(key="delete").click().run()
    test.button(key="delete_surely").click().run()
    assert not test.exception and "No collections yet" in texts(test)


def test_a_store_that_cannot_be_written_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, cohort: Cohort, store_copy: Path
) -> None:
    def refuse(*_: object) -> None:
        raise StoreError("The store is full.")

    test = draw(monkeypatch, store_copy, [])
    monkeypatch.setattr("ui.views.collections_page.delete_collection", refuse)
    test.button(key="delete").click().run()
    test.button(key="delete_surely").click().run()
    assert not test.exception and [error.value for error in test.error] == ["The store is full."]
    assert not test.run().error and len(collections(cohort)) == 1


def test_it_is_renamed(monkeypatch: pytest.MonkeyPatch, cohort: Cohort, store_copy: Path) -> None:
    tiles = cohort.vectors(columns=["tile_key"]).table["tile_key"].to_pylist()
    save_collection(cohort, "other", tiles[:2])
    test = draw(monkeypatch, store_copy, [], collection="other")
    test.text_input(key="rename_other").set_value("glands & CO")
    next(button for button in test.button if button.label == "Rename").click().run()
    assert "There is a collection 'glands & CO' already" in texts(test)
    test.text_input(key="rename_other").set_value("Aardvarks")
    next(button for button in test.button if button.label == "Rename").click().run()
    assert not test.exception and [info.name for info in collections(cohort)] == ["Aardvarks", "Glands & co"]
    assert test.selectbox(key="collection_choice").value == "Aardvarks"


def test_tiles_that_are_gone_are_told(monkeypatch: pytest.MonkeyPatch, cohort: Cohort, store_copy: Path) -> None:
    found = load_collection(cohort, "glands & co")
    store = open_store(str(store_copy))
    ids = ", ".join(map(str, found.tile_ids[:2].tolist()))
    store.lance.delete("gone", f"tiles_{found.grid_id}", f"tile_id IN ({ids})")
    test = draw(monkeypatch, store_copy, [])
    assert not test.exception and "2 of its tiles are no longer in the store" in texts(test)
