"""What a distance means: its place among the distances of random pairs of tiles of different patients."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from query.exclusion import is_unknown

Basis = Literal["patients", "slides", "tiles", "query"]

_SAMPLE_ROWS = 1024
# Of every hundred random pairs one is nearer: a nearest hit beyond that says nothing of likeness.
NOTHING_CLOSE_PERCENT = 1.0
_SEED = 0
# Quantiles are close together where hits lie: at the small distances.
_SHARES = np.concatenate([[0.0], np.logspace(-6, -2, 121), np.linspace(0.01, 1.0, 100)[1:]])


@dataclass(frozen=True)
class Background:
    """Distances of random pairs.

    Attributes:
        quantiles: of the cosine distances at `_SHARES`, float64 [220], ascending.
        pairs: that were measured; no share below one of them can be told.
        basis: what the two tiles of a pair do not share: their patient; their slide, where there is one
            patient; nothing but themselves, where there is one slide. Or each is a random tile and the query.
        sample: vectors of random tiles, float32 [S, dim]; empty where they were not kept.
    """

    quantiles: NDArray[np.float64]
    pairs: int
    basis: Basis
    sample: NDArray[np.float32]

    @cached_property
    def _steps(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Different quantiles, and the largest percentage that each stands for."""
        ascending, last = np.unique(self.quantiles[::-1], return_index=True)
        return ascending, 100 * _SHARES[::-1][last]

    def percentile(self, distances: NDArray[np.float64]) -> NDArray[np.float64]:
        """Percent of the pairs that are at most as distant, [m]; below what can be told it is 0."""
        if not self.pairs:
            return np.full(distances.shape, np.nan)
        ascending, percents = self._steps
        found = np.interp(distances, ascending, percents, left=0.0, right=100.0)
        found[found < 100 / self.pairs] = 0.0
        return found

    def of_query(self, units: NDArray[np.float64]) -> Background:
        """The same for a query of several tiles or of their mean: distances of random tiles to it.

        A mean lies nearer to every tile than a single tile does, and so does the nearest of several: pairs
        of tiles would flatter them.

        Args:
            units: directions [B, dim]; the nearest of them counts.
        """
        if not len(self.sample):
            return self
        distances = 1 - (self.sample.astype(np.float64) @ units.T).max(axis=1)
        return Background(_quantiles(distances), len(distances), "query", self.sample)

    def describe(self) -> str:
        """In words, what a percentile counts."""
        if self.basis == "query":
            return "random tiles and the query"
        apart = {"patients": "of different patients", "slides": "of different slides", "tiles": ""}[self.basis]
        return f"random pairs of tiles {apart}".rstrip()

    def to_json(self) -> str:
        """As text, without the sample."""
        values = {"quantiles": self.quantiles.tolist(), "pairs": self.pairs, "basis": self.basis}
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str, dim: int) -> Background:
        """What `to_json` wrote."""
        values = json.loads(text)
        empty = np.empty((0, dim), np.float32)
        return cls(np.asarray(values["quantiles"], np.float64), values["pairs"], values["basis"], empty)


def measure_background(
    slide_code: NDArray[np.int32],
    slides: pa.Table,
    take: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    dim: int,
) -> Background:
    """Measure distances of all pairs of a random sample that share no patient.

    Args:
        slide_code: of each row [N], its row in `slides`.
        slides: the cohort's slides.
        take: unit vectors of rows [m, dim].
        dim: length of a vector.
    """
    rng = np.random.default_rng(_SEED)
    count = slide_code.size
    rows = np.sort(rng.choice(count, min(count, _SAMPLE_ROWS), replace=False)) if count else np.empty(0, np.int64)
    vectors = take(rows) if rows.size else np.empty((0, dim), np.float32)
    codes = slide_code[rows]
    patients = patient_codes(slides)[codes]
    distances = np.clip(1 - vectors @ vectors.T, 0.0, 2.0)
    for basis, groups in (("patients", patients), ("slides", codes), ("tiles", np.arange(rows.size))):
        apart = np.triu(groups[:, None] != groups[None, :], k=1)  # each pair once
        if apart.any() or basis == "tiles":
            kept = distances[apart]
            return Background(_quantiles(kept), kept.size, basis, vectors)  # type: ignore[arg-type]
    raise AssertionError("tiles differ from each other")


def patient_codes(slides: pa.Table) -> NDArray[np.int64]:
    """Number of each slide's patient [slides]; a slide whose patient is unknown has one of its own."""
    known = slides["patient_id"].to_pylist()
    names = [f"+{who}" if not is_unknown(who) else f"-{row}" for row, who in enumerate(known)]
    return np.unique(np.asarray(names, dtype=np.str_), return_inverse=True)[1].astype(np.int64)


def _quantiles(distances: NDArray[np.floating]) -> NDArray[np.float64]:
    """Quantiles at `_SHARES`: one sort costs a tenth of NumPy's search for so many."""
    if not distances.size:
        return np.zeros(_SHARES.size)
    ordered = np.sort(distances)
    return np.interp(_SHARES * (ordered.size - 1), np.arange(ordered.size), ordered)
