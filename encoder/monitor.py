"""Watches an encoder while it is trained: without labels for choosing it, with labels for information."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encoder.augment import AugmentConfig, draw_parameters, make_views
from encoder.config import MonitorConfig
from encoder.embed import TileEncoder
from encoder.loader import GoodTiles
from encoder.neighbours import balanced_accuracy, codes, effective_rank, exact_topk, knn_vote, unit
from encoder.tiles import TileSource

_NEIGHBOURS = 10
_CHUNK = 256
# Found on recorded runs: from 3 on the choice no longer followed the agreement past the best accuracy.
_SHARE_POWER = 4
# The monitor's own, so that runs whose methods augment differently can be compared.
_VIEWS = AugmentConfig(min_area=0.5, max_area=0.9)


class Monitor:
    """Looks at a fixed sample of a source with fixed views, the same at every look and in every resumed run.

    Args:
        source: the tiles that are trained on; broken ones are replaced.
        config: sizes.
        seed: of the sample and its views.

    Attributes:
        sample: the plain tiles uint8 [M, tile_px, tile_px, 3], also used to fit normalisation statistics.
    """

    def __init__(self, source: TileSource, config: MonitorConfig, seed: int) -> None:
        rng = np.random.default_rng([seed, 1])
        count = min(config.tiles, len(source))
        chosen = np.sort(rng.choice(len(source), count, replace=False))
        read, self.sample = GoodTiles(source).read(chosen)
        self._slides = None if source.slide_ids is None else [source.slide_ids[int(i)] for i in read]
        generator = torch.Generator().manual_seed(seed)
        self._views = [self._make_views(generator) for _ in range(2)]

    def look(self, encoder: TileEncoder) -> dict[str, float]:
        """Measure an encoder without labels.

        Returns:
            `effective_rank` of the sample's vectors; `self_found`, the share of tiles whose other view is
            nearest among the other views of all; `neighbour_agreement`, the share of a tile's ten nearest
            that stay so under other views; `slide_share`, the share of the vectors' variance that lies between
            slides, where there are several; and `score`, which chooses the checkpoint. It is the agreement,
            times the logarithm of the rank, since vectors that collapse onto a few directions also agree well,
            times (1 - slide share)^4: a network that is trained for too long learns to tell slides by their
            stain, and finds less on others while its views agree ever better.
        """
        vectors = torch.from_numpy(encoder.embed(self.sample))
        first, second = (unit(torch.from_numpy(encoder.embed(views))) for views in self._views)
        _, nearest = exact_topk(first, second, 1)
        found = (nearest[:, 0] == torch.arange(len(first))).float().mean()
        agreement = neighbour_overlap(first, second, min(_NEIGHBOURS, len(first) - 1))
        rank = effective_rank(vectors)
        metrics = {"effective_rank": rank, "self_found": float(found), "neighbour_agreement": agreement}
        share = None if self._slides is None else slide_share(vectors, self._slides)
        if share is not None:
            metrics["slide_share"] = share
        return metrics | {"score": agreement * math.log(rank) * (1 - (share or 0.0)) ** _SHARE_POWER}

    def _make_views(self, generator: torch.Generator) -> NDArray[np.uint8]:
        parameters = draw_parameters(_VIEWS, len(self.sample), generator)
        views = np.empty_like(self.sample)
        for start in range(0, len(views), _CHUNK):
            rows = slice(start, start + _CHUNK)
            pixels = make_views(torch.from_numpy(self.sample[rows]), parameters.rows(rows), self.sample.shape[1])
            views[rows] = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return views


class LabelledProbe:
    """kNN accuracy on labelled tiles; for the metrics only, nothing is chosen by it.

    Where a `split` column marks rows `train` and `test`, the former are the reference and the latter the
    queries. Otherwise every tile is a query against the tiles of other groups, else of other slides, else
    against all others.

    Args:
        source: labelled tiles; those with a blank label are left out.
        config: sizes.
        seed: of the sample.
    """

    def __init__(self, source: TileSource, config: MonitorConfig, seed: int) -> None:
        labels = source.labels or []
        known = np.flatnonzero([bool(label) for label in labels])
        count = min(config.labelled_tiles, len(known))
        chosen = np.sort(np.random.default_rng([seed, 2]).choice(known, count, replace=False))
        self._tiles = GoodTiles(source)
        self._chosen, pixels = self._tiles.read(chosen.astype(np.int64))
        # What stands in for a broken tile may be one without a label.
        labelled = np.array([bool(labels[i]) for i in self._chosen], dtype=bool)
        self._chosen, self._pixels = self._chosen[labelled], pixels[labelled]
        self._k = config.k
        names = sorted({labels[i] for i in self._chosen})
        self._classes = len(names)
        self._truth = torch.tensor([names.index(labels[i]) for i in self._chosen], dtype=torch.int64)
        grouping = source.groups or source.slide_ids or [""] * len(source)
        self._groups = codes([grouping[i] for i in self._chosen])
        splits = [source.splits[i] if source.splits else "" for i in self._chosen]
        self._reference = torch.tensor([split == "train" for split in splits], dtype=torch.bool)
        self._queries = torch.tensor([split == "test" for split in splits], dtype=torch.bool)
        if not (self._reference.any() and self._queries.any()):
            self._reference = self._queries = torch.ones(len(splits), dtype=torch.bool)

    @property
    def usable(self) -> bool:
        """Whether there are at least two classes to tell apart."""
        return self._classes > 1

    def measure(self, encoder: TileEncoder) -> dict[str, float]:
        """Balanced accuracy of the weighted vote of the k nearest tiles."""
        vectors = unit(torch.from_numpy(encoder.embed(self._pixels)))
        distances, rows = exact_topk(
            vectors[self._queries],
            vectors[self._reference],
            self._k,
            self._groups[self._queries],
            self._groups[self._reference],
        )
        votes = torch.where(rows >= 0, self._truth[self._reference][rows.clamp(min=0)], -1)
        predicted, _ = knn_vote(distances, votes, self._classes)
        return {"knn_balanced_accuracy": balanced_accuracy(self._truth[self._queries], predicted, self._classes)}


def slide_share(vectors: Tensor, slides: Sequence[str]) -> float | None:
    """Share of the variance of directions that lies between slides, 0..1, free of the bias of small slides.

    Args:
        vectors: rows [N, D]; scaled to unit length.
        slides: slide of each; a blank one is unknown and left out.

    Returns:
        1 - mean square within slides / mean square overall; None with fewer than two slides, or without a
        slide of several rows.
    """
    known = torch.tensor([bool(slide) for slide in slides], device=vectors.device)
    group = codes([slide for slide in slides if slide]).to(vectors.device)
    rows = unit(vectors)[known].double()
    count, groups = len(rows), int(group.max()) + 1 if len(group) else 0
    if groups < 2 or count <= groups:
        return None
    sizes = torch.bincount(group).double()
    means = torch.zeros(groups, rows.shape[1], dtype=rows.dtype, device=rows.device).index_add_(0, group, rows)
    within = (rows - (means / sizes[:, None])[group]).square().sum() / (count - groups)
    overall = (rows - rows.mean(dim=0)).square().sum() / (count - 1)
    if overall <= 0:
        return None
    return float((1 - within / overall).clamp(0, 1))


def neighbour_overlap(first: Tensor, second: Tensor, k: int) -> float:
    """Mean share of the k nearest rows that two sets of vectors of the same things have in common.

    Args:
        first, second: unit rows [N, D].
        k: neighbours, the row itself not counted.
    """
    own = torch.arange(len(first), device=first.device)
    _, near_first = exact_topk(first, first, k, own, own)
    _, near_second = exact_topk(second, second, k, own, own)
    shared = (near_first[:, :, None] == near_second[:, None, :]).any(dim=2)
    return float(shared.float().mean())
