"""Patch-based contrastive segmentation as the training loop sees it (Boserup and Selvan, NLDL 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from encoder.channel_scale import ChannelScale
from encoder.config import TrainConfig
from encoder.embed import TileEncoder
from encoder.errors import ConfigError
from encoder.methods.patch_contrast.choice import MapTally
from encoder.methods.patch_contrast.means import Held, held_by_windows, mean_contrast
from encoder.methods.patch_contrast.options import MeanContrastOptions, PatchContrastOptions, PixelContrastOptions
from encoder.methods.patch_contrast.pixels import pixel_contrast
from encoder.methods.patch_contrast.plateau import Plateau
from encoder.methods.patch_contrast.windows import Windows, cut_windows, draw_windows, grid_size
from encoder.methods.protocol import Batch, KeptNetwork
from encoder.nets.confidence import ConfidenceDescriptor
from encoder.processes import Processes
from encoder.stain.haematoxylin import haematoxylin
from encoder.stain.normalise import fit_stains
from encoder.tiles import TileSource

__all__ = ["PatchContrast", "PatchContrastOptions"]

# The source keeps pictures away from zero, where every map's product would be the same.
_SCALE, _FLOOR = 0.95, 0.05


class PatchContrast:
    """Trains confidence maps so that what they hold differs from what they leave; one map becomes nuclei.

    Args:
        config: the training config, whose method options are `PatchContrastOptions`.
        source: the tiles; only their side matters.

    Raises:
        ConfigError: crops are larger than tiles, or windows larger than crops.
    """

    def __init__(self, config: TrainConfig, source: TileSource) -> None:
        options = config.method
        if not isinstance(options, PatchContrastOptions):
            raise TypeError(f"options of {options.name} given to patch_contrast")
        self._options = options
        self._arguments: dict[str, Any] = {
            "classes": options.classes,
            "width": options.width,
            "field_threshold": options.field_threshold,
        }
        self._crop_px = options.crop_px or config.tile_px
        _check_sides(self._crop_px, config.tile_px, options.window.side_px)
        self._descriptor = ConfidenceDescriptor(**self._arguments)
        self._plateau = Plateau(options.stop)
        self.module = nn.ModuleDict({"descriptor": self._descriptor, "plateau": self._plateau})
        self._scale = ChannelScale(config.mean, config.std)
        self._settled = {
            "parameters": float(sum(p.numel() for p in self._descriptor.net.parameters())),
            "windows_per_crop": float(grid_size(self._crop_px, self._crop_px, options.window)),
        }

    def phases(self) -> Mapping[str, nn.Module]:
        """One phase: the network."""
        return {"network": self._descriptor.net}

    def settled(self) -> Mapping[str, float]:
        """Size of the network, and windows to draw from."""
        return self._settled

    def begin_epoch(self, epoch: int, processes: Processes) -> None:
        """Remember the gap of the pass that is done."""
        self._plateau.end_epoch(processes)

    def converged(self) -> bool:
        """Whether the gap has stopped growing."""
        return self._plateau.reached

    def losses(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        """Compare windows that are drawn by the certainty of their maps."""
        options = self._options
        rgb = self._crop(batch)
        device = rgb.device
        confidence = self._descriptor.net(self._scale(rgb))
        with torch.autocast(device.type, enabled=False):
            maps = confidence.float()
            windows = self._draw(batch, maps)
            contrast = options.contrast
            if isinstance(contrast, PixelContrastOptions):
                figures = self._pixel_loss(batch, maps, rgb, windows, contrast)
            else:
                figures = self._mean_loss(batch, maps, rgb, windows, contrast)
            self._plateau.note(figures["gap"], figures["counted"])
            covered = batch.processes.gather((maps.detach() > 0.5).float().mean(dim=(2, 3)))
        return {**figures, "coverage_least": covered.mean(dim=0).amin(), "coverage_most": covered.mean(dim=0).amax()}

    def after_step(self, progress: float) -> None:
        """Nothing is averaged."""

    def look(self, encoder: TileEncoder, tiles: NDArray[np.uint8]) -> dict[str, float]:
        """Choose the map of nuclei; the score is how well it separates haematoxylin."""
        network = encoder.module
        assert isinstance(network, ConfidenceDescriptor)
        tally = MapTally(self._options.classes)
        with torch.inference_mode():
            # A few at a time: maps of all pixels take much more memory than a vector.
            for start in range(0, len(tiles), 4):
                for planes in encoder.prepared(tiles[start : start + 4]):
                    tally.add(network.confidences(planes).float(), self._scale.undo(planes))
        choice = tally.choose(self._options.least_coverage, self._options.most_coverage)
        network.nucleus_channel.fill_(choice.channel)
        covered = float(choice.coverage[choice.channel]) if choice.channel >= 0 else 0.0
        return {
            "nucleus_channel": float(choice.channel),
            "nucleus_coverage": covered,
            "haematoxylin_separation": choice.separation,
            "score": choice.separation,
        }

    def kept(self) -> KeptNetwork:
        """The network, with a descriptor of what it finds as the embedding."""
        architecture = {"kind": "confidence", "arguments": self._arguments}
        return KeptNetwork(self._descriptor, architecture, "descriptor of a segmenter, made by hand")

    def _crop(self, batch: Batch) -> Tensor:
        """RGB in 0..1 of a random square of every tile, float32 [B, 3, crop, crop]."""
        tiles, side = batch.tiles, self._crop_px
        room = tiles.shape[1] - side + 1
        corners = torch.randint(room, (batch.total, 2), generator=batch.generator)[batch.share].to(tiles.device)
        if room > 1:
            span = torch.arange(side, device=tiles.device)
            rows, columns = corners[:, :1] + span, corners[:, 1:] + span
            number = torch.arange(len(tiles), device=tiles.device)[:, None, None]
            tiles = tiles[number, rows[:, :, None], columns[:, None, :]]
        return tiles.permute(0, 3, 1, 2).float().div_(255)

    def _draw(self, batch: Batch, maps: Tensor) -> Windows:
        options, generator = self._options.window, batch.generator
        classes = self._options.classes
        places = torch.rand(batch.total, classes, options.draws, generator=generator)[batch.share]
        grid = grid_size(maps.shape[2], maps.shape[3], options)
        coins = torch.rand(batch.total, classes, grid, generator=generator)[batch.share]
        return draw_windows(maps, options, places.to(maps.device), coins.to(maps.device))

    def _pixel_loss(
        self, batch: Batch, maps: Tensor, rgb: Tensor, windows: Windows, contrast: PixelContrastOptions
    ) -> dict[str, Tensor]:
        options = self._options
        held = cut_windows(maps[:, :, None], windows, options.window)
        seen = cut_windows(rgb * _SCALE + _FLOOR, windows, options.window)
        gather = batch.processes.gather
        patches = gather((held * seen).flatten(3)).transpose(0, 1).flatten(1, 2)
        positive = gather(windows.positive.float()).bool().transpose(0, 1).flatten(1)
        anchors = torch.rand(options.classes, contrast.anchors, generator=batch.generator).to(rgb.device)
        loss, gap, counted = pixel_contrast(patches, positive, anchors, contrast.per_positive)
        return {"loss": loss, "gap": gap, "counted": counted}

    def _mean_loss(
        self, batch: Batch, maps: Tensor, rgb: Tensor, windows: Windows, contrast: MeanContrastOptions
    ) -> dict[str, Tensor]:
        fit = fit_stains("macenko", batch.tiles.permute(0, 3, 1, 2))
        density = _blurred(haematoxylin(rgb, fit), contrast.blur_px)
        held = held_by_windows(maps, density, windows, self._options.window)
        gather = batch.processes.gather
        everywhere = Held(*(gather(part.transpose(0, 1).contiguous()).transpose(0, 1) for part in held))
        loss, gap = mean_contrast(everywhere, contrast.other_classes)
        return {"loss": loss, "gap": gap, "counted": torch.ones_like(gap)}


def _blurred(maps: Tensor, blur_px: float) -> Tensor:
    """Maps [N, 1, H, W] under a Gaussian of three standard deviations' reach."""
    if not blur_px:
        return maps
    reach = max(1, round(3 * blur_px))
    taps = torch.arange(-reach, reach + 1, device=maps.device, dtype=maps.dtype)
    weights = torch.exp(-taps.square() / (2 * blur_px**2))
    weights = weights / weights.sum()
    padded = F.pad(maps, [reach] * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))


def _check_sides(crop_px: int, tile_px: int, window_px: int) -> None:
    if crop_px > tile_px:
        raise ConfigError(
            f"method.crop_px is {crop_px}, larger than the tiles of {tile_px} px.",
            fix=f"Set method.crop_px to at most {tile_px}, or a larger tile_px.",
        )
    if window_px > crop_px:
        raise ConfigError(
            f"method.window.side_px is {window_px}, larger than the {crop_px} px that windows are cut from.",
            fix="Set it to a third of that or less.",
        )
