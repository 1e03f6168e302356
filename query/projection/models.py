"""What places tiles on a map: a plane through the vectors, or the neighbourhoods that UMAP laid out.

A model is fitted once. Every tile is placed by it, those that it was fitted on and those that come later, so a
tile's place does not depend on when it came.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from encoder.errors import QueryError
from query.projection.directions import Directions, principal_directions

Method = Literal["pca", "umap"]
METHODS: tuple[Method, ...] = ("pca", "umap")

SAMPLE_ROWS = 20_000
SEED = 7
# Fewer different tiles have no neighbourhoods that UMAP could lay out.
LEAST_ROWS = 16
_DIMENSIONS = 50
_NEIGHBOURS = 15
# Of the ten true neighbours of tiles that were held back, the share among their fifty nearest on the map, beside what
# UMAP's own sample reaches (0.89 on 1,190 tiles of five slides; 0.67 on 3,000 small clusters): by one neighbour 0.81
# and 0.65, by five weighted so 0.85 and 0.61, by eight 0.86 and 0.59; with inverse squares eight give 0.86 and 0.45.
_PLACED_BY, _SHARPNESS = 5, 4
_MIN_DIST = 0.1
# Squared distance of tiles that are alike but for rounding.
_TOUCHING = 1e-12


# Seconds per pair of a tile and a sample tile, per tile laid out, and until UMAP is loaded and compiled.
_NEIGHBOUR_SECONDS, _LAYOUT_SECONDS, _UMAP_START_SECONDS = 9e-9, 0.8e-3, 20.0
_COVARIANCE_SECONDS, _READ_BYTES_PER_SECOND = 3.5e-11, 0.8e9


class Model(Protocol):
    """Places vectors on a map."""

    def place(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Coordinates of unit vectors [m, dim], finite float32 [m, 2]."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What it needs to place vectors, by name."""

    def settings(self) -> dict[str, Any]:
        """How it was made, as JSON can hold it."""


@dataclass(frozen=True)
class PlaneModel:
    """The plane in which the vectors spread most (PCA)."""

    directions: Directions

    @classmethod
    def fit(cls, blocks: Iterable[NDArray[np.float32]], dim: int) -> PlaneModel:
        """Fit to all vectors, some [m, dim] at a time."""
        return cls(principal_directions(blocks, dim, 2))

    def place(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Model.place`."""
        return self.directions.of(vectors)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See `Model.arrays`."""
        return _direction_arrays(self.directions)

    def settings(self) -> dict[str, Any]:
        """See `Model.settings`."""
        shares = self.directions.shares.tolist()
        return {"fit": "principal directions of all vectors", "rows": self.directions.rows, "shares": shares}


@dataclass(frozen=True)
class NeighbourModel:
    """Sample tiles as UMAP laid them out; every tile lies at the weighted mean of the nearest of them.

    The vectors of the sample are reduced to at most 50 principal directions, where their Euclidean neighbours,
    found exactly, are what UMAP gets, and the first two directions are where it starts. A tile lies at the mean
    of the five sample tiles nearest to it there, weighted by the inverse eighth power of their distances. So the
    places of tiles outside the sample are approximate: they lie inside what UMAP laid out, never outside it.

    Attributes:
        directions: of the sample.
        points: the sample there, float32 [S, C].
        places: where UMAP put them, float32 [S, 2].
        device: where neighbours are looked for; None for the GPU where there is one.
    """

    directions: Directions
    points: NDArray[np.float32]
    places: NDArray[np.float32]
    device: str | None = None

    @classmethod
    def fit(cls, sample: NDArray[np.float32], device: str | None = None) -> NeighbourModel:
        """Fit to sample vectors [S, dim].

        Raises:
            QueryError: fewer than 16 of them differ.
        """
        wanted = min(_DIMENSIONS, sample.shape[1], max(1, len(sample) - 1))
        directions = principal_directions([sample], sample.shape[1], wanted)
        # Tiles that are alike are one point of the map: many of them would be each other's only neighbours.
        different = np.unique(sample, axis=0)
        if len(different) < LEAST_ROWS:
            raise QueryError(
                f"UMAP needs at least {LEAST_ROWS} different tiles, these vectors have {len(different)}.",
                "Use the method pca.",
            )
        points = directions.of(different)
        return cls(directions, points, _laid_out(points, device), device)

    def place(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Model.place`."""
        nearest, squared = _nearest(self.directions.of(vectors), self.points, _PLACED_BY, self.device)
        weights = ((squared[:, :1] + _TOUCHING) / (squared + _TOUCHING)) ** _SHARPNESS
        weights /= weights.sum(axis=1, keepdims=True)
        return np.einsum("mk,mkc->mc", weights, self.places[nearest].astype(np.float64)).astype(np.float32)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See `Model.arrays`."""
        return _direction_arrays(self.directions) | {"points": self.points, "places": self.places}

    def settings(self) -> dict[str, Any]:
        """See `Model.settings`."""
        from importlib.metadata import version

        return {
            "fit": f"UMAP of a sample on {self.points.shape[1]} principal directions",
            "rows": self.directions.rows,
            "different": len(self.points),
            "neighbours": min(_NEIGHBOURS, len(self.points) - 1),
            "min_dist": _MIN_DIST,
            "seed": SEED,
            "placed_by": min(_PLACED_BY, len(self.points)),
            "weights": f"distance to the power of -{2 * _SHARPNESS}",
            "umap-learn": version("umap-learn"),
        }


def estimated_seconds(method: str, rows: int, dim: int, fitted: bool = False) -> float:
    """What a map takes on two cores without a GPU, about; measured, and other work on the machine adds to it.

    Args:
        method: of the map.
        rows: tiles to fit and place, or only to place where the map is fitted already.
        dim: of the vectors.
        fitted: whether it is.
    """
    reading = rows * 4 * dim / _READ_BYTES_PER_SECOND
    if method == "pca":
        return reading + (0 if fitted else reading + rows * dim**2 * _COVARIANCE_SECONDS)
    sample = SAMPLE_ROWS if fitted else min(rows, SAMPLE_ROWS)
    placing = reading + rows * sample * _NEIGHBOUR_SECONDS
    return placing + (0 if fitted else _UMAP_START_SECONDS + sample * (_LAYOUT_SECONDS + sample * _NEIGHBOUR_SECONDS))


def model_of(method: Method, arrays: Mapping[str, NDArray[Any]], device: str | None) -> Model:
    """The model that `arrays` described.

    Raises:
        KeyError: they describe none.
    """
    directions = Directions(arrays["mean"], arrays["components"], arrays["shares"], int(arrays["rows"]))
    if method == "pca":
        return PlaneModel(directions)
    return NeighbourModel(directions, arrays["points"], arrays["places"], device)


def _direction_arrays(directions: Directions) -> dict[str, NDArray[Any]]:
    return {
        "mean": directions.mean,
        "components": directions.components,
        "shares": directions.shares,
        "rows": np.asarray(directions.rows),
    }


def _laid_out(points: NDArray[np.float32], device: str | None) -> NDArray[np.float32]:
    """Places that UMAP gives to points [S, C], float32 [S, 2]."""
    neighbours = min(_NEIGHBOURS, len(points) - 1)
    nearest, squared = _nearest(points, points, neighbours, device)
    start = np.zeros((len(points), 2))
    start[:, : points.shape[1]] = points[:, :2]
    # UMAP divides by the range of each axis, which must not be zero.
    start += 1e-4 * start.std() * np.random.default_rng(SEED).standard_normal(start.shape)
    with warnings.catch_warnings():
        # It warns that other points could not be placed by it, of its seed, and of libraries that it can do without.
        warnings.simplefilter("ignore")
        from umap import UMAP

        layout = UMAP(
            n_neighbors=neighbours,
            min_dist=_MIN_DIST,
            init=start.astype(np.float32),
            precomputed_knn=(nearest, np.sqrt(squared).astype(np.float32), None),
            random_state=SEED,
            n_jobs=1,
        )
        places = np.asarray(layout.fit_transform(points), np.float32)
    if not np.isfinite(places).all():
        raise QueryError("UMAP found no finite places for these vectors.", "Use the method pca.")
    return places


def _nearest(
    points: NDArray[np.float32], base: NDArray[np.float32], count: int, device: str | None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The rows of `base` [S, C] nearest to points [m, C] and their squared distances, int64 and float64 [m, count]."""
    import torch

    from encoder.device import choose_device
    from encoder.neighbours import exact_topk

    where = choose_device(device)
    # |p - b|² = |p|² - 2 (p·b - |b|²/2): with one more number a row, inner products rank by Euclidean distance.
    lifted = np.column_stack([base, -0.5 * np.einsum("sc,sc->s", base, base)])
    asked = np.column_stack([points, np.ones(len(points), np.float32)])
    _, found = exact_topk(torch.from_numpy(asked).to(where), torch.from_numpy(lifted).to(where), min(count, len(base)))
    nearest = found.cpu().numpy()
    away = points[:, None, :].astype(np.float64) - base[nearest]
    return nearest, np.einsum("mkc,mkc->mk", away, away)
