"""Stain-invariant self-supervision (Tiard et al., arXiv 2211.07590): a tile and its restained self belong together."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from encoder.architectures import NARROW_RESNET, vector_length
from encoder.augment import AugmentConfig, ViewParameters, draw_parameters, make_views
from encoder.channel_scale import ChannelScale
from encoder.config import TrainConfig
from encoder.embed import TileEncoder
from encoder.errors import UsageError
from encoder.methods.backbone import NetworkOptions, build_backbone, check_view, kept_backbone
from encoder.methods.nt_xent import nt_xent
from encoder.methods.protocol import Batch, KeptNetwork, MethodOptions
from encoder.processes import Processes
from encoder.stain.fits import Fit, Outcome
from encoder.stain.normalise import STAIN_METHODS, StainMethod, fit_stains, restain
from encoder.tiles import TileSource

_NO_LABEL = -1
_SLOPE = 0.1


class StainInvariantOptions(MethodOptions):
    """Options of stain-invariant learning.

    Attributes:
        network: the encoder; the narrow ResNet of the source by default.
        view_px: side of the views that the network is trained on; None takes the tile's side.
        latent_dim: length of the vectors that are compared.
        temperature: of the softmax over similarities.
        swap: whether the second view takes over another tile's stains; False is the control.
        stain_methods: normalisations of which each step draws one.
        count_target: whether the target's own pair counts, although its stains do not change.
        min_area, max_area: area of the random crops as a share of the tile's.
        max_turn_degrees: largest turn beside quarter turns.
        turn_probability: share of views that are turned.
        noise: standard deviation of the noise, in 0..1.
        noise_probability: share of views with noise.
        label_weight: weight of the cross-entropy on labelled tiles; what is left is the contrastive loss's.
            0 is self-supervised; otherwise the tiles need labels.
        classifier_dims: widths of the classifier's hidden layers.
    """

    name: Literal["stain_invariant"] = "stain_invariant"
    network: NetworkOptions = NetworkOptions(model=NARROW_RESNET)
    view_px: int | None = Field(default=None, ge=16)
    latent_dim: int = Field(default=256, ge=1)
    temperature: float = Field(default=0.5, gt=0)
    swap: bool = True
    stain_methods: tuple[StainMethod, ...] = Field(default=STAIN_METHODS, min_length=1)
    count_target: bool = False
    min_area: float = Field(default=0.1, gt=0, le=1)
    max_area: float = Field(default=0.9, gt=0, le=1)
    max_turn_degrees: float = Field(default=20.0, ge=0, le=45)
    turn_probability: float = Field(default=0.5, ge=0, le=1)
    noise: float = Field(default=0.08, ge=0, le=1)
    noise_probability: float = Field(default=0.5, ge=0, le=1)
    label_weight: float = Field(default=0.0, ge=0, le=1)
    classifier_dims: tuple[int, ...] = (256, 512)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_area > self.max_area:
            raise ValueError("min_area is above max_area")
        return self


class StainInvariant:
    """Compares every tile with itself in the stains of one tile of the batch, drawn anew in each step.

    Args:
        config: the training config, whose method options are `StainInvariantOptions`.
        source: the tiles; their labels are used where `label_weight` is not zero.

    Raises:
        ConfigError: the views would be larger than the tiles.
        UsageError: labels are asked for, and there are not two classes of them.
    """

    def __init__(self, config: TrainConfig, source: TileSource) -> None:
        options = config.method
        if not isinstance(options, StainInvariantOptions):
            raise TypeError(f"options of {options.name} given to stain_invariant")
        self._options = options
        self._view_px = options.view_px or config.tile_px
        # The stain swap is the change of colour; the source has no other.
        self._crops = AugmentConfig(
            min_area=options.min_area,
            max_area=options.max_area,
            stain_probability=0,
            brightness=0,
            contrast=0,
            grey_probability=0,
            blur_probability=0,
        )
        backbone = build_backbone(options.network)
        check_view("view_px", self._view_px, config.tile_px, backbone)
        head = _layers([vector_length(backbone, self._view_px), options.latent_dim])
        self.module = nn.ModuleDict({"backbone": backbone, "head": head})
        self._labels: Tensor | None = None
        if options.label_weight:
            self._labels, classes = _label_codes(source)
            self.module["classifier"] = _layers([options.latent_dim, *options.classifier_dims], classes)
        self._channels_last = config.channels_last
        self._scale = ChannelScale(config.mean, config.std)

    def phases(self) -> Mapping[str, nn.Module]:
        """One phase: backbone, latent vectors and classifier together."""
        return {"network": self.module}

    def settled(self) -> Mapping[str, float]:
        """No size depends on the tiles."""
        return {}

    def begin_epoch(self, epoch: int, processes: Processes) -> None:
        """Every pass is like the last."""

    def converged(self) -> bool:
        """Runs go on to their last step."""
        return False

    def losses(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        """Compare plain views with restained ones; with labels, classify both."""
        options = self._options
        plain, again = self._crop(batch), self._crop(batch)
        figures: dict[str, Tensor] = {}
        counted = None
        if options.swap:
            again, counted, figures = self._swap(batch, again)
        views = torch.cat([self._finished(batch, plain), self._finished(batch, again)])
        if self._channels_last:
            views = views.contiguous(memory_format=torch.channels_last)
        latent = self.module["head"](self.module["backbone"](views))
        with torch.autocast(views.device.type, enabled=False):
            pairs = F.normalize(latent.float(), dim=1).chunk(2)
            # Every process compares all tiles of the step; only the network's work is shared out.
            vectors = torch.cat([batch.processes.gather(vectors) for vectors in pairs])
            contrast = nt_xent(vectors, options.temperature, counted)
        if self._labels is None:
            return {"loss": contrast, **figures}
        label_loss = self._label_loss(batch, latent, self._labels)
        total = (1 - options.label_weight) * contrast + options.label_weight * label_loss
        return {"loss": total, "contrast_loss": contrast, "label_loss": label_loss, **figures}

    def after_step(self, progress: float) -> None:
        """Nothing is averaged."""

    def look(self, encoder: TileEncoder, tiles: NDArray[np.uint8]) -> dict[str, float]:
        """The monitor's figures are enough."""
        return {}

    def kept(self) -> KeptNetwork:
        """The backbone; its pooled features, not the latent vector, are the embedding."""
        return kept_backbone(self._options.network, self.module["backbone"])

    def _crop(self, batch: Batch) -> Tensor:
        """RGB in 0..1 of a view of every tile, in the tile's own stains."""
        options, generator = self._options, batch.generator
        parameters = draw_parameters(self._crops, batch.total, generator)
        degrees = options.max_turn_degrees * (2 * torch.rand(batch.total, generator=generator) - 1)
        turned = torch.rand(batch.total, generator=generator) < options.turn_probability
        parameters = _turned(parameters, torch.deg2rad(degrees * turned)).rows(batch.share)
        return make_views(batch.tiles, parameters.to(batch.tiles.device), self._view_px)

    def _swap(self, batch: Batch, views: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Views in the stains of one tile; which tiles of the step count; and how many were changed."""
        options, generator, gather = self._options, batch.generator, batch.processes.gather
        number = int(torch.randint(len(options.stain_methods), (1,), generator=generator))
        # A tile that cannot be fitted is no target: the first usable one in a random order is, of all processes.
        order = torch.randperm(batch.total, generator=generator).to(batch.tiles.device)
        method = options.stain_methods[number]
        source = fit_stains(method, batch.tiles.permute(0, 3, 1, 2))
        every = Fit(gather(source.values), gather(source.outcome))
        target = order[every.usable[order].long().argmax()]
        restained, outcome = restain(method, views, source, every.row(target))
        changed = gather(outcome) == Outcome.NORMALISED
        counted = changed.new_ones(batch.total)
        if not options.count_target:
            counted = torch.arange(batch.total, device=changed.device) != target
        return restained, counted, {"restained_share": changed.float().mean()}

    def _finished(self, batch: Batch, views: Tensor) -> Tensor:
        """With noise, and normalised for the network."""
        device = views.device
        noisy = torch.rand(batch.total, generator=batch.generator) < self._options.noise_probability
        seed = int(torch.randint(1 << 31, (1,), generator=batch.generator))
        if self._options.noise:
            # Drawn where it is added; drawn on the CPU it would take longer than the network on a GPU.
            generator = Generator(device).manual_seed(seed + batch.processes.rank)
            noise = torch.randn(views.shape, generator=generator, device=device)
            strength = self._options.noise * noisy[batch.share].to(device).view(-1, 1, 1, 1)
            views = torch.addcmul(views, noise, strength).clamp_(0, 1)
        return self._scale(views)

    def _label_loss(self, batch: Batch, latent: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy over both views of the labelled tiles of all processes."""
        truth = labels[batch.indices].to(latent.device).repeat(2)
        known = truth != _NO_LABEL
        logits = self.module["classifier"](latent).float()
        each = F.cross_entropy(logits, truth, ignore_index=_NO_LABEL, reduction="sum")
        everywhere = batch.processes.total(known.sum().float())
        return each * batch.processes.count / everywhere.clamp(min=1)


def _layers(dims: list[int], classes: int | None = None) -> nn.Sequential:
    """Linear layers with leaky units, and a last plain one where there are classes."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(dims):
        layers += [nn.Linear(before, after), nn.LeakyReLU(_SLOPE)]
    if classes is not None:
        layers.append(nn.Linear(dims[-1], classes))
    return nn.Sequential(*layers)


def _label_codes(source: TileSource) -> tuple[Tensor, int]:
    """Numbers of the labels, -1 for blank ones, and how many classes there are."""
    names = sorted({label for label in source.labels or [] if label})
    if len(names) < 2:
        raise UsageError(
            f"method.label_weight asks for labels, and the tiles have {len(names)} classes of them.",
            fix="Give a labels.csv with a label column, or set method.label_weight=0.",
        )
    known = {name: number for number, name in enumerate(names)}
    return torch.tensor([known.get(label, _NO_LABEL) for label in source.labels or []]), len(names)


def _turned(parameters: ViewParameters, radians: Tensor) -> ViewParameters:
    """Views turned around their centres by angles [N]."""
    cosine, sine = torch.cos(radians), torch.sin(radians)
    turn = torch.stack([torch.stack([cosine, -sine], dim=1), torch.stack([sine, cosine], dim=1)], dim=1)
    geometry = parameters.geometry.clone()
    geometry[:, :, :2] = parameters.geometry[:, :, :2] @ turn
    return replace(parameters, geometry=geometry)
