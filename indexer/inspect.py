"""A look at slides before any work: what each is, how it would be read, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from encoder.errors import HistoSeekError
from encoder.progress import Reporter, SilentReporter
from indexer.grid import Grid, make_grid, plan_tiles
from indexer.manifest import SlideEntry
from indexer.mpp import manifest_line
from indexer.pixels import TileReader
from indexer.slide import SlideInfo, open_slide


@dataclass(frozen=True)
class SlideReport:
    """What was found out about one slide; None where a problem stopped the look.

    Attributes:
        level_mpps: um per pixel of each level.
        reader: path that tiles are read on, and `reader_why` why it is not the fast one.
        tissue_share: share of the slide's bounds that the tiles' usable tissue covers.
        tiles: number of tiles on the grid `grid_id`, and `reasons` why the others are left out.
        problem: why the slide cannot be indexed, with what to do; empty where it can.
        manifest_line: line to add to the manifest where the scale is missing; empty elsewhere.
    """

    slide_id: str
    path: Path
    vendor: str | None = None
    width0: int | None = None
    height0: int | None = None
    mpp: float | None = None
    mpp_source: str | None = None
    objective: float | None = None
    level_mpps: tuple[float, ...] = ()
    reader: str | None = None
    reader_why: str = ""
    grid_id: str = ""
    tissue_share: float | None = None
    tiles: int | None = None
    reasons: dict[str, int] | None = None
    warnings: tuple[str, ...] = ()
    problem: str = ""
    manifest_line: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON takes it."""
        return {**asdict(self), "path": str(self.path)}


def inspect(
    entries: Sequence[SlideEntry],
    cohort_mpp: float | None = None,
    grid: Grid | None = None,
    reporter: Reporter | None = None,
) -> list[SlideReport]:
    """Look at each slide; one that cannot be used has its problem in its report, and the others go on.

    Args:
        cohort_mpp: um per pixel to assume where neither the manifest nor the file gives one.
        grid: to count tiles on; by default 224 pixels at 0.5 um per pixel.
    """
    grid = grid or make_grid(0.5, 224)
    reporter = reporter or SilentReporter()
    reporter.start("inspect", len(entries), "slides")
    reports = []
    for entry in entries:
        reports.append(_inspect_one(entry, cohort_mpp, grid))
        reporter.advance(1, entry.slide_id)
    reporter.finish()
    return reports


def _inspect_one(entry: SlideEntry, cohort_mpp: float | None, grid: Grid) -> SlideReport:
    known: dict[str, Any] = {"slide_id": entry.slide_id, "path": entry.path, "grid_id": grid.grid_id}
    try:
        with open_slide(entry, cohort_mpp) as slide:
            known |= _facts(slide.info)
            plan = plan_tiles(slide, grid, entry.mask)
            _, _, width0, height0 = slide.info.bounds_px0
            area = float(np.sum(plan.tissue)) * plan.geometry.stride_exact_px0**2
            known |= {
                "tissue_share": min(1.0, round(area / (width0 * height0), 4)),
                "tiles": len(plan),
                "reasons": plan.reasons,
                "warnings": plan.warnings,
            }
            reader = TileReader(slide, plan)
            known |= {"reader": reader.path, "reader_why": reader.why}
    except HistoSeekError as error:
        known["problem"] = str(error)
    except Exception as error:  # noqa: BLE001 - a damaged file may raise anything, and the others are still to be seen
        known["problem"] = f"{entry.path}: {type(error).__name__}: {error}"
    if known.get("mpp") is None and "MPP" in known.get("problem", ""):
        known["manifest_line"] = manifest_line(entry.slide_id)
    return SlideReport(**known)


def _facts(info: SlideInfo) -> dict[str, Any]:
    return {
        "vendor": info.vendor,
        "width0": info.width0,
        "height0": info.height0,
        "mpp": info.mpp,
        "mpp_source": info.mpp_source,
        "objective": info.objective,
        "level_mpps": tuple(round(info.mpp * step, 4) for step in info.level_downsamples),
        "warnings": info.warnings,
    }
