"""TileEncoder: a network and its spec, turning uint8 tiles into vectors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from encoder.channel_scale import ChannelScale
from encoder.contract import EncoderSpec, NonFiniteVectorsError, Precision
from encoder.device import arithmetic, autocast, choose_device
from encoder.errors import EncoderError
from encoder.resize import resize_tiles
from encoder.stain.fits import Outcome
from encoder.stain.normaliser import normaliser_of, tally

# The chunk is part of what decides a vector's last bits on the CPU, so it depends on nothing else.
_CHUNK = {"cpu": 64}
_CHUNK_ACCELERATOR = 512


class TileEncoder:
    """An encoder ready to embed; vectors are as the network gives them, not of unit length.

    On the CPU the same batch gives the same bits. Where `spec.precision` is bf16 and the device has no
    native bfloat16, the network runs in float32, which agrees to about three decimals of the cosine.

    Args:
        module: maps normalised [N, 3, tile_px, tile_px] to [N, dim]; moved to the device and set to eval.
        spec: its spec.
        device: where to compute; None takes CUDA where present, else the CPU.
        record: how it was made (`config`, `provenance`, `metrics`), carried along with its files.

    Attributes:
        stain_outcomes: how many tiles were normalised and how many left as they were, where the spec normalises.
    """

    def __init__(
        self,
        module: nn.Module,
        spec: EncoderSpec,
        device: str | None = None,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        self.spec = spec
        self.record = dict(record or {})
        self.stain_outcomes: Counter[Outcome] = Counter()
        self._normaliser = normaliser_of(spec.stain_normalisation)
        self.device = choose_device(device)
        self._channels_last = spec.precision == "bf16" and self.device.type in ("cpu", "cuda")
        module = module.to(self.device).eval().requires_grad_(False)
        if self._channels_last:
            module = module.to(memory_format=torch.channels_last)
        self.module = module
        # Repeated along a row of pixels: a broadcast over three channels alone would run ten times slower.
        scale = 1 / (255 * torch.tensor(spec.std))
        shift = -torch.tensor(spec.mean) / torch.tensor(spec.std)
        self._scale = scale.repeat(spec.tile_px).to(self.device)
        self._shift = shift.repeat(spec.tile_px).to(self.device)

    @property
    def arithmetic(self) -> Precision:
        """What the network really computes in on this device."""
        return arithmetic(self.spec.precision, self.device)

    def embed(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed tiles uint8 [N, H, W, 3] into finite float32 [N, dim].

        Tiles of another side than `spec.tile_px` are resized, antialiased. Rows that are not finite are
        computed once more in float32.

        Raises:
            EncoderError: the tiles are no uint8 [N, H, W, 3].
            NonFiniteVectorsError: some vectors are still not finite; `rows` tells which.
        """
        if tiles.dtype != np.uint8 or tiles.ndim != 4 or tiles.shape[3] != 3:
            raise EncoderError(
                f"Tiles must be uint8 [N, H, W, 3], not {tiles.dtype} {list(tiles.shape)}.",
                fix="Convert them to 8-bit RGB.",
            )
        vectors = np.empty((len(tiles), self.spec.dim), dtype=np.float32)
        step = _CHUNK.get(self.device.type, _CHUNK_ACCELERATOR)
        for start in range(0, len(tiles), step):
            vectors[start : start + step], outcomes = self._embed_chunk(
                tiles[start : start + step], self.spec.precision
            )
            if outcomes is not None:
                self.stain_outcomes += tally(outcomes)
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        for start in range(0, len(bad), step):
            rows = bad[start : start + step]
            vectors[rows], _ = self._embed_chunk(tiles[rows], "fp32")
        bad = bad[~np.isfinite(vectors[bad]).all(axis=1)]
        if len(bad):
            raise NonFiniteVectorsError(self.spec.name, [int(row) for row in bad], len(tiles))
        return vectors

    def prepared(self, tiles: NDArray[np.uint8]) -> Iterator[Tensor]:
        """Chunks of tiles [N, H, W, 3] as the network takes them: resized, normalised, on the device."""
        step = _CHUNK.get(self.device.type, _CHUNK_ACCELERATOR)
        for start in range(0, len(tiles), step):
            yield self._prepare(tiles[start : start + step])[0]

    def prepare_field(self, picture: NDArray[np.uint8]) -> Tensor:
        """A picture uint8 [H, W, 3] of any size at the network's scale, normalised as one: [1, 3, H, W]."""
        planes = torch.from_numpy(np.array(picture)).to(self.device).permute(2, 0, 1)[None].float().div_(255)
        if self._normaliser is not None:
            planes, _ = self._normaliser(planes)
        return ChannelScale(self.spec.mean, self.spec.std)(planes)

    @torch.inference_mode()
    def _embed_chunk(self, tiles: NDArray[np.uint8], precision: Precision) -> tuple[NDArray[np.float32], Tensor | None]:
        planes, outcomes = self._prepare(tiles)
        with autocast(precision, self.device):
            vectors = self.module(planes)
        return vectors.float().cpu().numpy(), outcomes

    def _prepare(self, tiles: NDArray[np.uint8]) -> tuple[Tensor, Tensor | None]:
        batch = torch.from_numpy(np.ascontiguousarray(tiles)).to(self.device)
        side = self.spec.tile_px
        pixels, outcomes = resize_tiles(batch, side), None
        if self._normaliser is not None:
            pixels, outcomes = self._normaliser.on_tiles(pixels)
        rows = pixels.reshape(len(tiles), side, 3 * side)
        normalised = torch.addcmul(self._shift, rows.float(), self._scale)
        planes = normalised.view(len(tiles), side, side, 3).permute(0, 3, 1, 2)
        return planes if self._channels_last else planes.contiguous(), outcomes
