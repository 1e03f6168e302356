"""The scale of a slide: which of its sources of micrometres per pixel is believed, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from encoder.errors import SlideError

MppSource = Literal["manifest", "reader", "tiff", "objective", "cohort"]
MIN_MPP, MAX_MPP = 0.05, 50.0
_DISAGREEMENT = 0.10
_ANISOTROPY = 0.02
# What a power means on nearly every scanner: a 10x objective gives about 1 um per pixel.
_MPP_TIMES_POWER = 10.0


@dataclass(frozen=True)
class MppSources:
    """What each source says about level 0, in um per pixel; None where it says nothing.

    Attributes:
        reader: mpp-x and mpp-y as the slide reader gives them.
        tiff: along x and y, from the TIFF (or PNG, JPEG) resolution.
        objective: power of the objective, such as 20.
        cohort: what the user assumes for slides that say nothing.
    """

    manifest: float | None = None
    reader: tuple[float, float] | None = None
    tiff: tuple[float, float] | None = None
    objective: float | None = None
    cohort: float | None = None


@dataclass(frozen=True)
class ResolvedMpp:
    """The believed scale, its source, and what the user should know about the other sources."""

    mpp: float
    source: MppSource
    warnings: tuple[str, ...]


def resolve_mpp(sources: MppSources, slide_id: str, path: Path) -> ResolvedMpp:
    """Choose the scale: manifest, reader, TIFF resolution, objective power, cohort default, in this order.

    A value outside 0.05..50 in a slide's own header (a screen's 96 dpi gives 264.58) counts as absent
    and is warned about; a manifest or cohort value outside is refused. A reader or TIFF that differs
    by more than 2 % between x and y is not used: tiles are square, so the user has to say the scale.

    Raises:
        SlideError: no source gives a possible scale; carries the line to add to the manifest.
    """
    for name, value in (("manifest", sources.manifest), ("cohort default", sources.cohort)):
        if value is not None and not _possible(value):
            raise SlideError(
                f"{path}: the mpp of the {name}, {value:g}, is impossible ({MIN_MPP} to {MAX_MPP:g} um/px).",
                manifest_fix(slide_id),
            )
    found: dict[MppSource, float] = {}
    problems = []
    if sources.manifest is not None:
        found["manifest"] = sources.manifest
    for source, pair in (("reader", sources.reader), ("tiff", sources.tiff)):
        if pair is None:
            continue
        problem = _problem(pair)
        if problem:
            problems.append(f"{_NAMES[source]} {problem}")
        else:
            found[source] = math.sqrt(pair[0] * pair[1])  # type: ignore[index]
    if sources.objective is not None and _possible(_MPP_TIMES_POWER / max(sources.objective, 1e-9)):
        found["objective"] = _MPP_TIMES_POWER / sources.objective
    disagreeing = dict(found)
    if sources.cohort is not None:
        found["cohort"] = sources.cohort
    if not found:
        raise SlideError(
            f"{path}: its scale is unknown"
            + (f" ({'; '.join(dict.fromkeys(problems))})." if problems else " (the file gives no mpp)."),
            manifest_fix(slide_id),
        )
    # The order of insertion is the order of precedence.
    source, mpp = next(iter(found.items()))
    warnings = [f"{problem}; it is not used" for problem in dict.fromkeys(problems)]
    for other, value in disagreeing.items():
        if abs(value / mpp - 1) > _DISAGREEMENT:
            warnings.append(f"{_NAMES[other]} says {value:.4g} um/px, {_NAMES[source]} {mpp:.4g}, which is used")
    return ResolvedMpp(mpp, source, tuple(warnings))


def manifest_line(slide_id: str) -> str:
    """The line that gives a slide its scale, under the header `slide_id,mpp`; MPP is for the user to fill in."""
    quoted = '"' + slide_id.replace('"', '""') + '"' if any(c in slide_id for c in ',;"\t') else slide_id
    return f"{quoted},MPP"


def manifest_fix(slide_id: str) -> str:
    """Say what gives a slide its scale."""
    return (
        f"Add the line `{manifest_line(slide_id)}` to a manifest with the header `slide_id,mpp`, where MPP is the "
        "slide's micrometres per pixel at full resolution (about 0.25 for a 40x scan, 0.5 for 20x)."
    )


_NAMES: dict[str, str] = {
    "manifest": "the manifest",
    "reader": "the slide's header",
    "tiff": "the file's resolution",
    "objective": "the objective power",
    "cohort": "the cohort default",
}


def _possible(mpp: float) -> bool:
    return math.isfinite(mpp) and MIN_MPP <= mpp <= MAX_MPP


def _problem(pair: tuple[float, float]) -> str | None:
    if not (_possible(pair[0]) and _possible(pair[1])):
        return f"says {pair[0]:.5g} um/px, which is impossible ({MIN_MPP} to {MAX_MPP:g})"
    if abs(pair[0] / pair[1] - 1) > _ANISOTROPY:
        return f"says {pair[0]:.4g} um/px along x and {pair[1]:.4g} along y, which differ"
    return None
