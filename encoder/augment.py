"""Random views of H&E tiles, made for a whole batch at once with parameters of each tile's own."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Generator, Tensor
from torch.nn import functional as F

from encoder.stain.density import from_density, he_basis, to_density

_LUMA = (0.299, 0.587, 0.114)
_BLUR_RADIUS = 3
# Few enough tiles for the many passes over them to stay in the processor's cache.
_CPU_CHUNK = 16


class AugmentConfig(BaseModel):
    """How strongly views differ; ranges are uniform, probabilities are per view.

    Attributes:
        min_area, max_area: area of the random crop as a share of the tile's.
        max_aspect: largest ratio of the crop's sides.
        flip: whether views are flipped and turned by quarter turns.
        stain_probability: share of views whose stains are changed.
        stain_scale: haematoxylin and eosin are multiplied by 1 - this to 1 + this, each on its own.
        stain_shift: optical density added to or taken from each stain, up to this.
        residual_scale: the same as `stain_scale` for the axis that is neither stain.
        brightness: added to or taken from all channels in 0..1, up to this.
        contrast: distance from mid-grey is multiplied by 1 - this to 1 + this.
        saturation: distance from the pixel's own grey is multiplied by 1 - this to 1 + this.
        hue: colours are turned around the grey axis by up to this share of a full turn either way.
        grey_probability: share of views without colour.
        blur_probability: share of blurred views.
        max_blur_px: largest standard deviation of the blur, in pixels of the view.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_area: float = Field(default=0.3, gt=0, le=1)
    max_area: float = Field(default=1.0, gt=0, le=1)
    max_aspect: float = Field(default=1.25, ge=1, le=4)
    flip: bool = True
    stain_probability: float = Field(default=0.9, ge=0, le=1)
    stain_scale: float = Field(default=0.4, ge=0, lt=1)
    stain_shift: float = Field(default=0.08, ge=0, le=1)
    residual_scale: float = Field(default=0.4, ge=0, lt=1)
    brightness: float = Field(default=0.06, ge=0, le=1)
    contrast: float = Field(default=0.15, ge=0, lt=1)
    saturation: float = Field(default=0.0, ge=0, lt=1)
    hue: float = Field(default=0.0, ge=0, le=0.5)
    grey_probability: float = Field(default=0.05, ge=0, le=1)
    blur_probability: float = Field(default=0.3, ge=0, le=1)
    max_blur_px: float = Field(default=1.5, gt=0.1, le=3)

    @model_validator(mode="after")
    def _ordered(self) -> AugmentConfig:
        if self.min_area > self.max_area:
            raise ValueError("min_area is above max_area")
        return self


@dataclass(frozen=True)
class ViewParameters:
    """What is done to each tile of a batch of N.

    Attributes:
        geometry: affine map from view to tile coordinates in -1..1, [N, 2, 3].
        stain: matrix on optical densities (columns of RGB), [N, 3, 3].
        stain_shift: added after it, [N, 3].
        tone: matrix on RGB in 0..1 for contrast and grey, [N, 3, 3].
        tone_shift: added after it, [N, 3].
        blur_px: standard deviation in pixels; 0 for none, [N].
    """

    geometry: Tensor
    stain: Tensor
    stain_shift: Tensor
    tone: Tensor
    tone_shift: Tensor
    blur_px: Tensor

    def to(self, device: torch.device) -> ViewParameters:
        """The same parameters on another device."""
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)}
        return ViewParameters(**moved)

    def rows(self, where: slice) -> ViewParameters:
        """The parameters of some of the tiles."""
        return ViewParameters(**{f.name: getattr(self, f.name)[where] for f in fields(self)})


@torch.autocast("cpu", enabled=False)
def draw_parameters(config: AugmentConfig, count: int, generator: Generator) -> ViewParameters:
    """Draw the parameters of `count` views on the CPU, so that they are the same for every device.

    The number of random values drawn depends on `count` alone. They are float32 also within autocast.
    """

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    stain, stain_shift = _draw_stain(config, count, generator)
    tone, tone_shift = _draw_tone(config, count, generator)
    blurred = uniform(0, 1) < config.blur_probability
    blur_px = torch.where(blurred, uniform(0.1, config.max_blur_px), 0.0)
    return ViewParameters(_draw_geometry(config, count, generator), stain, stain_shift, tone, tone_shift, blur_px)


def make_views(tiles: Tensor, parameters: ViewParameters, view_px: int) -> Tensor:
    """Apply parameters to tiles.

    Args:
        tiles: uint8 [N, H, W, 3].
        parameters: of N tiles, on the same device.
        view_px: side of the views.

    Returns:
        RGB in 0..1, float32 [N, 3, view_px, view_px].
    """
    if tiles.device.type != "cpu":
        return _make_views(tiles, parameters, view_px)
    views = torch.empty(len(tiles), 3, view_px, view_px)
    for start in range(0, len(tiles), _CPU_CHUNK):
        rows = slice(start, start + _CPU_CHUNK)
        views[rows] = _make_views(tiles[rows], parameters.rows(rows), view_px)
    return views


def _make_views(tiles: Tensor, parameters: ViewParameters, view_px: int) -> Tensor:
    # Autocast would compute optical densities in bfloat16, whose steps are coarser than a grey level's.
    with torch.autocast(tiles.device.type, enabled=False):
        return _cut_stain_tone_blur(tiles, parameters, view_px)


def _cut_stain_tone_blur(tiles: Tensor, parameters: ViewParameters, view_px: int) -> Tensor:
    planes = tiles.float().div_(255).permute(0, 3, 1, 2)
    grid = F.affine_grid(parameters.geometry, [len(tiles), 3, view_px, view_px], align_corners=False)
    cut = F.grid_sample(planes, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    pixels = cut.contiguous().flatten(2)
    density = torch.baddbmm(parameters.stain_shift[:, :, None], parameters.stain, to_density(pixels))
    toned = torch.baddbmm(parameters.tone_shift[:, :, None], parameters.tone, from_density(density))
    views = toned.clamp_(0, 1).view(len(tiles), 3, view_px, view_px)
    return _blur(views, parameters.blur_px)


def _draw_geometry(config: AugmentConfig, count: int, generator: Generator) -> Tensor:
    draws = torch.rand(count, 7, generator=generator)
    area = config.min_area + (config.max_area - config.min_area) * draws[:, 0]
    aspect = torch.exp((2 * draws[:, 1] - 1) * math.log(config.max_aspect))
    half_w = (area * aspect).sqrt().clamp(max=1)
    half_h = (area / aspect).sqrt().clamp(max=1)
    centre_x = (2 * draws[:, 2] - 1) * (1 - half_w)
    centre_y = (2 * draws[:, 3] - 1) * (1 - half_h)
    flip_x = torch.where(draws[:, 4] < 0.5, -1.0, 1.0)
    turns = (draws[:, 5] * 4).floor().clamp(max=3)
    if not config.flip:
        flip_x, turns = torch.ones(count), torch.zeros(count)
    cos, sin = torch.cos(turns * math.pi / 2).round(), torch.sin(turns * math.pi / 2).round()
    first = torch.stack([half_w * flip_x * cos, -half_w * flip_x * sin, centre_x], dim=1)
    second = torch.stack([half_h * sin, half_h * cos, centre_y], dim=1)
    return torch.stack([first, second], dim=1)


def _draw_stain(config: AugmentConfig, count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    draws = 2 * torch.rand(count, 5, generator=generator) - 1
    changed = (torch.rand(count, generator=generator) < config.stain_probability)[:, None].float()
    spread = torch.tensor([config.stain_scale, config.stain_scale, config.residual_scale])
    scale = 1 + changed * spread * draws[:, :3]
    added = changed * config.stain_shift * torch.cat([draws[:, 3:], torch.zeros(count, 1)], dim=1)
    # Densities are sums of stain rows, so as columns: density = basis.T @ amounts.
    basis = he_basis().T
    matrix = basis @ (scale[:, :, None] * torch.linalg.inv(basis))
    return matrix, added @ basis.T


def _draw_tone(config: AugmentConfig, count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    draws = torch.rand(count, 5, generator=generator)
    contrast = 1 + config.contrast * (2 * draws[:, 0] - 1)
    brightness = config.brightness * (2 * draws[:, 1] - 1)
    grey = (draws[:, 2] < config.grey_probability)[:, None, None]
    saturation = 1 + config.saturation * (2 * draws[:, 3] - 1)
    angle = 2 * math.pi * config.hue * (2 * draws[:, 4] - 1)
    luma = torch.tensor(_LUMA).expand(3, 3)
    mix = torch.where(grey, luma, luma + saturation[:, None, None] * (_hue_turn(angle) - luma))
    shift = (brightness + 0.5 * (1 - contrast))[:, None].expand(count, 3)
    return contrast[:, None, None] * mix, shift.contiguous()


def _hue_turn(angle: Tensor) -> Tensor:
    """Matrices on RGB [N, 3, 3] that turn the chrominance plane of YIQ and leave luma as it is."""
    to_yiq = torch.tensor([_LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)])
    turn = torch.eye(3).repeat(len(angle), 1, 1)
    turn[:, 1, 1], turn[:, 1, 2] = torch.cos(angle), -torch.sin(angle)
    turn[:, 2, 1], turn[:, 2, 2] = torch.sin(angle), torch.cos(angle)
    return torch.linalg.inv(to_yiq) @ turn @ to_yiq


def _blur(views: Tensor, blur_px: Tensor) -> Tensor:
    chosen = torch.nonzero(blur_px > 0)[:, 0]
    if not len(chosen):
        return views
    taps = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, device=views.device)
    weights = torch.exp(-(taps**2) / (2 * blur_px[chosen, None] ** 2))
    kernels = (weights / weights.sum(dim=1, keepdim=True)).view(len(chosen), -1, 1, 1, 1).unbind(1)
    height, width = views.shape[2:]
    padded = F.pad(views[chosen], [_BLUR_RADIUS] * 4, mode="reflect")
    rows = torch.zeros_like(padded[:, :, :height])
    for tap, weight in enumerate(kernels):
        rows.addcmul_(padded[:, :, tap : tap + height], weight)
    blurred = torch.zeros_like(rows[..., :width])
    for tap, weight in enumerate(kernels):
        blurred.addcmul_(rows[..., tap : tap + width], weight)
    return views.index_copy(0, chosen, blurred)
