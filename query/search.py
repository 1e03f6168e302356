"""Answering searches in one room: filter, plan, rank, choose for variety, say how far away it all is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encoder.errors import QueryError
from query.background import NOTHING_CLOSE_PERCENT, Background, patient_codes
from query.engines.contract import Ask, Hits, Ranking
from query.engines.nearest_of import NearestOf
from query.exclusion import check_exclude, excluded_slides
from query.plan import Plan, Stopwatch, shortage_note, unknown_notes
from query.planner import Choice, choose_engine
from query.resolve import Probe
from query.room import Room
from query.rows import TileRows
from query.variety import Apart, Limit, choose_hits, needs_apart


@dataclass(frozen=True, eq=False)
class Request:
    """What is asked of every search of a batch.

    Attributes:
        k: tiles wanted.
        where: expression over slide and tile columns; NULL does not match.
        exclude: of `slide`, `patient`, `site`.
        per_slide, per_patient: most hits of one; None for no limit.
        apart: least distance of two hits of one slide, in sides of a tile; 0 for none.
        target_recall: share of the true answer that will do; 1 for exact answers.
        among: ids of the only tiles that may be hits, int64 [m]; None for all.
    """

    k: int
    where: str | None = None
    exclude: tuple[str, ...] = ()
    per_slide: int | None = None
    per_patient: int | None = None
    apart: float = 1.0
    target_recall: float = 0.95
    among: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        for name in ("k", "per_slide", "per_patient"):
            value = getattr(self, name)
            if not (_is_count(value) or (value is None and name != "k")):
                raise QueryError(f"{name} is a whole number of at least 1, got {value!r}.", f"Give {name}=20 or so.")
        if not _is_number(self.apart) or not 0 <= self.apart <= 1000:
            raise QueryError(f"apart is a number of tile sides from 0 to 1000, got {self.apart!r}.", "1 is usual.")
        if not _is_number(self.target_recall) or not 0 < self.target_recall <= 1:
            raise QueryError(
                f"target_recall lies above 0 and is at most 1, got {self.target_recall!r}.", "1 asks for exact answers."
            )
        if self.among is not None and not _is_ids(self.among):
            raise QueryError(
                f"among is an array of tile ids, int64 [m], got {_kind(self.among)}.",
                "Give Results.tile_ids, or numpy.asarray(ids, numpy.int64).",
            )
        object.__setattr__(self, "exclude", check_exclude(self.exclude))


@dataclass(frozen=True)
class Answer:
    """What one search found.

    Attributes:
        hits: rows and distances.
        percentiles: of the distances among random pairs, float64 [hits].
        nothing_close: whether even the nearest is no nearer than tiles of different patients often are.
        plan: how it was answered.
    """

    hits: Hits
    percentiles: NDArray[np.float64]
    nothing_close: bool
    plan: Plan


def answer(
    room: Room, probes: Sequence[Probe], request: Request, stride_share: float, clock: Stopwatch
) -> list[Answer]:
    """Answer queries that ask for the same, in as few passes as there can be.

    Args:
        room: the vectors.
        probes: the queries.
        request: the same for all.
        stride_share: stride of the grid over the side of its tiles.
        clock: of the steps so far.

    Raises:
        QueryError: the filter is wrong, or something is to be excluded that a query has not.
    """
    rows = room.rows
    banned = [_banned(request.exclude, probe, room.slides) for probe in probes]
    allowed = None if request.where is None else room.filter.mask(request.where)
    given: tuple[str, ...] = ()
    if request.among is not None:
        chosen, given = _chosen(request.among, rows)
        allowed = chosen if allowed is None else allowed & chosen
    if len(probes) == 1 and banned[0].any():
        kept = ~banned[0][rows.slide_code]
        allowed = kept if allowed is None else allowed & kept
    matching = len(rows) if allowed is None else int(np.count_nonzero(allowed))
    # What each query of a batch excludes is struck out later, and a filter all the same.
    least = matching - (max(int(np.count_nonzero(out[rows.slide_code])) for out in banned) if len(probes) > 1 else 0)
    clock.lap("filter")
    choice = choose_engine(room.situation(request.k, max(0, least), request.target_recall))
    engine = room.engine(choice)
    clock.lap("plan")
    asks = [Ask(vector, probe.row) for probe in probes for vector in probe.vectors]
    rankings = iter(engine.rank(asks, None if matching == len(rows) else allowed))
    limits = _limits(request, room)
    apart = None
    if needs_apart(request.apart, stride_share):
        apart = Apart(rows.slide_code, rows.x0, rows.y0, rows.extent_px0, request.apart)
    answers = []
    for probe, out in zip(probes, banned, strict=True):
        parts: list[Ranking] = [next(rankings) for _ in probe.vectors]
        ranking = parts[0] if len(parts) == 1 else NearestOf(parts, rows.places)
        left = matching
        if len(probes) > 1 and out.any():
            mask = out[rows.slide_code]
            left -= int(np.count_nonzero(mask if allowed is None else mask & allowed))
            ranking.strike(mask)
        if probe.own_rows.size:
            own = probe.own_rows
            left -= int(np.count_nonzero(~out[rows.slide_code[own]] & (True if allowed is None else allowed[own])))
            ranking.strike(own)
        hits = choose_hits(ranking, request.k, limits, apart)
        clock.lap("scan")
        answers.append(
            _finish(
                room, probe, request, choice, engine.name, hits, ranking, left, out, apart is not None, given, clock
            )
        )
    room.timed(choice, clock.seconds.get("scan", 0.0), matching < len(rows), len(asks))
    return answers


def _finish(
    room: Room,
    probe: Probe,
    request: Request,
    choice: Choice,
    engine: str,
    hits: Hits,
    ranking: Ranking,
    matching: int,
    banned: NDArray[np.bool_],
    apart: bool,
    given: tuple[str, ...],
    clock: Stopwatch,
) -> Answer:
    background = background_for(probe, room)
    percentiles = background.percentile(hits.distances)
    others = percentiles if probe.row is None else percentiles[hits.rows != probe.row]
    nothing_close = bool(others.size) and bool(others[0] > NOTHING_CLOSE_PERCENT)
    notes = [*probe.notes, *given, *unknown_notes(request.exclude, probe.slide_codes, room.slides)]
    if nothing_close:
        notes.insert(0, f"Nothing close: {others[0]:.1f} % of {background.describe()} are as near as the nearest hit.")
    if room.rows.disagreeing:
        notes.append(f"{len(room.rows.disagreeing)} slides are being indexed again and were left out.")
    if len(hits) < request.k:
        kept_back = [
            f"{name} {value}"
            for name, value in (("per_slide", request.per_slide), ("per_patient", request.per_patient))
            if value is not None
        ]
        kept_back += [f"apart {request.apart:g}"] if apart else []
        others_total = len(room.rows) - probe.own_rows.size
        notes.append(shortage_note(len(hits), request.k, matching, others_total, kept_back))
    if choice.engine == "index" and room.index_note is not None:
        notes.append(room.index_note)
    plan = Plan(
        engine=engine,
        why=choice.why,
        exact=choice.exact,
        recall=choice.recall,
        encoder_id=room.rows.encoder_id,
        grid_id=room.rows.grid_id,
        query=probe.words,
        rows_total=len(room.rows),
        rows_matching=matching,
        rows_scanned=ranking.scanned,
        excluded=int(np.count_nonzero(banned)),
        where=request.where,
        percentiles=background.describe(),
        notes=tuple(notes),
        seconds=clock.seconds,
    )
    clock.lap("percentiles")
    return Answer(hits, percentiles, nothing_close, plan)


def background_for(probe: Probe, room: Room) -> Background:
    """What the percentiles of a query's distances are among: random pairs, or random tiles and the query."""
    if probe.is_mean or len(probe.vectors) > 1:
        return room.background_of(np.stack([Ask(vector).unit for vector in probe.vectors]))
    return room.background


def _banned(exclude: Sequence[str], probe: Probe, slides: pa.Table) -> NDArray[np.bool_]:
    """True for the slides that share with one of the query's slides what is excluded, bool [slides]."""
    if not probe.slide_codes:
        return excluded_slides(exclude, None, slides)
    out = np.zeros(slides.num_rows, np.bool_)
    for code in probe.slide_codes if exclude else ():
        out |= excluded_slides(exclude, code, slides)
    return out


def _chosen(among: NDArray[np.int64], rows: TileRows) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """True for the rows with one of the ids, bool [N], and what to say of the ids."""
    ids = np.sort(among)  # in order they are found five times faster
    found = rows.row_of(ids)
    known = found >= 0
    mask = np.zeros(len(rows), np.bool_)
    mask[found[known]] = True
    if not among.size:
        return mask, ("No tile was given to search among.",)
    if known.all():
        return mask, ()
    unknown, given = np.unique(ids[~known]).size, np.unique(ids).size
    return mask, (f"{unknown:,} of the {given:,} tiles to search among cannot be searched and were ignored.",)


def _limits(request: Request, room: Room) -> list[Limit]:
    limits = []
    if request.per_slide is not None:
        limits.append(Limit(room.rows.slide_code.astype(np.int64), request.per_slide))
    if request.per_patient is not None:
        limits.append(Limit(patient_codes(room.slides)[room.rows.slide_code], request.per_patient))
    return limits


def _is_count(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)


def _is_ids(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.int64 and value.ndim == 1


def _kind(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.floating | np.integer) and not isinstance(value, bool) and value == value
