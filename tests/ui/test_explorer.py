"""The explorer's pages: their logic by AppTest; `test_explorer_browser.py` clicks in a real browser."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from streamlit.testing.v1 import AppTest

from query import open_cohort
from query.cohort import Cohort
from ui.server.opened import STORE_VARIABLE

APP = Path(__file__).resolve().parents[2] / "ui" / "app.py"


def page(monkeypatch: pytest.MonkeyPatch, store: Path | str, **query: str | list[str]) -> AppTest:
    monkeypatch.setenv(STORE_VARIABLE, str(store))
    test = AppTest.from_file(str(APP), default_timeout=60)
    for name, value in query.items():
        test.query_params[name] = value
    return test.run()


def lone_page(monkeypatch: pytest.MonkeyPatch, store: Path | str, name: str, **query: str) -> AppTest:
    """One page without the frame, which AppTest cannot navigate."""
    monkeypatch.setenv(STORE_VARIABLE, str(store))
    monkeypatch.setenv("HISTOSEEK_TEST_PAGE", name)

    def script() -> None:
        import os
        from importlib import import_module

        from ui.server.opened import opened_cohort

        import_module(f"ui.views.{os.environ['HISTOSEEK_TEST_PAGE']}").show(
            opened_cohort(os.environ["HISTOSEEK_STORE"])
        )

    test = AppTest.from_function(script, default_timeout=60)
    for key, value in query.items():
        test.query_params[key] = value
    return test.run()


def texts(test: AppTest) -> str:
    kinds = (test.markdown, test.caption, test.info, test.warning, test.error, test.success)
    return " ".join(element.value for kind in kinds for element in kind).replace("\\", "")  # as Markdown shows it


def some_tile(cohort: Cohort, last: bool = False) -> str:
    order = "DESC" if last else "ASC"
    return str(cohort.sql(f"SELECT tile_key FROM tiles ORDER BY tile_id {order} LIMIT 1")["tile_key"][0].as_py())


def test_it_opens_on_a_slide_and_asks_for_a_click(monkeypatch: pytest.MonkeyPatch, tiny_store: Path) -> None:
    test = page(monkeypatch, tiny_store)
    assert not test.exception and not test.error
    assert len(test.selectbox(key="slide_choice").options) == 3
    assert "Click on tissue" in texts(test)
    assert test.selectbox(key="leave_out").value == "slide"


def test_a_bookmark_is_the_view_that_was_left(monkeypatch: pytest.MonkeyPatch, tiny_store: Path) -> None:
    tile = some_tile(open_cohort(str(tiny_store)), last=True)
    slide_id = tile.rpartition("@")[0]
    test = page(monkeypatch, tiny_store, q=f"tile:{tile}", k="8", leave_out="Nothing", where="tissue > 0.1")
    assert not test.exception and not test.error
    assert test.selectbox(key="slide_choice").value == slide_id
    assert test.slider(key="k").value == 8 and test.selectbox(key="leave_out").value == "nothing"
    assert "8 most similar" in texts(test)
    test.text_input(key="where").set_value("tisue > 0.5").run()
    assert not test.exception
    assert "tissue" in " ".join(element.value for element in test.error)


def test_every_kind_of_question_has_its_link(monkeypatch: pytest.MonkeyPatch, tiny_store: Path) -> None:
    cohort = open_cohort(str(tiny_store))
    one, other = some_tile(cohort), some_tile(cohort, last=True)
    slide_id, _, place = one.rpartition("@")
    x0, y0 = map(int, place.split(","))
    told = texts(page(monkeypatch, tiny_store, q=f"at:{slide_id}@{x0 + 5},{y0 + 5}"))
    assert f"From a point of {slide_id}" in told and "20 most similar" in told
    told = texts(page(monkeypatch, tiny_store, q=f"region:{slide_id}@{x0},{y0},{x0 + 600},{y0 + 600}"))
    assert f"From a region of {slide_id}" in told and "20 most similar" in told
    told = texts(page(monkeypatch, tiny_store, q=f"tile:{one}", like=[other], unlike=[one]))
    assert "1 marked like it" in told and "1 marked unlike it" in told and "20 most similar" in told
    told = texts(page(monkeypatch, tiny_store, like=[one, other]))
    assert "2 marked like it" in told and "20 most similar" in told


def test_marks_do_not_take_their_slides_away(monkeypatch: pytest.MonkeyPatch, tiny_store: Path) -> None:
    cohort = open_cohort(str(tiny_store))
    one, other = some_tile(cohort), some_tile(cohort, last=True)
    own, marked = (key.rpartition("@")[0] for key in (one, other))
    tiles = {
        row["slide_id"]: row["n"]
        for row in cohort.sql("SELECT slide_id, count(*) AS n FROM tiles GROUP BY 1").to_pylist()
    }
    left = sum(tiles.values()) - tiles[own] - 1  # but for the marked tile itself
    told = texts(page(monkeypatch, tiny_store, q=f"tile:{one}", like=[other], where="tissue >= 0"))
    assert own != marked and f"of {left:,} tiles" in told


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ({"q": "at:elsewhere@5,5"}, "elsewhere"),
        ({"q": "at:²,5"}, "no tile, point or region"),
        ({"q": "tile:../../etc/passwd"}, "no tile, point or region"),
        ({"q": "picture:0123456789abcdef"}, "Upload it again"),
        ({"slide": "elsewhere"}, "elsewhere"),
        ({"slide": "![x](http://evil.example/x.png)"}, "Slide ![x](http://evil.example/x.png) has"),
        ({"q": f"region:slide-001@0,0,{'9' * 400},5"}, "A region has"),
        ({"view": "1,2", "layer": "none such", "k": "many"}, "Click on tissue"),
    ],
)
def test_a_damaged_link_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tiny_store: Path, link: dict[str, str], said: str
) -> None:
    test = page(monkeypatch, tiny_store, **link)
    assert not test.exception
    assert said in texts(test)


def test_filters_are_built_from_the_columns_of_the_store(monkeypatch: pytest.MonkeyPatch, tiny_store: Path) -> None:
    cohort = open_cohort(str(tiny_store))
    tile = some_tile(cohort)
    other = next(i for i in cohort.slides["slide_id"].to_pylist() if i != tile.rpartition("@")[0])
    test = page(monkeypatch, tiny_store, q=f"tile:{tile}", f_slide_id=other)
    assert not test.exception and not test.error
    count = cohort.sql(f"SELECT count(*) AS n FROM tiles WHERE slide_id = '{other}'")["n"][0].as_py()
    assert f"slide_id is {other}" in texts(test) and f"of {count:,} tiles" in texts(test)
    assert len(cohort.search(tile, where=f"slide_id = '{other}'", exclude=("slide",)))
    low, high = test.slider(key="ft_tissue").value
    test.slider(key="ft_tissue").set_value((high, high)).run()
    assert not test.exception and not test.error
    full = cohort.sql(f"SELECT count(*) AS n FROM tiles WHERE slide_id = '{other}' AND tissue >= {high}")["n"][
        0
    ].as_py()
    assert low < high and f"tissue is at least {high:g}" in texts(test)
    assert (f"of {full:,} tiles" if full else "No tile matches") in texts(test)


def test_a_filter_of_a_link_that_cannot_hold_is_not_dropped_in_silence(
    monkeypatch: pytest.MonkeyPatch, tiny_store: Path
) -> None:
    tile = some_tile(open_cohort(str(tiny_store)))
    test = page(monkeypatch, tiny_store, q=f"tile:{tile}", f_organ="nosuch", f_age="5", ft_tissue=["-5", "7"])
    assert not test.exception and not test.error
    for words in ("organ = nosuch", "age = 5", "tissue = -5, 7"):
        assert f"The filter {words} of this link is not used" in texts(test)
    test = page(monkeypatch, tiny_store, q=f"tile:{tile}", f_organ="colon")
    assert "is not used" not in texts(test)


def test_a_condition_cannot_undo_the_controls(monkeypatch: pytest.MonkeyPatch, tiny_store: Path) -> None:
    cohort = open_cohort(str(tiny_store))
    tile = some_tile(cohort)
    test = page(monkeypatch, tiny_store, q=f"tile:{tile}", f_organ="colon", where="true) OR (true")
    assert not test.exception
    assert test.error and "most similar" not in texts(test)
    test = page(monkeypatch, tiny_store, q=f"tile:{tile}", f_organ="colon", where="tissue > 0 -- all of it")
    assert not test.exception and not test.error


def test_numbers_that_a_browser_cannot_hold_are_no_control(monkeypatch: pytest.MonkeyPatch, store_copy: Path) -> None:
    from indexer.store import open_store

    store = open_store(str(store_copy))
    store.lance.add_columns("columns", "slides", [pa.field("accession", pa.int64())])
    ids = store.slides()["slide_id"].to_pylist()
    numbers = [{"slide_id": name, "accession": 20240000000000001 + n} for n, name in enumerate(ids)]
    store.lance.update_columns("slides", "slides", "slide_id", pa.Table.from_pylist(numbers))
    test = page(monkeypatch, store_copy, q=f"tile:{some_tile(open_cohort(str(store_copy)))}", where="accession > 5")
    assert not test.exception and not test.error
    assert "20 most similar" in texts(test)


def test_examples_from_every_slide_still_find_something(monkeypatch: pytest.MonkeyPatch, tiny_store: Path) -> None:
    cohort = open_cohort(str(tiny_store))
    keys = cohort.sql("SELECT min(tile_key) AS key FROM tiles GROUP BY slide_id")["key"].to_pylist()
    test = page(monkeypatch, tiny_store, like=keys)
    assert not test.exception and not test.error
    assert "20 most similar" in texts(test)


def test_a_selection_that_cannot_be_resolved_searches_nothing(
    monkeypatch: pytest.MonkeyPatch, tiny_store: Path
) -> None:
    cohort = open_cohort(str(tiny_store))
    table = cohort.vector_tables[0]
    lasso = f"umap_{table.encoder_id}_{table.grid_id}_0_0_1_0_1_1"
    test = page(monkeypatch, tiny_store, q=f"tile:{some_tile(cohort)}", lasso=lasso)
    assert not test.exception
    assert "not computed" in texts(test) and "most similar" not in texts(test)
    assert [button for button in test.button if button.label == "Search everywhere"]


def test_a_store_that_is_gone_is_one_sentence_on_every_page(monkeypatch: pytest.MonkeyPatch, store_copy: Path) -> None:
    test = page(monkeypatch, store_copy)
    assert not test.exception and not test.error
    shutil.move(store_copy, store_copy.with_name("moved"))
    test.run()
    assert not test.exception
    assert "cannot be read any more" in texts(test)


def test_a_filter_without_hits_says_so(monkeypatch: pytest.MonkeyPatch, tiny_store: Path) -> None:
    tile = some_tile(open_cohort(str(tiny_store)))
    test = page(monkeypatch, tiny_store, q=f"tile:{tile}", where="tissue > 5")
    assert not test.exception and not test.error
    assert "No tile matches" in texts(test)


def test_an_absent_store_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    test = page(monkeypatch, tmp_path / "absent")
    assert not test.exception
    assert "absent" in " ".join(element.value for element in test.error)


def test_a_store_without_vectors_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tiny_store: Path, tmp_path: Path
) -> None:
    from indexer.store import create_store

    create_store(str(tmp_path / "empty"))
    test = page(monkeypatch, tmp_path / "empty")
    assert not test.exception and not test.error
    assert "histoseek index" in texts(test)
    cohort = lone_page(monkeypatch, tmp_path / "empty", "cohort_page")
    assert not cohort.exception and not cohort.error


def test_a_slide_whose_file_is_gone_is_still_searched(monkeypatch: pytest.MonkeyPatch, store_copy: Path) -> None:
    from indexer.store import open_store

    store = open_store(str(store_copy))
    rows = store.slides().select(["slide_id", "path"]).to_pylist()
    moved = pa.Table.from_pylist(
        [{"slide_id": row["slide_id"], "path": f"/gone/{row['slide_id']}.tif"} for row in rows]
    )
    store.lance.update_columns("slides", "slides", "slide_id", moved)
    tile = some_tile(open_cohort(str(store_copy)))
    test = page(monkeypatch, store_copy, q=f"tile:{tile}", layer="Similarity")
    assert not test.exception and not test.error
    assert "20 most similar" in texts(test)
    test = page(monkeypatch, store_copy, q=f"tile:{tile}", layer="Tissue")
    assert not test.exception
    assert "gone" in texts(test) and "20 most similar" in texts(test)


def test_two_grids_are_a_choice_on_the_page(
    monkeypatch: pytest.MonkeyPatch, store_copy: Path, tiny_encoder: Path
) -> None:
    from encoder.progress import SilentReporter
    from encoder.registry import load_encoder
    from indexer.index_request import IndexRequest
    from indexer.pipeline import index

    index(str(store_copy), IndexRequest([load_encoder(str(tiny_encoder))], mpp=2.0, tile_px=32), SilentReporter())
    slide_id, _, place = some_tile(open_cohort(str(store_copy)), last=True).rpartition("@")
    test = page(monkeypatch, store_copy, q=f"at:{slide_id}@{place}")
    assert not test.exception and not test.error
    assert sorted(test.selectbox(key="vectors").options) == ["tiny, 1 µm/px", "tiny, 2 µm/px"]
    test.selectbox(key="vectors").select_index(1).run()
    assert not test.exception and not test.error
    assert "most similar" in texts(test)
    beside = lone_page(monkeypatch, store_copy, "encoders_page", q=f"at:{slide_id}@{place}")
    assert not beside.exception and not beside.error
    assert "tiny, 1 µm/px" in texts(beside) and "tiny, 2 µm/px" in texts(beside)


def test_the_cohort_page_tells_what_failed_and_answers_sql(monkeypatch: pytest.MonkeyPatch, tiny_store: Path) -> None:
    test = lone_page(monkeypatch, tiny_store, "cohort_page")
    assert not test.exception and not test.error
    shown = {metric.label: metric.value for metric in test.metric}
    assert shown["Indexed"] == "3" and int(shown["Tiles"].replace(",", "")) > 100
    assert "Nothing is in quarantine" in texts(test)
    test.text_area(key="sql_text").set_value("SELECT count(*) AS n FROM slides")
    test.button[-1].click().run()
    assert not test.exception and not test.error
    assert test.dataframe[-1].value["n"].tolist() == [3]
    test.text_area(key="sql_text").set_value("DROP TABLE slides")
    test.button[-1].click().run()
    assert not test.exception
    assert test.error and "SELECT" in test.error[0].value
