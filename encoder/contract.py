"""What an encoder promises: its spec, and vectors from tiles."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from encoder.errors import EncoderError

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class EncoderSpec:
    """Everything that decides an encoder's vectors, besides the pixels.

    Attributes:
        name: readable name, such as `contrastive-small` or `random:resnet18@0`.
        method: how it was trained: a method's name, `timm`, or `random`.
        architecture: how to rebuild the network; `kind` names the builder, the rest are its arguments.
        dim: length of a vector.
        tile_px: side of the square tile that the network takes.
        mpp: micrometres per pixel of the tiles that it was made for; None where it was made for none.
        mean: per channel, subtracted after scaling to 0..1.
        std: per channel, divided by.
        precision: arithmetic of the network when embedding.
        pooling: how the feature map becomes a vector.
        stain_normalisation: `method` and fitted `target`, applied to each tile before the network; None for none.
        standardisation: applied to the vectors after it; None for none.
        weights_sha256: hash of the weights file.
    """

    name: str
    method: str
    architecture: dict[str, Any]
    dim: int
    tile_px: int
    mpp: float | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    precision: Precision = "fp32"
    pooling: str = "avg"
    stain_normalisation: dict[str, Any] | None = None
    standardisation: dict[str, Any] | None = None
    weights_sha256: str = field(default="")

    @property
    def encoder_id(self) -> str:
        """Slug of the name and 8 hex digits of the hash of weights and spec."""
        text = json.dumps({**asdict(self), "name": ""}, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return f"{slug(self.name, 23)}-{digest}"


class Encoder(Protocol):
    """Turns tiles into vectors."""

    @property
    def spec(self) -> EncoderSpec:
        """What decides the vectors."""

    def embed(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed uint8 tiles [N, H, W, 3] into finite float32 vectors [N, dim].

        H and W may differ from `spec.tile_px`; the tiles are then resized.

        Raises:
            EncoderError: the vectors are not finite.
        """


class NonFiniteVectorsError(EncoderError):
    """Some vectors are not finite, even in float32.

    Args:
        name: readable name of the encoder.
        rows: their rows in the batch.
        total: rows of the batch.
    """

    def __init__(self, name: str, rows: list[int], total: int) -> None:
        super().__init__(
            f"Encoder {name} gave vectors that are not finite for {len(rows)} of {total} tiles.",
            fix="Check its weights; the same tiles with another encoder tell whether they are at fault.",
        )
        self.rows = rows


def slug(text: str, length: int = 32) -> str:
    """Reduce a readable name to `[a-z0-9-]{1,length}`, fit for a table name."""
    cleaned = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:length].strip("-")
    return cleaned or "x"
