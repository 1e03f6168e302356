"""Batched stain normalisation against one picture at a time in float64, and against torchstain."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from encoder.stain import compiled
from encoder.stain.density import quantiles, to_density
from encoder.stain.fits import Fit, Outcome
from encoder.stain.macenko import unmixing
from encoder.stain.normalise import STAIN_METHODS, StainMethod, fit_stains, normalise, restain
from encoder.stain.reinhard import fit_reinhard, from_lab, from_roots, shift_of_roots, to_lab, to_roots
from encoder.stain.vahadane import sparse_amounts
from tests.encoder import stain_reference as plain

SAMPLE = 200
NEVER = 1 << 60
CLASSES = ("adenocarcinoma", "healthy", "serrated_adenoma", "tubular_adenoma", "villous_adenoma")
EXAMPLES = ("macenko_example1.png", "macenko_example2.png", "torchstain_source.png", "torchstain_target.png")


@pytest.fixture(autouse=True)
def kernels_also_for_few_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_LEAST_PX", 0)


def planes(*pictures: plain.Picture) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def grey(rgb: torch.Tensor) -> plain.Array:
    """RGB in 0..255 of the first of a batch, [H, W, 3]."""
    return rgb[0].permute(1, 2, 0).double().numpy() * 255


def stained_picture(seed: int, side: int = 40, tissue: float = 0.8) -> plain.Picture:
    """Nuclei, stroma and glass of a random laboratory: two dyes by Beer and Lambert."""
    rng = np.random.default_rng(seed)
    dyes = np.array([[0.65, 0.70, 0.29], [0.10, 0.97, 0.22]]) + rng.normal(0, 0.04, (2, 3))
    haematoxylin = rng.gamma(2, 0.35, (side, side)) * (rng.random((side, side)) < 0.4)
    eosin = rng.gamma(4, 0.15, (side, side))
    shown = np.arange(side * side).reshape(side, side) < tissue * side * side
    amounts = np.stack([haematoxylin, eosin], axis=-1) * shown[..., None]
    return np.clip(245 * np.exp(-(amounts @ dyes)) + rng.normal(0, 2, (side, side, 3)), 0, 255).astype(np.uint8)


def fitted(method: StainMethod, picture: plain.Picture) -> tuple[plain.Array, plain.Array]:
    fit = fit_stains(method, planes(picture), SAMPLE)
    assert fit.outcome.tolist() == [Outcome.NORMALISED]
    values = fit.values[0].double().numpy()
    return (values[0], values[1]) if method == "reinhard" else (values[:2], values[2, :2])


def reference_fit(method: StainMethod, picture: plain.Picture) -> tuple[plain.Array, plain.Array]:
    if method == "reinhard":
        return plain.reinhard(picture, SAMPLE)
    return plain.macenko(picture, SAMPLE) if method == "macenko" else plain.vahadane(picture, SAMPLE)


def reference_picture(method: StainMethod, picture: plain.Picture, target: plain.Picture) -> plain.Array:
    aim = reference_fit(method, target)
    if method == "reinhard":
        return plain.reinhard_restained(picture, reference_fit(method, picture), aim)
    penalty = 0.01 if method == "vahadane" else 0.0
    return plain.restained(picture, reference_fit(method, picture), aim, penalty)


def assert_as_reference(method: StainMethod, picture: plain.Picture, target: plain.Picture) -> None:
    first, second = fitted(method, picture)
    wanted_first, wanted_second = reference_fit(method, picture)
    np.testing.assert_allclose(first, wanted_first, atol=2e-3 if method != "reinhard" else 0.02)
    np.testing.assert_allclose(second, wanted_second, rtol=5e-3)
    aim = fit_stains(method, planes(target), SAMPLE)
    out, outcome = normalise(method, planes(picture), aim, SAMPLE)
    assert outcome.tolist() == [Outcome.NORMALISED]
    # Half a grey level: what differs is float32 against float64.
    assert np.abs(grey(out) - reference_picture(method, picture, target)).max() < 0.5


@pytest.mark.parametrize("method", STAIN_METHODS)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("least_px", [0, NEVER], ids=["kernels", "operations"])
def test_every_method_is_its_reference(
    method: StainMethod, seed: int, least_px: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "_LEAST_PX", least_px)
    assert_as_reference(method, stained_picture(seed), stained_picture(seed + 10, tissue=1.0))


@pytest.mark.parametrize("method", STAIN_METHODS)
def test_a_batch_is_its_tiles_one_by_one(method: StainMethod) -> None:
    batch = planes(*(stained_picture(seed) for seed in range(11)))
    aim = fit_stains(method, planes(stained_picture(20)))
    together, _ = normalise(method, batch, aim)
    for i in range(len(batch)):
        alone, _ = normalise(method, batch[i : i + 1], aim)
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", STAIN_METHODS)
def test_bytes_are_the_same_rounded_to_grey_levels(method: StainMethod) -> None:
    pictures = np.stack([*(stained_picture(seed) for seed in range(6)), np.full((40, 40, 3), 250, np.uint8)])
    tiles = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    aim = fit_stains(method, planes(stained_picture(20)))
    wide, outcome = normalise(method, tiles.float() / 255, aim)
    narrow, same = normalise(method, tiles, aim)
    assert narrow.dtype == torch.uint8
    assert torch.equal(outcome, same) and torch.equal(narrow[-1], tiles[-1])
    assert (narrow.float() - wide * 255).abs().max() <= 0.501


@pytest.mark.parametrize("method", STAIN_METHODS)
def test_each_tile_may_have_a_target_of_its_own(method: StainMethod) -> None:
    batch = planes(*(stained_picture(seed) for seed in range(3)))
    targets = fit_stains(method, planes(*(stained_picture(seed) for seed in (7, 8, 9))))
    together, _ = restain(method, batch, fit_stains(method, batch), targets)
    for i in range(3):
        alone, _ = normalise(method, batch[i : i + 1], targets.row(i))
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", STAIN_METHODS)
def test_a_tile_that_is_its_own_target_stays_as_it_is(method: StainMethod) -> None:
    picture = planes(stained_picture(3))
    out, _ = normalise(method, picture, fit_stains(method, picture))
    # A sum of two stains cannot hold the sensor's noise of two grey levels.
    limit = 0.01 if method == "reinhard" else 2.5
    assert np.abs(grey(out) - grey(picture)).mean() < limit


@pytest.mark.parametrize("method", STAIN_METHODS)
def test_two_scanners_of_one_tissue_come_together(method: StainMethod) -> None:
    rng = np.random.default_rng(0)
    haematoxylin = rng.gamma(2, 0.35, (64, 64)) * (rng.random((64, 64)) < 0.4)
    amounts = np.stack([haematoxylin, rng.gamma(4, 0.15, (64, 64))], axis=-1)
    labs = ([[0.65, 0.70, 0.29], [0.10, 0.97, 0.22]], [[0.60, 0.70, 0.38], [0.22, 0.93, 0.16]])
    first, second = (
        planes(np.clip(245 * np.exp(-(amounts * gain @ np.array(dyes))), 0, 255).astype(np.uint8))
        for dyes, gain in zip(labs, (1.0, 0.75), strict=True)
    )
    out, _ = normalise(method, second, fit_stains(method, first))
    before, after = (float((x - first).abs().mean()) for x in (second, out))
    assert after < (0.5 if method == "reinhard" else 0.3) * before


@pytest.mark.parametrize("method", STAIN_METHODS)
@pytest.mark.parametrize(
    ("name", "picture", "outcome"),
    [
        ("white", np.full((32, 32, 3), 255, np.uint8), Outcome.LITTLE_TISSUE),
        ("glass", np.full((32, 32, 3), 240, np.uint8), Outcome.LITTLE_TISSUE),
        ("black", np.zeros((32, 32, 3), np.uint8), Outcome.DARK),
        ("a corner of tissue", stained_picture(1, 32, tissue=0.03), Outcome.LITTLE_TISSUE),
        ("one colour", np.full((32, 32, 3), (200, 120, 160), np.uint8), Outcome.ONE_STAIN),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_fitted_stays_exactly_as_it_is(
    method: StainMethod, name: str, picture: plain.Picture, outcome: Outcome
) -> None:
    batch = planes(picture, stained_picture(0, 32))
    fit = fit_stains(method, batch)
    assert torch.isfinite(fit.values).all()
    out, outcomes = normalise(method, batch, fit_stains(method, planes(stained_picture(5))))
    assert outcomes.tolist() == [outcome, Outcome.NORMALISED]
    assert outcome.reason
    assert torch.equal(out[0], batch[0])
    assert torch.isfinite(out).all()


def fluorescence() -> plain.Picture:
    """Blue nuclei on black."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 6, (64, 64, 3)).astype(np.uint8)
    picture[20:30, 20:40, 2] = rng.integers(80, 160, (10, 20))
    return picture


@pytest.mark.parametrize("method", STAIN_METHODS)
def test_fluorescence_is_not_taken_for_a_stain(method: StainMethod) -> None:
    out, outcome = normalise(method, planes(fluorescence()), fit_stains(method, planes(stained_picture(5))))
    assert outcome.tolist() == [Outcome.DARK]
    assert torch.equal(out, planes(fluorescence()))


@pytest.mark.parametrize("method", ["macenko", "vahadane"])
def test_eosin_alone_does_not_become_haematoxylin(method: StainMethod) -> None:
    rng = np.random.default_rng(0)
    eosin = rng.gamma(9, 0.1, (64, 64, 1)) @ np.array([[0.21, 0.93, 0.30]])
    picture = np.clip(245 * np.exp(-eosin) + rng.normal(0, 1, eosin.shape), 0, 255).astype(np.uint8)
    _, outcome = normalise(method, planes(picture), fit_stains(method, planes(stained_picture(5))))
    assert outcome.tolist() == [Outcome.ONE_STAIN]


@pytest.mark.parametrize("method", STAIN_METHODS)
def test_a_target_that_cannot_be_fitted_changes_nothing(method: StainMethod) -> None:
    batch = planes(stained_picture(0), np.full((40, 40, 3), 255, np.uint8))
    white = fit_stains(method, batch).row(1)
    out, outcome = normalise(method, batch, white)
    assert torch.equal(out, batch)
    assert outcome.tolist() == [Outcome.NO_TARGET, Outcome.LITTLE_TISSUE]


def test_cielab_is_the_reference_and_turns_back() -> None:
    rgb = torch.rand(2, 3, 500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rgb[:, :, :50] *= 0.03  # the straight parts near black
    got = to_lab(rgb)
    # The standards' rounded constants leave a step at each knee, which ours has not; a grey level is about 0.4.
    np.testing.assert_allclose(got[1].T.numpy(), plain.lab(rgb[1].T.numpy()), atol=5e-4)
    torch.testing.assert_close(from_lab(got), rgb, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", STAIN_METHODS)
def test_autocast_changes_nothing(method: StainMethod) -> None:
    batch, aim = planes(stained_picture(0)), planes(stained_picture(4))
    expected, _ = normalise(method, batch, fit_stains(method, aim))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, _ = normalise(method, batch, fit_stains(method, aim))
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


def test_sparse_amounts_are_the_best_of_all_supports() -> None:
    rng = np.random.default_rng(2)
    stains = np.abs(rng.normal(size=(2, 3)))
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    pixels = rng.normal(0.2, 0.5, (500, 3))
    got = sparse_amounts(torch.from_numpy(stains)[None], torch.from_numpy(pixels.T.copy())[None], 0.1)[0].T
    expected = plain.sparse(stains, pixels, 0.1)
    supports = {tuple(row) for row in expected > 0}
    assert len(supports) == 4
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-9)


def test_the_sample_stands_for_all_pixels() -> None:
    picture = stained_picture(6, side=224)
    stains, strength = plain.macenko(picture)
    fit = fit_stains("macenko", planes(picture)).values[0].double().numpy()
    cosines = (fit[:2] * stains).sum(axis=1)
    assert np.degrees(np.arccos(cosines.clip(-1, 1))).max() < 2
    np.testing.assert_allclose(fit[2, :2], strength, rtol=0.1)


def test_more_rounds_of_vahadane_change_little() -> None:
    picture = stained_picture(1)
    few, many = (plain.vahadane(picture, SAMPLE, rounds)[0] for rounds in (60, 400))
    assert np.degrees(np.arccos((few * many).sum(axis=1).clip(-1, 1))).max() < 2


def _shared_pictures(data: Path) -> list[tuple[str, plain.Picture]]:
    found = [data / "stain_examples" / name for name in EXAMPLES]
    with (data / "tiles_colon5" / "labels.csv").open() as table:
        rows = list(csv.DictReader(table))
    for label in CLASSES:
        found += [data / "tiles_colon5" / "images" / row["file"] for row in rows if row["label"] == label][:400:200]
    return [(path.name, np.asarray(Image.open(path).convert("RGB"))[:256, :256]) for path in found]


@pytest.mark.shared_data
def test_real_tiles_are_as_the_reference_says(shared_data: Path) -> None:
    pictures = _shared_pictures(shared_data)
    assert len(pictures) == len(EXAMPLES) + 2 * len(CLASSES)
    target = dict(pictures)["torchstain_target.png"]
    for _, picture in pictures:
        for method in STAIN_METHODS:
            assert_as_reference(method, picture, target)


@pytest.mark.shared_data
def test_macenko_is_torchstains(shared_data: Path) -> None:
    from torchstain.numpy.normalizers import NumpyMacenkoNormalizer

    pictures = _shared_pictures(shared_data)
    target = dict(pictures)["torchstain_target.png"]
    other = NumpyMacenkoNormalizer()
    other.fit(target, Io=256)
    aim = _strengths_of_all_pixels(planes(target))
    for name, picture in pictures:
        rgb = planes(picture)
        out, _ = restain("macenko", rgb, _strengths_of_all_pixels(rgb), aim)
        expected, _, _ = other.normalize(picture, Io=256, stains=False)
        # It cuts off to whole grey levels, and does not take back the one that it added against log 0; pixels that
        # leave the range wrap around in it.
        difference = np.abs(grey(out) - expected)
        assert np.median(difference) < 1.2, name
        assert np.quantile(difference, 0.99) < 3, name


def _strengths_of_all_pixels(rgb: torch.Tensor) -> Fit:
    """Macenko's fit with the strength of stains taken from all pixels, glass included, as torchstain does."""
    fit = fit_stains("macenko", rgb, None)
    values = fit.values.clone()
    (values[:, 2, :2],) = quantiles(unmixing(values[:, :2]) @ to_density(rgb.flatten(2)), (0.99,))
    return Fit(values, fit.outcome)


@pytest.mark.shared_data
def test_reinhard_is_torchstains(shared_data: Path) -> None:
    from torchstain.numpy.normalizers import NumpyReinhardNormalizer

    pictures = _shared_pictures(shared_data)
    target = dict(pictures)["torchstain_target.png"]
    other = NumpyReinhardNormalizer()
    other.fit(target)
    aim = _whole(planes(target))
    for name, picture in pictures:
        rgb = planes(picture)
        # It counts glass as well and changes all pixels alike, which is what these two steps do by themselves.
        matrix, offset = shift_of_roots(_whole(rgb), aim)
        moved = from_roots(matrix @ to_roots(rgb.flatten(2)) + offset).view_as(rgb)
        assert np.abs(grey(moved) - other.normalize(picture)).max() < 1.5, name


def _whole(rgb: torch.Tensor) -> Fit:
    return fit_reinhard(to_lab(rgb.flatten(2)), torch.ones(1, rgb[0, 0].numel(), dtype=torch.bool))
