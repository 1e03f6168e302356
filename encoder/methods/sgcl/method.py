"""SGCL as the training loop sees it: views, one network, banks, three terms of the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from encoder.architectures import vector_length
from encoder.augment import AugmentConfig, ViewParameters, draw_parameters, make_views
from encoder.channel_scale import ChannelScale
from encoder.config import TrainConfig
from encoder.embed import TileEncoder
from encoder.errors import ConfigError
from encoder.methods.backbone import build_backbone, check_view, kept_backbone
from encoder.methods.protocol import Batch, KeptNetwork
from encoder.methods.sgcl import loss
from encoder.methods.sgcl.clusters import cluster
from encoder.methods.sgcl.memory import CORNERS, Memory
from encoder.methods.sgcl.options import SgclOptions, settle_sizes
from encoder.methods.sgcl.semantic import cells_of, semantic_neighbours
from encoder.methods.sgcl.spatial import source_neighbours
from encoder.processes import Processes
from encoder.tiles import TileSource

__all__ = ["Sgcl", "SgclOptions"]

_CLUSTER_SEED = 1234
# Centres of the corner quarters in tile coordinates of -1..1, in the order of the corner banks.
_CORNER_CENTRES = ((-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5))


class Sgcl:
    """Tells tiles apart by what it remembers of them, and draws those together that lie close or look alike.

    Args:
        config: the training config, whose method options are `SgclOptions`.
        source: the tiles, with slide, position and side.

    Raises:
        ConfigError: views would be larger than what they are cut from, or the run is shorter than two epochs.
        UsageError: there are fewer than 100 tiles, or nothing is known of where they lie.
    """

    def __init__(self, config: TrainConfig, source: TileSource) -> None:
        options = config.method
        if not isinstance(options, SgclOptions):
            raise TypeError(f"options of {options.name} given to sgcl")
        self._options = options
        self._sizes = settle_sizes(options, len(source))
        self._view_px = options.view_px or config.tile_px
        self._corner_px = options.corner_px or max(8, round(self._view_px * 3 / 7))
        self._channels_last = config.channels_last
        self._scale = ChannelScale(config.mean, config.std)
        self._settled = {name: float(value) for name, value in asdict(self._sizes).items()}
        self._spatial = torch.empty(0, 0, dtype=torch.int32)
        if options.spatial_weight:
            _check_length(config, len(source))
            table = source_neighbours(source, options.neighbour_tiles)
            self._spatial = torch.from_numpy(table)
            self._settled["spatial_neighbours_mean"] = round(float((table >= 0).sum(axis=1).mean()), 2)
            self._settled["tiles_without_neighbours"] = float((table < 0).all(axis=1).sum())
        backbone = build_backbone(options.network)
        check_view("view_px", self._view_px, config.tile_px, backbone)
        if options.corner_weight:
            check_view("corner_px", self._corner_px, config.tile_px // 2, backbone)
        dim = vector_length(backbone, self._view_px)
        head = nn.Sequential(
            nn.Linear(dim, options.hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(options.hidden_dim, options.projection_dim),
        )
        self._network = nn.ModuleDict({"backbone": backbone, "head": head})
        dtype = torch.float16 if options.bank_precision == "fp16" else torch.float32
        self._memory = Memory(len(source), options.projection_dim, dim, self._sizes.semantic_kept, dtype)
        self.module = nn.ModuleDict({"network": self._network, "memory": self._memory})
        self._rank_weights = loss.rank_weights(self._sizes.hard_list, options.hard_beta, options.faults.histogram_ranks)
        self._seen: tuple[Processes, Tensor, Tensor, Tensor | None, Tensor] | None = None

    def phases(self) -> Mapping[str, nn.Module]:
        """One phase: backbone and projection together."""
        return {"network": self._network}

    def settled(self) -> Mapping[str, float]:
        """The counts that this set of tiles allows, and how many spatial neighbours its tiles have."""
        return self._settled

    def begin_epoch(self, epoch: int, processes: Processes) -> None:
        """Cluster the bank anew and list every tile's semantic neighbours."""
        options, sizes, memory = self._options, self._sizes, self._memory
        if not options.spatial_weight:
            return
        labels = torch.zeros(options.clusterings, len(memory.cells), dtype=torch.int64, device=memory.cells.device)
        if processes.first:
            for i in range(options.clusterings):
                labels[i] = cluster(memory.whole, sizes.clusters, options.cluster_iterations, _CLUSTER_SEED + i)
        if options.faults.unshared_clusters and not processes.first:
            generator = torch.Generator().manual_seed(_CLUSTER_SEED - processes.rank)
            labels[:] = torch.randint(sizes.clusters, (len(memory.cells),), generator=generator)
        elif not options.faults.unshared_clusters:
            labels = processes.from_first(labels)
        memory.cells.copy_(cells_of(labels))
        neighbours = semantic_neighbours(
            memory.whole, memory.cells, sizes.semantic_nearest, sizes.semantic_kept, _CLUSTER_SEED + epoch
        )
        memory.semantic.copy_(neighbours)

    def converged(self) -> bool:
        """Runs go on to their last step."""
        return False

    def losses(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        """Discriminate tiles and their corners, and attract neighbours in space and in the bank."""
        options = self._options
        device = batch.tiles.device
        own = batch.indices.to(device)
        features, projected = self._forward(self._view(batch, options.augment, self._view_px))
        corners = self._corners(batch) if options.corner_weight else None
        negatives = self._draw_negatives(batch)
        with torch.autocast(device.type, enabled=False):
            pooled = F.normalize(features.detach().float(), dim=1)
            losses = {"instance_loss": self._instance_loss(projected, own, negatives)}
            total = losses["instance_loss"]
            if corners is not None:
                losses["corner_loss"] = self._corner_loss(corners, own, negatives)
                total = total + options.corner_weight * losses["corner_loss"]
            if options.spatial_weight:
                weight = loss.ramp(batch.epoch, batch.progress, options.ramp_epochs, options.ramp_share)
                losses |= self._spatial_loss(batch, projected, pooled, own)
                losses["spatial_weight"] = torch.tensor(options.spatial_weight * weight, device=device)
                total = total + losses["spatial_weight"] * losses["spatial_loss"]
        remembered = None if corners is None else corners.detach()
        self._seen = (batch.processes, own, projected.detach(), remembered, pooled)
        return {"loss": total, **losses}

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Let the banks remember what all processes saw in this step."""
        if self._seen is None:
            return
        processes, own, projected, corners, pooled = self._seen
        gather = processes.gather
        together = None if corners is None else torch.stack([gather(corner) for corner in corners])
        self._memory.update(gather(own), gather(projected), together, gather(pooled), self._options.bank_momentum)
        self._seen = None

    def look(self, encoder: TileEncoder, tiles: NDArray[np.uint8]) -> dict[str, float]:
        """The monitor's figures are enough."""
        return {}

    def kept(self) -> KeptNetwork:
        """The backbone; its pooled features, not the projection, are the embedding."""
        return kept_backbone(self._options.network, self._network["backbone"])

    def _forward(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features [B, D], and unit projections float32 [B, P]."""
        if self._channels_last:
            views = views.contiguous(memory_format=torch.channels_last)
        features = self._network["backbone"](views)
        return features, F.normalize(self._network["head"](features).float(), dim=1)

    def _view(
        self, batch: Batch, augment: AugmentConfig, view_px: int, centre: tuple[float, float] | None = None
    ) -> Tensor:
        device = batch.tiles.device
        parameters = draw_parameters(augment, batch.total, batch.generator).rows(batch.share)
        if centre is not None:
            parameters = _within_corner(parameters, centre)
        views = make_views(batch.tiles, parameters.to(device), view_px)
        return self._scale(views)

    def _corners(self, batch: Batch) -> Tensor:
        """Unit projections of a view of each corner, float32 [4, B, P]."""
        options = self._options
        views = [self._view(batch, options.corner_augment, self._corner_px, centre) for centre in _CORNER_CENTRES]
        _, projected = self._forward(torch.cat(views))
        return projected.view(CORNERS, len(batch.tiles), -1)

    def _draw_negatives(self, batch: Batch) -> Tensor:
        """Random tiles, int64 [K] for all anchors or [b, K] for each its own."""
        shape = [self._sizes.instance_negatives]
        if not self._options.shared_negatives:
            shape = [batch.total, *shape]
        drawn = torch.randint(len(self._memory.cells), shape, generator=batch.generator)
        return (drawn if self._options.shared_negatives else drawn[batch.share]).to(batch.tiles.device)

    def _random_logits(self, queries: Tensor, bank: Tensor, negatives: Tensor, selves: tuple[Tensor, Tensor]) -> Tensor:
        """Logits of random negatives [b, K]; those at `selves`, rows and columns, are none."""
        logits = loss.similarities(queries / self._options.temperature, bank, negatives)
        logits[selves] = -torch.inf
        return logits

    def _selves(self, own: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
        """Where random negatives are the anchor itself: row and column of each."""
        if self._options.faults.self_negatives:
            return own[:0], own[:0]
        rows, columns = (negatives == own[:, None]).nonzero(as_tuple=True)
        return rows, columns

    def _instance_loss(self, projected: Tensor, own: Tensor, negatives: Tensor) -> Tensor:
        bank = self._memory.whole
        positive = (projected * bank[own].float()).sum(dim=1) / self._options.temperature
        logits = self._random_logits(projected, bank, negatives, self._selves(own, negatives))
        return loss.discrimination(positive, [logits]).mean()

    def _corner_loss(self, corners: Tensor, own: Tensor, negatives: Tensor) -> Tensor:
        """Each corner against its own bank entry, with a quarter of the negatives from each of the four banks."""
        banks = self._memory.corners
        positive = (corners * banks[:, own].float()).sum(dim=2).flatten() / self._options.temperature
        # All corners meet the same random tiles, so that each bank is read once.
        own = own.repeat(CORNERS)
        if negatives.ndim == 2:
            negatives = negatives.repeat(CORNERS, 1)
        logits = [
            self._random_logits(corners.flatten(0, 1), bank, quarter, self._selves(own, quarter))
            for bank, quarter in zip(banks, negatives.chunk(CORNERS, dim=-1), strict=True)
        ]
        return loss.discrimination(positive, logits).mean()

    def _spatial_loss(self, batch: Batch, projected: Tensor, pooled: Tensor, own: Tensor) -> dict[str, Tensor]:
        options, memory = self._options, self._memory
        bank = memory.whole
        near, auxiliary = self._near(projected.detach(), own)
        alike = memory.semantic[auxiliary].masked_fill((auxiliary < 0)[:, None], -1)
        positives = loss.union([near, memory.semantic[own].long(), alike.long()], own)
        candidates, places = self._hard_negatives(batch, pooled, own, auxiliary, positives)
        absent = positives < 0
        attracted = loss.few_similarities(projected, bank, positives.clamp(min=0)).masked_fill(absent, -torch.inf)
        repelled = loss.similarities(projected, bank, candidates).gather(1, places.clamp(min=0))
        repelled = repelled.masked_fill(places < 0, -torch.inf)
        if options.faults.constant_negatives:
            repelled = repelled.detach()
        held = (~absent).sum(dim=1)
        spurious = len(bank) - held if options.faults.spurious_ones else None
        valid = held > 0
        if options.faults.lonely_anchors:
            valid = torch.ones_like(valid)
        # An anchor without positives has no finite logarithm to begin with; it is taken out before, not after.
        attracted = torch.where(valid[:, None], attracted, torch.zeros_like(attracted))
        each = loss.attraction(attracted, repelled, options.spatial_temperature, spurious)
        everywhere = batch.processes.total(valid.sum().float())
        mean = torch.where(valid, each, 0.0).sum() * batch.processes.count / everywhere.clamp(min=1)
        return {"spatial_loss": mean, "positives": held.float().mean()}

    def _near(self, projected: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """Spatial neighbours int64 [B, M], and the most similar of each, int64 [B], -1 where there is none."""
        if self._spatial.device != own.device:
            self._spatial = self._spatial.to(own.device)
        near = self._spatial[own].long()
        similarity = loss.few_similarities(projected, self._memory.whole, near.clamp(min=0))
        closest = similarity.masked_fill(near < 0, -torch.inf).argmax(dim=1, keepdim=True)
        auxiliary = near.gather(1, closest)[:, 0]
        if self._options.faults.lonely_anchors:
            auxiliary = auxiliary.clamp(min=0)
        return near, auxiliary

    def _hard_negatives(
        self, batch: Batch, pooled: Tensor, own: Tensor, auxiliary: Tensor, positives: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Candidates int64 [S], and the places among them of each anchor's hard negatives, int64 [B, K] or -1."""
        sizes, memory = self._sizes, self._memory
        count, device = len(memory.cells), own.device
        candidates = torch.arange(count)
        if sizes.ranked_tiles < count:
            candidates = torch.randperm(count, generator=batch.generator)[: sizes.ranked_tiles]
        ranks = torch.multinomial(self._rank_weights, sizes.hard_negatives, replacement=True, generator=batch.generator)
        candidates, ranks = candidates.to(device), ranks.to(device)
        # Positives are no negatives, nor is what shares their cell but was too far down to be remembered.
        cells = memory.cells[candidates]
        beside = torch.where(auxiliary < 0, -1, memory.cells[auxiliary.clamp(min=0)])
        excluded = (cells == memory.cells[own, None]) | (cells == beside[:, None])
        slot = torch.full((count + 1,), len(candidates), dtype=torch.int64, device=device)
        slot[candidates] = torch.arange(len(candidates), device=device)
        # Number -1 means none and reaches the last slot, which stands for no candidate.
        marks = F.pad(excluded, (0, 1))
        marks.scatter_(1, slot[positives], True)
        places = loss.hard_negatives(pooled, memory.pooled[candidates], marks[:, :-1], ranks, sizes.hard_list)
        return candidates, places


def _within_corner(parameters: ViewParameters, centre: tuple[float, float]) -> ViewParameters:
    """The same views, cut out of the quarter of the tile around a centre."""
    geometry = parameters.geometry / 2
    geometry[:, :, 2] += torch.tensor(centre)
    return replace(parameters, geometry=geometry)


def _check_length(config: TrainConfig, tiles: int) -> None:
    steps_per_epoch = tiles // config.batch
    if config.max_steps < 2 * steps_per_epoch:
        raise ConfigError(
            f"max_steps={config.max_steps} is less than two passes over {tiles} tiles ({2 * steps_per_epoch} steps); "
            "sgcl attracts neighbours only from the second on.",
            fix=f"Set max_steps={10 * steps_per_epoch} or more, a larger batch, or give fewer tiles.",
        )
