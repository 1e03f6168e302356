"""Stain normalisation of whole batches: tiles take over the stains of a target."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from encoder.stain.compiled import worth_compiling
from encoder.stain.density import GLASS_DENSITY, to_density
from encoder.stain.density_kernel import mix_compiled, sparse_compiled
from encoder.stain.fits import Fit, Outcome
from encoder.stain.macenko import fit_macenko, unmixing
from encoder.stain.reinhard import fit_reinhard, from_roots, shift_of_roots, to_lab, to_roots
from encoder.stain.reinhard_kernel import fit_reinhard_compiled, shift_roots_compiled
from encoder.stain.vahadane import AMOUNT_PENALTY, fit_vahadane, sparse_amounts

StainMethod = Literal["reinhard", "macenko", "vahadane"]
STAIN_METHODS: tuple[StainMethod, ...] = get_args(StainMethod)

# Enough for the 1st and 99th percentiles; all pixels of a 224 px tile would take most of the time to sort.
SAMPLE_PX = 1024
# Pixels on a regular lattice in which the sample is looked for, so that rare tissue still fills it.
_LATTICE = 4
# Densities over which Reinhard's change fades in, so that no edge shows where tissue meets glass.
_FADE = (GLASS_DENSITY - 0.05, GLASS_DENSITY + 0.05)
# Few enough tiles for the many passes over them to stay in the processor's cache.
_CPU_CHUNK = 2


def normalise(
    method: StainMethod, rgb: Tensor, target: Fit, sample_px: int | None = SAMPLE_PX
) -> tuple[Tensor, Tensor]:
    """Give every tile the target's stains; those that cannot be fitted stay exactly as they are.

    Args:
        method: Reinhard et al. (2001), Macenko et al. (2009) or Vahadane et al. (2016).
        rgb: RGB in 0..1, float32, or uint8 [N, 3, H, W].
        target: what the same method found in one tile.
        sample_px: as in `fit_stains`.

    Returns:
        RGB of the same type and shape, and the `Outcome` of each tile, int64 [N].
    """
    return restain(method, rgb, fit_stains(method, rgb, sample_px), target)


def fit_stains(method: StainMethod, rgb: Tensor, sample_px: int | None = SAMPLE_PX) -> Fit:
    """Find what each tile's stains are.

    Args:
        method: as in `normalise`.
        rgb: as in `normalise`.
        sample_px: stained pixels of each tile that are looked at, evenly spaced; None for all.
    """
    # Autocast would compute optical densities in bfloat16, whose steps are coarser than a grey level's.
    with torch.no_grad(), torch.autocast(rgb.device.type, enabled=False):
        pixels = _lattice(rgb, sample_px).flatten(2)
        if method == "reinhard" and worth_compiling(rgb):
            return fit_reinhard_compiled(pixels, GLASS_DENSITY)
        pixels = pixels.float().div_(255) if pixels.dtype == torch.uint8 else pixels
        if method == "reinhard":
            return fit_reinhard(to_lab(pixels), _densest(pixels, 1.0) > GLASS_DENSITY)
        fitter = fit_macenko if method == "macenko" else fit_vahadane
        return fitter(to_density(pixels), sample_px)


def restain(method: StainMethod, rgb: Tensor, source: Fit, target: Fit) -> tuple[Tensor, Tensor]:
    """Change the stains of tiles, or of views cut from them, from what was found in them to the target's.

    Args:
        method: as in `normalise`.
        rgb: as in `normalise`.
        source: what the method found in the tiles.
        target: of one tile, or one for each tile.

    Returns:
        As `normalise`.
    """
    with torch.no_grad(), torch.autocast(rgb.device.type, enabled=False):
        outcome = torch.where(source.usable & ~target.usable, int(Outcome.NO_TARGET), source.outcome)
        if worth_compiling(rgb):
            return _restain_compiled(method, rgb, source, target, outcome != Outcome.NORMALISED), outcome
        change = _Change(method, source, target, outcome, 255.0 if rgb.dtype == torch.uint8 else 1.0)
        out = torch.empty_like(rgb, memory_format=torch.contiguous_format)
        step = _CPU_CHUNK if rgb.device.type == "cpu" else max(1, len(rgb))
        for start in range(0, len(rgb), step):
            rows = slice(start, start + step)
            if rgb.dtype == torch.uint8:
                # Floating-point tiles of the whole batch would mostly wait for memory.
                pixels = rgb[rows].flatten(2)
                changed = torch.empty_like(pixels, dtype=torch.float32)
                change.write(pixels, rows, changed)
                out[rows] = changed.round_().view_as(rgb[rows])
            else:
                change.write(rgb[rows].flatten(2), rows, out[rows].flatten(2))
        return out, outcome


def _restain_compiled(method: StainMethod, rgb: Tensor, source: Fit, target: Fit, kept: Tensor) -> Tensor:
    """What `_Change` writes, by kernels."""
    if method == "reinhard":
        return shift_roots_compiled(rgb, *shift_of_roots(source, target), kept, _FADE)
    stains, again = source.values[:, :2], _with_target(source, target)
    if method == "macenko":
        return mix_compiled(rgb, again @ unmixing(stains), kept)
    return sparse_compiled(rgb, stains, again, AMOUNT_PENALTY, kept)


class _Change:
    """The change of each tile, with all that can be computed from the fits alone.

    Args:
        white: the value of full light in the pixels: 1, or 255 for grey levels.
    """

    def __init__(self, method: StainMethod, source: Fit, target: Fit, outcome: Tensor, white: float) -> None:
        self._method = method
        self._white = white
        self._kept = (outcome != Outcome.NORMALISED)[:, None, None]
        # Asking costs less than the pass it may save, but not where the host would wait for a GPU.
        self._any_kept = outcome.device.type != "cpu" or bool(self._kept.any())
        if method == "reinhard":
            self._matrix, self._offset = shift_of_roots(source, target)
            return
        self._stains = source.values[:, :2]
        self._again = _with_target(source, target)
        # Least squares, scaling and the target's stains are one matrix on optical densities.
        self._matrix = self._again @ unmixing(self._stains)
        # A density is log(white * 256/255) less log(pixel + white/255): the constants, taken together.
        self._offset = math.log(white * 256 / 255) * (1 - self._matrix.sum(dim=2, keepdim=True))

    def write(self, pixels: Tensor, rows: slice, out: Tensor) -> None:
        """Change pixels [N, 3, P], uint8 or RGB in 0..1, of some of the tiles; `out` is floating point."""
        if self._method == "reinhard":
            self._reinhard(pixels, rows, out)
        elif self._method == "macenko":
            logs = torch.add(pixels, self._white / 255).log_()
            torch.baddbmm(self._offset[rows], self._matrix[rows], logs, out=out)
            self._to_rgb(out)
        else:
            amounts = sparse_amounts(self._stains[rows], to_density(pixels, self._white), AMOUNT_PENALTY)
            brightest = out.new_tensor(math.log(self._white * 256 / 255))
            torch.baddbmm(brightest, self._again[rows], amounts, alpha=-1, out=out)
            self._to_rgb(out)
        if self._any_kept:
            torch.where(self._kept[rows], pixels, out, out=out)

    def _reinhard(self, pixels: Tensor, rows: slice, out: Tensor) -> None:
        roots = torch.baddbmm(self._offset[rows], self._matrix[rows], to_roots(pixels / self._white))
        changed = from_roots(roots).mul_(self._white)
        low, high = _FADE
        weight = ((_densest(pixels, self._white) - low) / (high - low)).clamp_(0, 1)[:, None]
        torch.lerp(pixels.to(out.dtype), changed, weight, out=out)

    def _to_rgb(self, logs: Tensor) -> None:
        logs.exp_().sub_(self._white / 255).clamp_(0, self._white)


def _with_target(source: Fit, target: Fit) -> Tensor:
    """Columns are the target's stains, as long as its strengths are in units of the source's: [N, 3, 2]."""
    ratio = target.values[:, 2, :2] / source.values[:, 2, :2].clamp(min=1e-3)
    return (target.values[:, :2] * ratio[:, :, None]).transpose(1, 2)


def _densest(pixels: Tensor, white: float) -> Tensor:
    """Largest optical density of the channels [N, P] of RGB [N, 3, P]: also pale eosin shows in green."""
    return to_density(pixels.amin(dim=1), white)


def _lattice(rgb: Tensor, sample_px: int | None) -> Tensor:
    if sample_px is None:
        return rgb
    stride = max(1, math.isqrt(rgb.shape[2] * rgb.shape[3] // (_LATTICE * sample_px)))
    return rgb[:, :, stride // 2 :: stride, stride // 2 :: stride]
