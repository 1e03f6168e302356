"""The small patch-contrast config finds nuclei in a clean stain, but not with maps torn from their pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from encoder.config import load_config
from encoder.instances import dice
from encoder.methods.patch_contrast import method as patch_contrast
from encoder.methods.patch_contrast.means import Held, held_by_windows
from encoder.methods.patch_contrast.options import WindowOptions
from encoder.methods.patch_contrast.windows import Windows
from encoder.nets.confidence import ConfidenceDescriptor
from encoder.progress import SilentReporter
from encoder.registry import load_encoder
from encoder.segment import segment_field
from encoder.train import train
from tests.encoder.nuclei_pictures import NucleiTiles, nuclei_picture

SEEDS, STEPS = 5, 40
# A threshold that is sought by haematoxylin would find nuclei in a map that has learned nothing.
LEARNED_ALONE = "method.field_threshold=false"
PX = 128


def shuffled(confidence: torch.Tensor, density: torch.Tensor, windows: Windows, options: WindowOptions) -> Held:
    """What windows hold under the maps of other pictures."""
    return held_by_windows(confidence.roll(1, 0), density, windows, options)


def dice_of(run: Path) -> float:
    """Mean Dice of the chosen map on pictures that the run never saw; 0 where no map was chosen."""
    encoder = load_encoder(str(run), "cpu")
    assert isinstance(encoder.module, ConfidenceDescriptor)
    if int(encoder.module.nucleus_channel) < 0:
        return 0.0
    pictures = [nuclei_picture(900 + i, side=192) for i in range(4)]
    return float(np.mean([dice(segment_field(encoder, picture, 0.5).mask, mask) for picture, mask in pictures]))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nuclei_are_found_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(__file__).parents[2] / "configs" / "encoder" / "patch_contrast-small.yaml"
    tiles = NucleiTiles(24, PX)
    found: dict[str, list[float]] = {"as it is": [], "shuffled": []}
    for name, figures in found.items():
        if name == "shuffled":
            monkeypatch.setattr(patch_contrast, "held_by_windows", shuffled)
        for seed in range(SEEDS):
            given = [f"seed={seed}", f"tile_px={PX}", f"max_steps={STEPS}", "max_seconds=null", LEARNED_ALONE]
            out = tmp_path / f"{name}-{seed}"
            train(load_config(path, given), tiles, out, SilentReporter(), "cpu")
            figures.append(round(dice_of(out), 3))
    print("Dice by seed:", found)
    assert sum(value >= 0.6 for value in found["as it is"]) >= 3, found
    assert sum(value >= 0.6 for value in found["shuffled"]) == 0, found
