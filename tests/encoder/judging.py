"""What the learning tests judge encoders by, on labelled tiles of slides that nothing was trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from encoder.candidate import candidate_encoder, trained_spec
from encoder.config import TrainConfig
from encoder.embed import TileEncoder
from encoder.methods.catalogue import build_method
from encoder.neighbours import auc, balanced_accuracy, codes, exact_topk, knn_vote, unit
from indexer.synthetic_tiles import SyntheticTiles


def embedded(encoder: TileEncoder, tiles: SyntheticTiles) -> torch.Tensor:
    """Unit vectors of all tiles."""
    return unit(torch.from_numpy(encoder.embed(tiles.images(np.arange(len(tiles))))))


def class_accuracy(vectors: torch.Tensor, tiles: SyntheticTiles) -> float:
    """Balanced accuracy of the 20 nearest tiles of other slides."""
    slides, truth = codes(tiles.slide_ids), codes(tiles.labels)
    distances, near = exact_topk(vectors, vectors, 20, slides, slides)
    predicted, _ = knn_vote(distances, truth[near], int(truth.max()) + 1)
    return balanced_accuracy(truth, predicted)


def neighbour_auc(vectors: torch.Tensor, tiles: SyntheticTiles, distance_tiles: float = 3.0) -> float:
    """How well the cosine of two tiles of one slide tells that they lie closer than some tile sides."""
    slides = codes(tiles.slide_ids)
    same = (slides[:, None] == slides[None, :]).triu(1)
    places = torch.from_numpy(tiles.positions_px0 / tiles.extents_px0[:, None])
    near = torch.cdist(places, places) < distance_tiles
    return auc((vectors @ vectors.T)[same], near[same])


def untrained_encoders(config: TrainConfig, seen: SyntheticTiles) -> Sequence[TileEncoder]:
    """The network that a run begins with: as it is, and with statistics fitted to tiles, which often helps it."""
    torch.manual_seed(config.seed)
    kept = build_method(config, seen).kept()
    plain = TileEncoder(kept.module, trained_spec(config, kept), "cpu")
    sample = seen.images(np.arange(0, len(seen), 4))
    return plain, candidate_encoder(config, kept, sample, torch.device("cpu"))
