"""The demo's steps: slides, a small pretraining, the index, searches, a page."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from encoder.errors import HistoSeekError, UsageError
from encoder.progress import Reporter
from ui.demo.choice import typical_row
from ui.demo.earlier import start_afresh_for_other_slides
from ui.demo.slides import DemoSlides, choose_slides
from ui.shipped import config_path

if TYPE_CHECKING:
    from encoder.embed import TileEncoder
    from encoder.train import TrainResult
    from indexer.index_request import IndexReport
    from indexer.manifest import SlideEntry
    from query.cohort import Cohort
    from query.results import Results

DEMO_MPP = 1.0
MAX_TRAINING_TILES = 12_000
MAX_QUERIES = 4
HITS = 10


@dataclass(frozen=True)
class DemoOutcome:
    """What the demo left behind.

    Attributes:
        store: folder of the store.
        encoder: folder of the trained encoder.
        montages: a picture for each search.
        report: the page.
        smoke: True where the slides are too few to show more than that it runs.
        exit_code: as of `histoseek index`.
    """

    store: Path
    encoder: Path
    montages: tuple[Path, ...]
    report: Path
    smoke: bool
    exit_code: int

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, for JSON."""
        return {name: _plain(value) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class DemoRun:
    """All that the page tells about."""

    slides: DemoSlides
    training: TrainResult
    indexing: IndexReport
    cohort: Cohort
    searches: tuple[Results, ...]
    montages: tuple[Path, ...]
    store: Path
    smoke: bool


def run_demo(given: Path | None, out: Path, train_seconds: float, reporter: Reporter) -> DemoOutcome:
    """Run the main job on the given slides, or on a sample, and write the page.

    Args:
        given: folder of slides, or None for the sample.
        out: folder for the encoder, the store and the report.
        train_seconds: longest training time.
        reporter: is told of the progress.

    Raises:
        HistoSeekError: no slide of the folder could be used.
    """
    from indexer.index_request import IndexRequest
    from indexer.manifest import discover
    from indexer.pipeline import index
    from query import open_cohort
    from ui.demo.page import write_page

    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file.", "Give a folder with --out.")
    slides = choose_slides(given, out, reporter)
    reporter.note(f"demo on {slides.origin}")
    entries = discover([slides.folder], slides.manifest)
    start_afresh_for_other_slides(out, entries, train_seconds, reporter)
    training, encoder = _pretrain(entries, out / "encoder", train_seconds, reporter)
    store = out / "store"
    indexing = index(
        str(store), IndexRequest(entries=entries, encoders=[encoder], mpp=DEMO_MPP, command="demo"), reporter
    )
    cohort = open_cohort(str(store))
    searches = _searches(cohort, encoder.spec.encoder_id)
    if not searches:
        raise HistoSeekError(
            f"no tile of {slides.folder} could be indexed.", f"See why: histoseek status --store {store}"
        )
    montages = []
    for number, results in enumerate(searches, start=1):
        target = out / f"similar-{number}.png"
        results.montage(target)
        montages.append(target)
    smoke = len(searches) == 1
    if smoke:
        reporter.note("one slide with tissue: this is a smoke run, it shows that the parts work, not how well")
    run = DemoRun(slides, training, indexing, cohort, tuple(searches), tuple(montages), store, smoke)
    report = write_page(run, out / "report.html")
    return DemoOutcome(store, out / "encoder", tuple(montages), report, smoke, indexing.exit_code)


def _pretrain(
    entries: list[SlideEntry], out: Path, seconds: float, reporter: Reporter
) -> tuple[TrainResult, TileEncoder]:
    from encoder.config import load_config
    from encoder.registry import load_encoder
    from encoder.train import train
    from indexer.grid import make_grid
    from indexer.tile_source import SlideTileSource

    settings = [f"mpp={DEMO_MPP}", f"max_seconds={seconds:g}"]
    config = load_config(config_path("contrastive-small"), settings)
    source = SlideTileSource(
        entries,
        make_grid(DEMO_MPP, config.tile_px),
        reporter,
        max_tiles=MAX_TRAINING_TILES,
        seed=config.seed,
    )
    if len(source) < 2 * config.batch:  # one small slide: two steps must still see different tiles
        config = load_config(config_path("contrastive-small"), [*settings, f"batch={max(2, len(source) // 2)}"])
    result = train(config, source, out, reporter)
    if not result.finished:
        raise KeyboardInterrupt
    return result, load_encoder(str(out), None)


def _searches(cohort: Cohort, encoder_id: str) -> list[Results]:
    """Search from one tile of each of the largest slides, in other slides where there are any."""
    from indexer.grid import tile_key
    from query.queries import TileQuery

    vectors = cohort.vectors(encoder=encoder_id, columns=("slide_id", "x0", "y0", "tissue"))
    if len(vectors.matrix) == 0:
        return []
    slide_of = np.asarray(vectors.table.column("slide_id").to_pylist())
    places = vectors.table.select(["x0", "y0"]).to_pylist()
    tissue = vectors.table.column("tissue").to_numpy()
    names, counts = np.unique(slide_of, return_counts=True)
    largest = names[np.argsort(-counts, kind="stable")][:MAX_QUERIES]
    several = len(names) > 1
    found = []
    for name in largest:
        rows = np.flatnonzero(slide_of == name)
        row = rows[typical_row(vectors.matrix[rows], tissue[rows])]
        found.append(
            cohort.search(
                TileQuery(tile_key(name, **places[row])),
                k=HITS,
                exclude=("slide",) if several else (),
                encoder=encoder_id,
            )
        )
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
