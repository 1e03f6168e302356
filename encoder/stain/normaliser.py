"""Stain normalisation as a part of an encoder: one target, the same for every tile that it will ever embed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from encoder.errors import ConfigError, EncoderError
from encoder.stain.fits import Fit, Outcome
from encoder.stain.normalise import STAIN_METHODS, StainMethod, fit_stains, normalise

FROM_TILES = "tiles"
# Of all tiles that a target is fitted to together.
_SAMPLE_PX = 1 << 16


class StainNormalisation(BaseModel):
    """What a training config says of stain normalisation; it becomes a part of the encoder.

    Attributes:
        method: `reinhard`, `macenko` or `vahadane`.
        target: `tiles`, which fits the target to a sample of the training tiles together, or the path of a picture.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: StainMethod = "macenko"
    target: str = FROM_TILES


@dataclass(frozen=True)
class StainNormaliser:
    """Gives tiles the stains of a target.

    Attributes:
        method: how stains are told apart.
        target: figures of one tile, on the CPU.
    """

    method: StainMethod
    target: Fit

    def __call__(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise RGB in 0..1, float32, or uint8 [N, 3, H, W]; also gives each tile's `Outcome`, int64 [N]."""
        target = Fit(self.target.values.to(rgb.device), self.target.outcome.to(rgb.device))
        return normalise(self.method, rgb, target)

    def on_tiles(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """The same for tiles as they are read, uint8 [N, H, W, 3]."""
        planes, outcome = self(tiles.permute(0, 3, 1, 2))
        return planes.permute(0, 2, 3, 1).contiguous(), outcome

    @property
    def spec(self) -> dict[str, Any]:
        """What `normaliser_of` makes it from again."""
        return {"method": self.method, "target": self.target.values[0].tolist()}


def normaliser_of(spec: Mapping[str, Any] | None) -> StainNormaliser | None:
    """The normaliser that an encoder's spec names; None for none.

    Raises:
        EncoderError: the method is unknown here, or the target is not one of it.
    """
    if spec is None:
        return None
    method = spec.get("method")
    values = torch.tensor(spec.get("target", []), dtype=torch.float32)
    if method not in STAIN_METHODS or values.shape != ((2, 3) if method == "reinhard" else (3, 3)):
        raise EncoderError(
            f"The encoder's stain normalisation {dict(spec)} is unknown here.",
            fix="It was written by another version of HistoSeek; use that version.",
        )
    return StainNormaliser(method, Fit(values[None], torch.zeros(1, dtype=torch.int64)))


def fit_normaliser(config: StainNormalisation, sample: NDArray[np.uint8]) -> StainNormaliser:
    """Fit the target that a config names.

    Args:
        config: method and target.
        sample: training tiles uint8 [M, H, W, 3]; used where the target is `tiles`.

    Raises:
        ConfigError: the target cannot be read or fitted.
    """
    if config.target == FROM_TILES:
        # As one tall picture, so that every tile counts by the tissue that it shows.
        picture = sample.reshape(1, -1, *sample.shape[2:])
    else:
        picture = _read_picture(Path(config.target))[None]
    planes = torch.from_numpy(picture).permute(0, 3, 1, 2)
    fit = fit_stains(config.method, planes, _SAMPLE_PX)
    if not fit.usable.item():
        reason = Outcome(int(fit.outcome[0])).reason
        raise ConfigError(
            f"stain_normalisation.target {config.target!r} cannot be fitted: {reason}.",
            fix="Give the picture of a well stained field, or leave stain_normalisation out.",
        )
    return StainNormaliser(config.method, fit)


def tally(outcomes: Tensor) -> Counter[Outcome]:
    """How many tiles had which outcome."""
    return Counter(Outcome(code) for code in outcomes.tolist())


def _read_picture(path: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as picture:
            return np.array(picture.convert("RGB"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"stain_normalisation.target {path} cannot be read: {error}", fix="Give `tiles` or the path of a picture."
        ) from error
