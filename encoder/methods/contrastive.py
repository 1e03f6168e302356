"""Plain contrastive learning (SimCLR, Chen et al. 2020) with H&E-aware views: the control for all methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from encoder.architectures import vector_length
from encoder.augment import AugmentConfig, draw_parameters, make_views
from encoder.channel_scale import ChannelScale
from encoder.config import TrainConfig
from encoder.embed import TileEncoder
from encoder.methods.backbone import NetworkOptions, build_backbone, check_view, kept_backbone
from encoder.methods.nt_xent import nt_xent
from encoder.methods.protocol import Batch, KeptNetwork, MethodOptions
from encoder.processes import Processes
from encoder.tiles import TileSource


class ContrastiveOptions(MethodOptions):
    """Options of the contrastive method.

    Attributes:
        network: the encoder.
        view_px: side of the views that the network is trained on; None takes the tile's side.
        hidden_dim: width of the projection's hidden layer.
        projection_dim: length of the projected vectors that are compared.
        temperature: of the softmax over similarities.
        augment: how views are made.
    """

    name: Literal["contrastive"] = "contrastive"
    network: NetworkOptions = NetworkOptions()
    view_px: int | None = Field(default=None, ge=16)
    hidden_dim: int = Field(default=512, ge=1)
    projection_dim: int = Field(default=128, ge=1)
    temperature: float = Field(default=0.2, gt=0)
    augment: AugmentConfig = AugmentConfig()


class Contrastive:
    """Pulls two views of a tile together and pushes all other tiles of the batch away.

    Args:
        config: the training config, whose method options are `ContrastiveOptions`.
        source: the tiles; only their side matters.

    Raises:
        ConfigError: the views would be larger than the tiles.
    """

    def __init__(self, config: TrainConfig, source: TileSource) -> None:
        options = config.method
        if not isinstance(options, ContrastiveOptions):
            raise TypeError(f"options of {options.name} given to the contrastive method")
        self._options = options
        self._view_px = options.view_px or config.tile_px
        backbone = build_backbone(options.network)
        check_view("view_px", self._view_px, config.tile_px, backbone)
        dim = vector_length(backbone, self._view_px)
        head = nn.Sequential(
            nn.Linear(dim, options.hidden_dim, bias=False),
            nn.BatchNorm1d(options.hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(options.hidden_dim, options.projection_dim, bias=False),
        )
        self.module = nn.ModuleDict({"backbone": backbone, "head": head})
        self._channels_last = config.channels_last
        self._scale = ChannelScale(config.mean, config.std)

    def phases(self) -> Mapping[str, nn.Module]:
        """One phase: backbone and projection together."""
        return {"network": self.module}

    def converged(self) -> bool:
        """Runs go on to their last step."""
        return False

    def losses(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        """Make two views of every tile and compare their projections."""
        views = torch.cat([self._view(batch), self._view(batch)])
        if self._channels_last:
            views = views.contiguous(memory_format=torch.channels_last)
        projected = self.module["head"](self.module["backbone"](views))
        with torch.autocast(views.device.type, enabled=False):
            pairs = F.normalize(projected.float(), dim=1).chunk(2)
            # Every process compares all tiles of the step; only the network's work is shared out.
            vectors = torch.cat([batch.processes.gather(vectors) for vectors in pairs])
            loss = nt_xent(vectors, self._options.temperature)
        return {"loss": loss}

    def settled(self) -> Mapping[str, float]:
        """No size depends on the tiles."""
        return {}

    def begin_epoch(self, epoch: int, processes: Processes) -> None:
        """Every pass is like the last."""

    def after_step(self, progress: float) -> None:
        """Nothing is averaged."""

    def look(self, encoder: TileEncoder, tiles: NDArray[np.uint8]) -> dict[str, float]:
        """The monitor's figures are enough."""
        return {}

    def kept(self) -> KeptNetwork:
        """The backbone; its pooled features, not the projection, are the embedding."""
        return kept_backbone(self._options.network, self.module["backbone"])

    def _view(self, batch: Batch) -> Tensor:
        device = batch.tiles.device
        parameters = draw_parameters(self._options.augment, batch.total, batch.generator).rows(batch.share)
        views = make_views(batch.tiles, parameters.to(device), self._view_px)
        return self._scale(views)
