"""The guide for Python: its blocks run in their order, and do what it says."""

from __future__ import annotations

import csv
import gc
import pickle
import re
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from encoder.errors import QueryError
from encoder.progress import SilentReporter
from encoder.registry import load_encoder
from encoder.tiles import TileFolder
from indexer.index_request import IndexRequest
from indexer.manifest import discover
from indexer.pipeline import index
from indexer.store import open_store
from indexer.synthetic import draw_slide
from query import open_cohort
from query.cards import CardLine

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "python.md"
PATIENTS = ["p0", "p0", "p1", "p2", "p3", "p4"]
ORGANS = ["colon", "colon", "colon", "lung", "lung", "breast"]


def blocks() -> list[str]:
    """Python blocks of the guide, each behind as many empty lines as put it at its line of the file."""
    text = GUIDE.read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return ["\n" * text[: match.start(1)].count("\n") + match.group(1) for match in found]


@dataclass(frozen=True)
class Ran:
    """What the guide's blocks left: their folder, their names, and what they printed."""

    folder: Path
    names: dict[str, Any]
    printed: str

    def __getitem__(self, name: str) -> Any:
        return self.names[name]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """The guide, run in a folder with the store and the picture that it names; the tests run there too."""
    folder = tmp_path_factory.mktemp("guide")
    slides = folder / "slides"
    slides.mkdir()
    for number, organ in enumerate(ORGANS):
        draw_slide(slides / f"S{number}.tif", seed=number, width0=768, height0=768, organ=organ)
    rows = [
        (f"S{n}.tif", f"S{n}", patient, organ) for n, (patient, organ) in enumerate(zip(PATIENTS, ORGANS, strict=True))
    ]
    with (slides / "manifest.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "slide_id", "patient_id", "organ"), *rows])
    store = folder / "stores" / "cohort"
    request = IndexRequest([load_encoder("colour")], discover([slides], slides / "manifest.csv"), mpp=1.0, tile_px=64)
    assert index(str(store), request, SilentReporter()).exit_code == 0
    tile = open_cohort(str(store)).vectors(where="slide_id = 'S4'").table.slice(3, 1).to_pylist()[0]
    corner = (tile["x0"], tile["y0"], tile["x0"] + tile["extent_px0"], tile["y0"] + tile["extent_px0"])
    Image.open(slides / "S4.tif").crop(corner).convert("RGB").save(folder / "picture.png")
    names: dict[str, Any] = {"__name__": "guide", "picture_key": f"S4@{tile['x0']},{tile['y0']}"}
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.chdir(folder)
        names["print"] = lambda *values: said.extend(map(str, values))
        for block in blocks():
            exec(compile(block, str(GUIDE), "exec"), names)
        yield Ran(folder, names, "\n".join(said))


def keys(results: Any) -> list[str]:
    """Keys of the hits."""
    return results.table["tile_key"].to_pylist()


def test_every_kind_of_query_finds_what_the_guide_says(ran: Ran) -> None:
    tile, point, region, picture, vector, several = ran["batch"]
    assert len(ran["slide_ids"]) == 6 and keys(tile)[0] == ran["tile"] == keys(point)[0]
    assert tile.table["distance"][0].as_py() == 0
    assert keys(picture)[0] == keys(vector)[0] == ran["picture_key"]
    assert picture.table["distance"][0].as_py() < 1e-3 and picture.plan.query == "a picture of 128 x 128 px"
    assert not any("scale is unknown" in note for note in picture.plan.notes)
    assert "scale is unknown" in ran["cohort"].search(ran.folder / "picture.png", k=1).explain()
    (left, top), (right, bottom) = ran["region"].corners
    frame, half = ran["frame"], ran["side"] / 2
    inside = frame[(frame.x0 + half).between(left, right) & (frame.y0 + half).between(top, bottom)]
    own = [f"{row.slide_id}@{row.x0},{row.y0}" for row in inside.itertuples()]
    assert len(own) > 1 and not set(own) & set(keys(region))
    matrix, number = ran["matrix"].astype(np.float64), {key: row for row, key in enumerate(all_keys(ran))}
    nearest = (1 - matrix @ matrix[[number[key] for key in own]].T).min(axis=1)
    np.testing.assert_allclose(region.table["distance"], nearest[[number[key] for key in keys(region)]], atol=1e-6)
    unlike = f"{frame.slide_id.iloc[-1]}@{frame.x0.iloc[-1]},{frame.y0.iloc[-1]}"
    assert not {ran["tile"], unlike} & set(keys(several))
    wanted = (matrix[number[ran["tile"]]] + ran["vector"]) / 2 - matrix[number[unlike]] / 2
    cosines = matrix[[number[key] for key in keys(several)]] @ wanted / np.linalg.norm(wanted)
    np.testing.assert_allclose(several.table["distance"], 1 - cosines, atol=1e-6)


def all_keys(ran: Ran) -> list[str]:
    """Key of each row of the matrix."""
    return [f"{row['slide_id']}@{row['x0']},{row['y0']}" for row in ran["vectors"].table.to_pylist()]


def test_a_batch_finds_what_single_searches_find(ran: Ran) -> None:
    asked = [ran[name] for name in ("tile", "point", "region", "picture", "vector", "several")]
    for query, together in zip(asked, ran["batch"], strict=True):
        alone = ran["cohort"].search(query, k=10)
        assert keys(alone) == keys(together) and len(alone) == 10
        np.testing.assert_allclose(alone.table["distance"], together.table["distance"], atol=1e-12)
    for query, threaded in zip(asked, ran["answers"], strict=False):
        assert keys(threaded) == keys(ran["cohort"].search(query, k=5))


def test_filters_and_limits_hold(ran: Ran) -> None:
    frame = ran["others"].to_pandas()
    assert len(frame) and set(frame.organ) <= {"colon", "lung"} and (frame.tissue > 0.6).all()
    patient = ran["cohort"].slides.to_pandas().set_index("slide_id").patient_id[ran["slide_id"]]
    assert patient == "p0" and patient not in set(frame.patient_id)
    assert frame.groupby("slide_id").size().max() <= 3 and frame.groupby("patient_id").size().max() <= 4
    for _, own in frame.groupby("slide_id"):
        places = own[["x0", "y0"]].to_numpy()
        for row in range(len(places)):
            for other in places[:row]:
                assert np.abs(places[row] - other).max() >= 2 * ran["side"]
    assert len(frame) == 10 or "asked tiles exist" in ran["others"].explain()
    with pytest.raises(QueryError, match="has no slide"):
        ran["cohort"].search(ran["picture"], exclude=("slide",))


def test_percentiles_count_random_pairs(ran: Ran) -> None:
    matrix, patients = ran["matrix"].astype(np.float64), np.array(ran["vectors"].table["patient_id"].to_pylist())
    above = np.triu_indices(len(matrix), k=1)
    pairs = (1 - matrix @ matrix.T)[above][patients[above[0]] != patients[above[1]]]
    frame = ran["others"].to_pandas()
    truth = [100 * np.mean(pairs <= distance) for distance in frame.distance]
    np.testing.assert_allclose(frame.percentile, truth, rtol=0.15, atol=200 / pairs.size)
    assert ran["others"].nothing_close == (frame.percentile[0] > 1)
    assert ("Nothing in the store looks like the query." in ran.printed) == ran["others"].nothing_close
    region = ran["batch"][2].to_pandas()
    number = {key: row for row, key in enumerate(all_keys(ran))}
    own = [key for key in number if key not in keys(ran["cohort"].search(ran["region"], k=1000, apart=0))]
    nearest = (1 - matrix @ matrix[[number[key] for key in own]].T).min(axis=1)
    truth = [100 * np.mean(nearest <= distance) for distance in region.distance]
    np.testing.assert_allclose(region.percentile, truth, rtol=0.15, atol=200 / len(nearest))


def test_engines_agree_and_say_who_they_are(ran: Ran) -> None:
    assert "resident exact" in ran.printed and "streaming exact" in ran.printed
    assert ran["exact"].plan.recall == 1 and ran["card"] is None
    assert keys(ran["lean"].search(ran["tile"], k=10)) == keys(ran["exact"]) == keys(ran["hits"])
    with pytest.raises(QueryError, match="memory"):
        ran["lean"].vectors()
    assert "fetched and compared" in ran["lean"].search(ran["tile"], k=10).plan.why


def test_the_block_of_the_card_shows_its_lines() -> None:
    class Carded:
        lines = (CardLine(1.0, "an index", 0.9, 0.8, 0.7, 2.5), CardLine(0.1, "a scan", 1.0, 1.0, 1.0, 1.5))

        def card(self) -> Carded:
            return self

    shown: list[pd.DataFrame] = []
    (block,) = [block for block in blocks() if "cohort.card()" in block]
    exec(block, {"cohort": Carded(), "pd": pd, "print": shown.append})
    assert shown[0]["recall_at_10"].tolist() == [0.8, 1.0] and shown[0]["share"].tolist() == [1.0, 0.1]


def test_vectors_leave_without_a_copy(ran: Ran) -> None:
    matrix, tensor = ran["matrix"], ran["tensor"]
    address = matrix.ctypes.data
    assert np.shares_memory(matrix, ran["cohort"].vectors(columns=()).matrix) and not matrix.flags.writeable
    assert not np.shares_memory(matrix, ran["colon"].matrix)
    np.testing.assert_allclose(np.linalg.norm(matrix, axis=1), 1, atol=1e-6)
    assert tensor.data_ptr() == address and tensor.shape == matrix.shape and tensor.dtype == torch.float32
    assert ran["own"].data_ptr() != address and torch.equal(ran["own"], tensor)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.from_dlpack(matrix)
    (chunk,) = ran["table"]["vector"].chunks
    assert pa.types.is_fixed_size_list(chunk.type) and chunk.flatten().buffers()[1].address == address
    assert len(ran["table"]) == len(matrix)


def test_from_numpy_warns_as_the_guide_says() -> None:
    """PyTorch warns once in a process, so that it is asked for again here."""
    matrix = np.ones((2, 2), np.float32)
    matrix.flags.writeable = False
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with pytest.warns(UserWarning, match="not writable"):
            tensor = torch.from_numpy(matrix)
        assert tensor.data_ptr() == matrix.ctypes.data
    finally:
        torch.set_warn_always(before)


def test_metadata_belongs_to_the_rows(ran: Ran) -> None:
    slides = ran["cohort"].slides.to_pandas().set_index("slide_id")
    rows = ran["vectors"].table.to_pandas()
    assert ran["labels"].tolist() == slides.organ[rows.slide_id].tolist()
    np.testing.assert_array_equal(ran["matrix"][ran["labels"] == "colon"], ran["colon"].matrix)
    stored = open_store(str(ran.folder / "stores" / "cohort"))
    (name,) = [name for name in stored.tables() if name.startswith("vectors_")]
    table = stored.read(name, ["tile_id", "vector"])
    truth = dict(zip(table["tile_id"].to_pylist(), table["vector"].to_pylist(), strict=True))
    np.testing.assert_array_equal(ran["matrix"], np.array([truth[tile] for tile in rows.tile_id], np.float32))
    np.testing.assert_array_equal(ran["hit_vectors"], [truth[tile] for tile in ran["hits"].tile_ids.tolist()])
    for slide_id, mean in zip(ran["slide_ids"], ran["means"], strict=True):
        np.testing.assert_allclose(mean, ran["matrix"][rows.slide_id == slide_id].mean(axis=0), atol=1e-5)


def test_results_sql_classes_and_exports(ran: Ran) -> None:
    rows = ran["vectors"].table.to_pandas()
    assert ran["per_organ"].set_index("organ").tiles.to_dict() == rows.groupby("organ").size().to_dict()
    assert len(ran["thumbnails"]) == 10 and all(picture is not None for picture in ran["thumbnails"])
    assert Image.open(ran.folder / "hits.png").width > 0
    assert ran["hits"].to_json_rows()[0]["tile_key"] == ran["tile"]
    assert len(ran["result"].table) == len(rows) and len(ran["result"].slides) == 6
    assert {"truth", "predicted", "p_colon", "p_lung"} <= set(ran["result"].table.column_names)
    exported = pq.read_table(ran.folder / "colon.parquet")
    vectors = exported["vector"].combine_chunks().flatten().to_numpy().reshape(len(exported), -1)
    np.testing.assert_array_equal(vectors, ran["colon"].matrix)
    assert len(TileFolder(ran.folder / "colon-tiles")) == len(exported) == (rows.organ == "colon").sum()


def test_what_is_held_outlives_changes_and_the_cohort(ran: Ran, tmp_path: Path) -> None:
    path = shutil.copytree(ran.folder / "stores" / "cohort", tmp_path / "store")
    cohort = open_cohort(str(path))
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(cohort)
    held = cohort.vectors().matrix
    before = held.copy()
    writer = open_store(str(path))
    writer.lance.delete("gone", "done", "slide_no = 0")
    assert len(cohort.vectors().matrix) < len(held)
    assert "S0" not in cohort.searchable_slides()
    tensor = torch.from_dlpack(held)
    del cohort, held
    gc.collect()
    np.testing.assert_array_equal(tensor.numpy(), before)
