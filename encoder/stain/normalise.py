"""Stain normalisation of whole batches: tiles take over the stains of a target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from encoder.stain.density import GLASS_DENSITY, from_density, to_density
from encoder.stain.fits import Fit, Outcome
from encoder.stain.macenko import fit_macenko, unmixing
from encoder.stain.reinhard import fit_reinhard, from_lab, to_lab
from encoder.stain.vahadane import AMOUNT_PENALTY, fit_vahadane, sparse_amounts

StainMethod = Literal["reinhard", "macenko", "vahadane"]
STAIN_METHODS: tuple[StainMethod, ...] = get_args(StainMethod)

# Enough for the 1st and 99th percentiles; all pixels of a 224 px tile would take most of the time to sort.
SAMPLE_PX = 2048
# Densities over which Reinhard's change fades in, so that no edge shows where tissue meets glass.
_FADE = (GLASS_DENSITY - 0.05, GLASS_DENSITY + 0.05)
# Few enough tiles for the many passes over them to stay in the processor's cache.
_CPU_CHUNK = 4


@dataclass(frozen=True)
class Seen:
    """Tiles as a method sees them.

    Attributes:
        method: how they were looked at.
        planes: optical densities, or CIELAB, float32 [N, 3, P].
        fit: what the method found in each.
    """

    method: StainMethod
    planes: Tensor
    fit: Fit


def fit_stains(method: StainMethod, rgb: Tensor, sample_px: int = SAMPLE_PX) -> Fit:
    """Find what each tile's stains are.

    Args:
        method: Reinhard et al. (2001), Macenko et al. (2009) or Vahadane et al. (2016).
        rgb: RGB in 0..1, float32 [N, 3, H, W].
        sample_px: stained pixels of each tile that are looked at; Reinhard looks at all.
    """
    step = _chunk(rgb)
    fits = [look(method, rgb[start : start + step], sample_px).fit for start in range(0, len(rgb), step)]
    return Fit(torch.cat([fit.values for fit in fits]), torch.cat([fit.outcome for fit in fits]))


def normalise(method: StainMethod, rgb: Tensor, target: Fit, sample_px: int = SAMPLE_PX) -> tuple[Tensor, Tensor]:
    """Give every tile the target's stains; those that cannot be fitted stay exactly as they are.

    Args:
        method: as in `fit_stains`, the one that the target was fitted with.
        rgb: RGB in 0..1, float32 [N, 3, H, W].
        target: of one tile.
        sample_px: as in `fit_stains`.

    Returns:
        RGB float32 [N, 3, H, W], and the `Outcome` of each tile, int64 [N].
    """
    out = torch.empty_like(rgb)
    outcomes = []
    for start in range(0, len(rgb), _chunk(rgb)):
        rows = slice(start, start + _chunk(rgb))
        out[rows], outcome = restain(rgb[rows], look(method, rgb[rows], sample_px), target)
        outcomes.append(outcome)
    return out, torch.cat(outcomes)


def look(method: StainMethod, rgb: Tensor, sample_px: int = SAMPLE_PX) -> Seen:
    """The first half of `normalise`, for all tiles at once: everything that does not depend on the target."""
    # Autocast would compute optical densities in bfloat16, whose steps are coarser than a grey level's.
    with torch.no_grad(), torch.autocast(rgb.device.type, enabled=False):
        pixels = rgb.flatten(2)
        if method == "reinhard":
            lab = to_lab(pixels)
            return Seen(method, lab, fit_reinhard(lab, _densest(pixels) > GLASS_DENSITY))
        density = to_density(pixels)
        fitter = fit_macenko if method == "macenko" else fit_vahadane
        return Seen(method, density, fitter(density, sample_px))


def restain(rgb: Tensor, seen: Seen, target: Fit) -> tuple[Tensor, Tensor]:
    """The second half of `normalise`.

    Args:
        rgb: the tiles that were looked at.
        seen: what `look` gave for them.
        target: of one tile, or one for each tile.
    """
    with torch.no_grad(), torch.autocast(rgb.device.type, enabled=False):
        outcome = torch.where(seen.fit.usable & ~target.usable, int(Outcome.NO_TARGET), seen.fit.outcome)
        pixels = rgb.flatten(2)
        changed = _RESTAIN[seen.method](pixels, seen, target)
        kept = (outcome != Outcome.NORMALISED)[:, None, None]
        return torch.where(kept, pixels, changed).view_as(rgb), outcome


def _shift_lab(pixels: Tensor, seen: Seen, target: Fit) -> Tensor:
    changed = from_lab(shifted_lab(seen.planes, seen.fit, target))
    low, high = _FADE
    weight = ((_densest(pixels) - low) / (high - low)).clamp_(0, 1)[:, None]
    return torch.lerp(pixels, changed, weight)


def shifted_lab(lab: Tensor, source: Fit, target: Fit) -> Tensor:
    """CIELAB [N, 3, P] with the target's means and standard deviations in place of the source's."""
    mean, spread = source.values.unbind(1)
    target_mean, target_spread = target.values.unbind(1)
    ratio = target_spread / spread
    return torch.addcmul((target_mean - mean * ratio)[:, :, None], lab, ratio[:, :, None])


def _mix_again(pixels: Tensor, seen: Seen, target: Fit) -> Tensor:
    """Least squares, scaling and the target's stains are one matrix on optical densities."""
    matrix = _with_target(seen.fit, target) @ unmixing(seen.fit.values[:, :2])
    return from_density(matrix @ seen.planes)


def _mix_sparsely(pixels: Tensor, seen: Seen, target: Fit) -> Tensor:
    amounts = sparse_amounts(seen.fit.values[:, :2], seen.planes, AMOUNT_PENALTY)
    return from_density(_with_target(seen.fit, target) @ amounts)


def _with_target(source: Fit, target: Fit) -> Tensor:
    """Columns are the target's stains, as long as its strengths are in units of the source's: [N, 3, 2]."""
    ratio = target.values[:, 2, :2] / source.values[:, 2, :2].clamp(min=1e-3)
    return (target.values[:, :2] * ratio[:, :, None]).transpose(1, 2)


_RESTAIN = {"reinhard": _shift_lab, "macenko": _mix_again, "vahadane": _mix_sparsely}


def _densest(pixels: Tensor) -> Tensor:
    """Largest optical density of the channels [N, P] of RGB [N, 3, P]: also pale eosin shows in green."""
    return to_density(pixels.amin(dim=1))


def _chunk(rgb: Tensor) -> int:
    return _CPU_CHUNK if rgb.device.type == "cpu" else max(1, len(rgb))
