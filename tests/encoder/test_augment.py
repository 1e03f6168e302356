"""Batched views against a plain loop over pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from encoder.augment import AugmentConfig, ViewParameters, draw_parameters, make_views
from encoder.stain.density import EOSIN, HAEMATOXYLIN, from_density, he_basis, to_density

PLAIN = AugmentConfig(
    min_area=1, max_area=1, max_aspect=1, flip=False, stain_probability=0, brightness=0, contrast=0,
    grey_probability=0, blur_probability=0,
)  # fmt: skip


def tiles(count: int, side: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(60, 250, (count, 3, 4, 4)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    return smooth.permute(0, 2, 3, 1).round().to(torch.uint8)


def reflect(position: float, side: int) -> float:
    """Fold a coordinate back into -0.5 .. side - 0.5, as a mirror at the outer edges of the pixels."""
    folded = abs((position + 0.5) % (2 * side))
    return min(folded, 2 * side - folded) - 0.5


def plain_view(tile: np.ndarray, parameters: ViewParameters, view_px: int) -> np.ndarray:
    """One view, pixel by pixel, in float64."""
    side = len(tile)
    geometry = parameters.geometry[0].double().numpy()
    stain, stain_shift = parameters.stain[0].double().numpy(), parameters.stain_shift[0].double().numpy()
    tone, tone_shift = parameters.tone[0].double().numpy(), parameters.tone_shift[0].double().numpy()
    out = np.zeros((view_px, view_px, 3))
    for v in range(view_px):
        for u in range(view_px):
            place = np.array([(2 * u + 1) / view_px - 1, (2 * v + 1) / view_px - 1, 1.0])
            x, y = ((geometry @ place + 1) * side - 1) / 2
            x, y = (min(max(reflect(c, side), 0), side - 1) for c in (x, y))
            left, top = min(int(x), side - 2), min(int(y), side - 2)
            fx, fy = x - left, y - top
            corner = tile[top : top + 2, left : left + 2].astype(np.float64)
            rgb = (corner[0, 0] * (1 - fx) + corner[0, 1] * fx) * (1 - fy)
            rgb = (rgb + (corner[1, 0] * (1 - fx) + corner[1, 1] * fx) * fy) / 255
            density = stain @ -np.log((rgb * 255 + 1) / 256) + stain_shift
            stained = np.clip((np.exp(-density) * 256 - 1) / 255, 0, 1)
            out[v, u] = np.clip(tone @ stained + tone_shift, 0, 1)
    sigma = float(parameters.blur_px[0])
    if sigma == 0:
        return out
    weights = np.array([math.exp(-(t**2) / (2 * sigma**2)) for t in range(-3, 4)])
    weights /= weights.sum()
    padded = np.pad(out, ((3, 3), (3, 3), (0, 0)), mode="reflect")
    blurred = np.zeros_like(out)
    for v in range(view_px):
        for u in range(view_px):
            patch = padded[v : v + 7, u : u + 7]
            blurred[v, u] = np.einsum("i,j,ijc->c", weights, weights, patch)
    return blurred


def test_batch_equals_a_plain_loop_per_sample() -> None:
    config = AugmentConfig(grey_probability=0.3, blur_probability=0.5, stain_probability=0.8)
    batch = tiles(8, 20)
    parameters = draw_parameters(config, 8, torch.Generator().manual_seed(4))
    assert 0 < (parameters.blur_px > 0).sum() < 8
    views = make_views(batch, parameters, 12)
    for i in range(8):
        expected = plain_view(batch[i].numpy(), parameters.rows(slice(i, i + 1)), 12)
        assert np.abs(views[i].permute(1, 2, 0).numpy() - expected).max() < 2e-3


def test_without_any_change_a_view_is_the_tile() -> None:
    batch = tiles(3, 16)
    views = make_views(batch, draw_parameters(PLAIN, 3, torch.Generator().manual_seed(0)), 16)
    assert torch.allclose(views, batch.permute(0, 3, 1, 2) / 255, atol=1e-5)


def test_flips_and_turns_give_the_eight_symmetries_and_nothing_else() -> None:
    tile = tiles(1, 9)
    turned = PLAIN.model_copy(update={"flip": True})
    parameters = draw_parameters(turned, 200, torch.Generator().manual_seed(0))
    views = make_views(tile.expand(200, -1, -1, -1), parameters, 9)
    plain = tile[0].permute(2, 0, 1) / 255
    symmetries = [torch.rot90(p, k, (1, 2)) for p in (plain, plain.flip(2)) for k in range(4)]
    found = [next(s for s, image in enumerate(symmetries) if torch.allclose(view, image, atol=1e-4)) for view in views]
    counts = np.bincount(found, minlength=8)
    assert counts.min() > 8


def test_crops_stay_inside_and_cover_the_asked_area() -> None:
    config = AugmentConfig(min_area=0.2, max_area=0.6, max_aspect=1.5)
    geometry = draw_parameters(config, 500, torch.Generator().manual_seed(0)).geometry
    area = torch.linalg.det(geometry[:, :, :2]).abs()
    assert area.min() > 0.19 and area.max() < 0.61 and area.std() > 0.05
    reach = geometry[:, :, :2].abs().sum(dim=2) + geometry[:, :, 2].abs()
    assert reach.max() <= 1 + 1e-5


def test_same_generator_state_gives_the_same_views_and_draws_do_not_depend_on_strength() -> None:
    first, second = torch.Generator().manual_seed(9), torch.Generator().manual_seed(9)
    a = draw_parameters(AugmentConfig(), 5, first)
    b = draw_parameters(AugmentConfig(), 5, second)
    assert all(torch.equal(getattr(a, name), getattr(b, name)) for name in vars(a))
    draw_parameters(PLAIN, 5, first)
    draw_parameters(AugmentConfig(), 5, second)
    assert torch.equal(first.get_state(), second.get_state())


def test_stain_jitter_scales_the_amounts_of_each_stain() -> None:
    basis = he_basis()
    assert torch.allclose(basis @ basis[2], torch.tensor([0.0, 0.0, 1.0]), atol=1e-6)
    for row, published in zip(basis, (HAEMATOXYLIN, EOSIN), strict=False):
        assert torch.allclose(row, torch.tensor(published) / torch.tensor(published).norm(), atol=1e-6)
    config = PLAIN.model_copy(
        update={"stain_probability": 1.0, "stain_scale": 0.4, "stain_shift": 0.0, "residual_scale": 0.0}
    )
    amounts = torch.tensor([0.6, 0.3, 0.05])
    pixel = from_density(amounts @ basis)
    parameters = draw_parameters(config, 50, torch.Generator().manual_seed(0))
    density = torch.einsum("nij,j->ni", parameters.stain, to_density(pixel))
    factors = torch.linalg.solve(basis.T, density.T).T / amounts
    assert factors[:, :2].min() > 0.6 - 1e-3 and factors[:, :2].max() < 1.4 + 1e-3
    assert factors[:, 0].std() > 0.1 and abs(np.corrcoef(factors[:, 0], factors[:, 1])[0, 1]) < 0.4
    assert torch.allclose(factors[:, 2], torch.ones(50), atol=1e-3)


def test_saturation_and_hue_move_colours_and_leave_luma_and_greys() -> None:
    luma = torch.tensor([0.299, 0.587, 0.114])
    pixel, grey = torch.tensor([0.8, 0.4, 0.6]), torch.full((3,), 0.5)
    for change in ({"saturation": 0.4}, {"hue": 0.4}):
        parameters = draw_parameters(PLAIN.model_copy(update=change), 200, torch.Generator().manual_seed(0))
        turned = parameters.tone @ pixel
        assert torch.allclose(turned @ luma, (pixel @ luma).expand(200), atol=2e-3)
        assert torch.allclose(parameters.tone @ grey, grey.expand(200, 3), atol=2e-3)
        distance = (turned - (pixel @ luma)).norm(dim=1) / (pixel - pixel @ luma).norm()
        if "saturation" in change:
            assert 0.6 - 1e-3 < distance.min() < 0.65 and 1.35 < distance.max() < 1.4 + 1e-3
        else:
            # Red, green and blue each lead somewhere: the turns reach more than half of the circle.
            assert set(turned.argmax(dim=1).tolist()) == {0, 1, 2}


def test_views_are_as_exact_within_autocast() -> None:
    batch = tiles(4, 32)

    def views() -> torch.Tensor:
        parameters = draw_parameters(AugmentConfig(blur_probability=1), 4, torch.Generator().manual_seed(0))
        return make_views(batch, parameters, 24)

    outside = views()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = views()
    assert inside.dtype == torch.float32 and torch.equal(inside, outside)


def test_density_round_trip() -> None:
    rgb = torch.linspace(0, 1, 50)
    assert torch.allclose(from_density(to_density(rgb)), rgb, atol=1e-6)


def test_config_refuses_a_reversed_range() -> None:
    with pytest.raises(ValueError, match="min_area is above max_area"):
        AugmentConfig(min_area=0.9, max_area=0.5)
