"""Tiles per second of our reader against plain OpenSlide, with the same threads on the same cores."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
from harness import Row, add_options, cores, describe_machine, interleave, median_ratio, report
from numpy.typing import NDArray
from PIL import Image

from encoder.errors import HistoSeekError
from indexer.grid import TilePlan, make_grid, plan_tiles
from indexer.manifest import SlideEntry, discover
from indexer.pixels import TileReader
from indexer.slide import Slide, open_slide
from indexer.synthetic import draw_slide

BUDGET = 2.0
CHUNK = 16


class Contest:
    """One slide and one grid, read in both ways from freshly opened files in every round."""

    def __init__(self, slide: Slide, plan: TilePlan, most: int, pool: ThreadPoolExecutor) -> None:
        self._slide, self._plan, self._pool = slide, plan, pool
        self.indices = np.arange(min(len(plan), most))
        self.renew()

    def renew(self) -> None:
        """Open the file anew, so that no round gains from an earlier one's caches."""
        self.reader = TileReader(self._slide, self._plan)
        self._handles = [openslide.OpenSlide(self._slide.info.path) for _ in range(cores())]

    def ours(self) -> None:
        """Read all tiles with TileReader."""
        self._everyone(lambda _, part: self.reader.read_batch(part))

    def plain(self) -> None:
        """Read all tiles as a short script would: read_region, convert to RGB, resize where needed."""
        self._everyone(self._plain_batch)

    def _everyone(self, read: Callable[[int, NDArray[np.int64]], object]) -> None:
        parts = [self.indices[i : i + CHUNK] for i in range(0, len(self.indices), CHUNK)]

        def run_lane(lane: int) -> None:
            for part in parts[lane :: cores()]:
                read(lane, part)

        list(self._pool.map(run_lane, range(cores())))

    def _plain_batch(self, lane: int, part: NDArray[np.int64]) -> NDArray[np.uint8]:
        plan, handle = self._plan, self._handles[lane]
        side = round(plan.extent_px0 / handle.level_downsamples[plan.level])
        tiles = []
        for i in part.tolist():
            place = int(plan.x0[i]), int(plan.y0[i])
            picture = handle.read_region(place, plan.level, (side, side)).convert("RGB")
            if side != plan.grid.tile_px:
                picture = picture.resize((plan.grid.tile_px, plan.grid.tile_px), Image.Resampling.BICUBIC)
            tiles.append(np.asarray(picture))
        return np.stack(tiles)


def measure(entry: SlideEntry, scale: float, tile_px: int, options: argparse.Namespace) -> Row:
    """Compare both readers on one slide at `scale` times its own mpp."""
    with open_slide(entry) as slide, ThreadPoolExecutor(cores()) as pool:
        plan = plan_tiles(slide, make_grid(slide.info.mpp * scale, tile_px), None)
        what = f"{entry.slide_id}: {tile_px} px at {slide.info.mpp * scale:.3g} um/px"
        if not len(plan):
            return Row(f"{what}: no tile holds tissue", 0.0, "x")
        contest = Contest(slide, plan, options.tiles, pool)
        seconds = interleave({"ours": contest.ours, "plain": contest.plain}, options.repeats, contest.renew)
        rate = {name: len(contest.indices) / statistics.median(values) for name, values in seconds.items()}
        fast = contest.reader.path == "vips"
        detail = (
            f"{contest.reader.path} {rate['ours']:.0f}, plain {rate['plain']:.0f} tiles/s of {len(contest.indices)}"
        )
        why = "" if fast else f"; {contest.reader.why}"
        return Row(
            what, median_ratio(seconds["plain"], seconds["ours"]), "x", BUDGET if fast else None, detail=detail + why
        )


def main() -> None:
    """Measure a synthetic JPEG TIFF, and the slides of a folder where one is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--slides", type=Path, help="folder of slides; its manifest.csv is used if there")
    parser.add_argument("--side", type=int, default=6144, help="of the synthetic slide, in pixels")
    parser.add_argument("--tiles", type=int, default=400, help="most tiles read per slide and round")
    options = parser.parse_args()
    machine = describe_machine()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "synthetic.tif"
        draw_slide(path, 1, options.side, options.side)
        for scale, tile_px in ((1.0, 256), (2.0, 224), (1.3, 224)):
            rows.append(measure(SlideEntry("synthetic", path), scale, tile_px, options))
    if options.slides is not None:
        manifest = options.slides / "manifest.csv"
        for entry in discover([options.slides], manifest if manifest.exists() else None):
            try:
                rows.append(measure(entry, 1.0, 256, options))
            except HistoSeekError as error:
                rows.append(Row(f"{entry.slide_id}: not read", 0.0, "x", detail=str(error)))
    report("reading", rows, options.out, machine, threads=cores())


if __name__ == "__main__":
    main()
