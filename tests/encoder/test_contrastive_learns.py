"""The small contrastive config against its own untrained network, on slides that it never saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from encoder.candidate import candidate_encoder, trained_spec
from encoder.config import load_config
from encoder.embed import TileEncoder
from encoder.methods.catalogue import build_method
from encoder.neighbours import balanced_accuracy, codes, exact_topk, knn_vote, unit
from encoder.progress import SilentReporter
from encoder.registry import load_encoder
from encoder.train import train
from indexer.synthetic import class_at, draw_cohort

EXTENT_PX0 = 256
STEP_PX0 = 128
STEPS = 400  # near the length that the config has


class SlideTiles:
    """Tiles of 128 px at 1 um/px of synthetic slides, with the class that fills most of each."""

    tile_px = 128
    labels = groups = splits = positions_px0 = extents_px0 = None

    def __init__(self, pixels: NDArray[np.uint8], classes: list[str], slides: list[str]) -> None:
        self._pixels = pixels
        self.classes, self.slide_ids = classes, slides
        self.names = [f"{slide}/{i}" for i, slide in enumerate(slides)]

    def __len__(self) -> int:
        return len(self.names)

    def images(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self._pixels[indices]

    def rows(self, slides: set[str]) -> SlideTiles:
        """The tiles of some slides."""
        mine = [i for i, slide in enumerate(self.slide_ids) if slide in slides]
        return SlideTiles(self._pixels[mine], [self.classes[i] for i in mine], [self.slide_ids[i] for i in mine])

    def accuracy(self, encoder: TileEncoder) -> float:
        """Balanced accuracy of the 20 nearest tiles of other slides."""
        vectors = unit(torch.from_numpy(encoder.embed(self._pixels)))
        slides, truth = codes(self.slide_ids), codes(self.classes)
        distances, near = exact_topk(vectors, vectors, 20, slides, slides)
        predicted, _ = knn_vote(distances, truth[near], int(truth.max()) + 1)
        return balanced_accuracy(truth, predicted)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[SlideTiles, SlideTiles]:
    """Tiles of six slides to train on, and of six others to judge by."""
    truths = draw_cohort(tmp_path_factory.mktemp("cohort"), 12, seed=3, width0=2048, height0=2048)
    pixels, classes, slides = [], [], []
    for truth in truths:
        with openslide.OpenSlide(str(truth.path)) as slide:
            whole = slide.read_region((0, 0), 0, slide.dimensions).convert("RGB")
        for y in range(0, truth.height0 - EXTENT_PX0 + 1, STEP_PX0):
            for x in range(0, truth.width0 - EXTENT_PX0 + 1, STEP_PX0):
                name = class_at(truth, x, y, EXTENT_PX0)
                if name is not None:
                    tile = whole.crop((x, y, x + EXTENT_PX0, y + EXTENT_PX0))
                    pixels.append(np.asarray(tile.resize((128, 128), Image.Resampling.BOX)))
                    classes.append(name)
                    slides.append(truth.slide_id)
    everything = SlideTiles(np.stack(pixels), classes, slides)
    ids = [truth.slide_id for truth in truths]
    return everything.rows(set(ids[:6])), everything.rows(set(ids[6:]))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_small_run_beats_its_untrained_network_on_unseen_slides(
    cohort: tuple[SlideTiles, SlideTiles], tmp_path: Path
) -> None:
    seen, unseen = cohort
    path = Path(__file__).parents[2] / "configs" / "encoder" / "contrastive-small.yaml"
    figures = []
    for seed in range(3):
        config = load_config(path, [f"seed={seed}", f"max_steps={STEPS}", "max_seconds=null", "tensorboard=false"])
        train(config, seen, tmp_path / str(seed), SilentReporter(), "cpu")
        trained = unseen.accuracy(load_encoder(str(tmp_path / str(seed)), "cpu"))
        torch.manual_seed(seed)
        kept = build_method(config, seen).kept()
        # The untrained network as it is, and with statistics fitted to the tiles, which helps it a little.
        plain = TileEncoder(kept.module, trained_spec(config, kept), "cpu")
        fitted = candidate_encoder(config, kept, seen.images(np.arange(0, len(seen), 4)), torch.device("cpu"))
        untrained = max(unseen.accuracy(plain), unseen.accuracy(fitted))
        figures.append((trained, untrained))
    trained, untrained = zip(*figures, strict=True)
    # No seed may undo the gain, not even the worst of one side against the best of the other.
    assert min(trained) > max(untrained), figures
    assert float(np.mean(trained)) > float(np.mean(untrained)) + 0.04, figures
