"""Compiled kernels of stain normalisation against PyTorch's operations in double precision, and where they run."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from encoder.stain import compiled
from encoder.stain.compiled import in_threads, worth_compiling
from encoder.stain.density import GLASS_DENSITY, to_density
from encoder.stain.density_kernel import mix_compiled, sparse_compiled
from encoder.stain.fits import Fit, Outcome
from encoder.stain.macenko import unmixing
from encoder.stain.normalise import STAIN_METHODS, StainMethod, fit_stains, normalise, restain
from encoder.stain.reinhard import fit_reinhard, from_roots, shift_of_roots, to_lab, to_roots
from encoder.stain.reinhard_kernel import fit_reinhard_compiled, shift_roots_compiled
from encoder.stain.vahadane import AMOUNT_PENALTY, sparse_amounts

FADE = (0.1, 0.2)
KEPT = torch.zeros(1, dtype=torch.bool)
# Means and spreads of CIELAB of H&E: pale, dark, and of little colour.
LABS = {
    "pale": [[75.0, 18.0, -10.0], [10.0, 9.0, 6.0]],
    "dark": [[45.0, 30.0, -25.0], [16.0, 12.0, 10.0]],
    "grey": [[60.0, 6.0, -4.0], [12.0, 3.0, 2.5]],
}


@pytest.fixture(autouse=True)
def kernels_also_for_few_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_LEAST_PX", 0)


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def fit_of(name: str, dtype: torch.dtype = torch.float32) -> Fit:
    return Fit(torch.tensor([LABS[name]], dtype=dtype), torch.zeros(1, dtype=torch.int64))


def colours() -> Tensor:
    """Every third level of each channel, black and white included: uint8 [1, 3, P, 1]."""
    levels = torch.arange(0, 256, 3, dtype=torch.uint8)
    return torch.stack(torch.meshgrid(levels, levels, levels, indexing="ij")).reshape(1, 3, -1, 1)


def stained_tiles(count: int, side: int, seed: int = 0) -> Tensor:
    """Two dyes in random amounts, and glass: uint8 [count, 3, side, side]."""
    rng = np.random.default_rng(seed)
    dyes = np.array([[0.65, 0.70, 0.29], [0.10, 0.97, 0.22]]) + rng.normal(0, 0.04, (count, 1, 2, 3))
    amounts = rng.gamma(2, 0.3, (count, side, side, 2))
    amounts[:, : side // 8] = 0
    tiles = np.clip(250 * np.exp(-(amounts @ dyes)), 0, 255).astype(np.uint8)
    return torch.from_numpy(tiles).permute(0, 3, 1, 2).contiguous()


def in_double(rgb: Tensor, source: str, target: str) -> Tensor:
    """Colours [1, 3, P, 1] in 0..1, changed by the operations of PyTorch in float64, in grey levels."""
    matrix, offset = shift_of_roots(fit_of(source, torch.float64), fit_of(target, torch.float64))
    pixels = rgb.double().flatten(2)
    changed = from_roots(matrix @ to_roots(pixels) + offset)
    weight = ((to_density(pixels.amin(dim=1)) - FADE[0]) / (FADE[1] - FADE[0])).clamp(0, 1)[:, None]
    return 255 * torch.lerp(pixels, changed, weight).view_as(rgb)


def assert_within_a_twentieth(change: Callable[[Tensor], Tensor], wanted: Tensor) -> None:
    """Changes of all colours, as floating-point numbers and as bytes, against the wanted grey levels."""
    wide = change(colours().float() / 255)
    assert wide.dtype == torch.float32
    assert (255 * wide.double() - wanted).abs().max() < 0.05
    narrow = change(colours())
    assert narrow.dtype == torch.uint8
    assert (narrow.double() - wanted).abs().max() < 0.55


@pytest.mark.parametrize(("source", "target"), [("pale", "dark"), ("dark", "pale"), ("dark", "grey"), ("pale", "pale")])
def test_colours_of_the_whole_cube_are_changed_as_in_double_precision(source: str, target: str) -> None:
    wanted = in_double(colours().double() / 255, source, target)
    change = shift_of_roots(fit_of(source), fit_of(target))
    assert_within_a_twentieth(lambda rgb: shift_roots_compiled(rgb, *change, KEPT, FADE), wanted)


# Haematoxylin and eosin of two laboratories.
STAINS = torch.tensor([[[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]]], dtype=torch.float64)
AGAIN = torch.tensor([[[0.70, 0.15], [0.80, 1.10], [0.50, 0.20]]], dtype=torch.float64)


def test_densities_of_the_whole_cube_are_mixed_as_in_double_precision() -> None:
    matrix = AGAIN @ unmixing(STAINS)
    wanted = matrix @ to_density(colours().double().flatten(2) / 255)
    wanted = (256 * torch.exp(-wanted) - 1).clamp(0, 255).view_as(colours())
    assert_within_a_twentieth(lambda rgb: mix_compiled(rgb, matrix.float(), KEPT), wanted)


def test_sparse_amounts_of_the_whole_cube_are_those_in_double_precision() -> None:
    amounts = sparse_amounts(STAINS, to_density(colours().double().flatten(2) / 255), AMOUNT_PENALTY)
    assert all(((amounts[:, i] > 0) & (amounts[:, 1 - i] == 0)).any() for i in range(2))
    wanted = (256 * torch.exp(-(AGAIN @ amounts)) - 1).clamp(0, 255).view_as(colours())
    stains, again = STAINS.float(), AGAIN.float()
    assert_within_a_twentieth(lambda rgb: sparse_compiled(rgb, stains, again, AMOUNT_PENALTY, KEPT), wanted)


def test_no_change_of_stain_leaves_every_grey_level() -> None:
    change = shift_of_roots(fit_of("pale"), fit_of("pale"))
    assert torch.equal(shift_roots_compiled(colours(), *change, KEPT, FADE), colours())


@pytest.mark.parametrize("wide", [False, True], ids=["bytes", "floats"])
def test_figures_of_tiles_are_those_in_double_precision(wide: bool) -> None:
    tiles = stained_tiles(6, 53).flatten(2)
    tiles[1] = 255
    tiles[2] = 0
    tiles[3] = torch.tensor([200, 120, 160], dtype=torch.uint8)[:, None]
    tiles[4, :, 100:] = 255
    plain = tiles.double() / 255
    wanted = fit_reinhard(to_lab(plain), to_density(plain.amin(dim=1)) > GLASS_DENSITY)
    got = fit_reinhard_compiled(plain.float() if wide else tiles, GLASS_DENSITY)
    assert got.outcome.tolist() == wanted.outcome.tolist()
    assert set(got.outcome.tolist()) == {
        Outcome.NORMALISED, Outcome.LITTLE_TISSUE, Outcome.DARK, Outcome.ONE_STAIN,
    }  # fmt: skip
    torch.testing.assert_close(got.values.double(), wanted.values, atol=2e-4, rtol=0)


@pytest.mark.parametrize("method", STAIN_METHODS)
@pytest.mark.parametrize("wide", [False, True], ids=["bytes", "floats"])
def test_kernels_and_operations_agree(method: StainMethod, wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles, aim = stained_tiles(5, 61), fit_stains(method, stained_tiles(1, 61, seed=1))
    tiles[3] = 240
    batch = tiles.float() / 255 if wide else tiles
    got, outcome = normalise(method, batch, aim)
    monkeypatch.setattr(compiled, "_LEAST_PX", 1 << 60)
    wanted, same = normalise(method, batch, aim)
    assert torch.equal(outcome, same) and torch.equal(got[3], batch[3])
    difference = (got.float() - wanted.float()).abs() * (255 if wide else 1)
    if wide:
        assert difference.max() < 0.01
    else:
        # Some values lie half-way between two levels.
        assert difference.max() <= 1 and (difference > 0).float().mean() < 1e-3


@pytest.mark.parametrize("method", STAIN_METHODS)
@pytest.mark.parametrize("wide", [False, True], ids=["bytes", "floats"])
def test_the_order_of_memory_changes_no_bit_and_is_kept(method: StainMethod, wide: bool) -> None:
    aim = fit_stains(method, stained_tiles(1, 61, seed=1))
    batch = stained_tiles(3, 61).float() / 255 if wide else stained_tiles(3, 61)
    source = fit_stains(method, batch)
    wanted, _ = restain(method, batch, source, aim)
    channels_last = batch.contiguous(memory_format=torch.channels_last)
    got, _ = restain(method, channels_last, source, aim)
    assert torch.equal(got, wanted) and got.stride() == channels_last.stride()
    for view in (lambda rgb: rgb.transpose(2, 3), lambda rgb: rgb[:, :, 5:40, 7:50]):
        assert torch.equal(restain(method, view(batch), source, aim)[0], view(wanted))


def test_figures_of_other_tiles_are_refused() -> None:
    batch = stained_tiles(3, 61)
    fit = fit_stains("macenko", batch)
    with pytest.raises(ValueError, match="for 3"):
        restain("macenko", batch, fit.row(0), fit.row(1))


def test_the_number_of_threads_changes_no_bit(three_threads: None) -> None:
    batch, aim = stained_tiles(12, 112), fit_stains("reinhard", stained_tiles(1, 61, seed=1))
    many, outcome = normalise("reinhard", batch, aim)
    torch.set_num_threads(1)
    one, same = normalise("reinhard", batch, aim)
    assert torch.equal(many, one) and torch.equal(outcome, same)


def test_nothing_becomes_no_number() -> None:
    harsh = Fit(torch.tensor([[[99.0, 90.0, -90.0], [60.0, 80.0, 80.0]]]), torch.zeros(1, dtype=torch.int64))
    for source in LABS:
        out, _ = restain("reinhard", colours().float() / 255, fit_of(source), harsh)
        assert torch.isfinite(out).all() and out.min() >= 0 and out.max() <= 1
    out = mix_compiled(
        colours().float() / 255, torch.tensor([[[90.0, -80, 70], [-90, 80, 70], [1e30, -1e30, 0]]]), KEPT
    )
    assert torch.isfinite(out).all() and out.min() >= 0 and out.max() <= 1


def test_every_unit_is_done_once_and_errors_are_raised(three_threads: None) -> None:
    for count in (0, 1, 2, 5, 100):
        done: list[int] = []
        in_threads(count, 1, lambda first, last, done=done: done.extend(range(first, last)))  # type: ignore[misc]
        assert sorted(done) == list(range(count))
    ranges: list[tuple[int, int]] = []
    in_threads(100, 60, lambda first, last: ranges.append((first, last)))
    assert ranges == [(0, 100)]

    def fail(first: int, last: int) -> None:
        raise ValueError(f"{first} to {last}")

    with pytest.raises(ValueError, match="0 to"):
        in_threads(100, 1, fail)


def test_kernels_are_for_many_pixels_of_two_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_LEAST_PX", 1000)
    assert worth_compiling(torch.zeros(4, 3, 16, 16, dtype=torch.uint8))
    assert worth_compiling(torch.zeros(4, 3, 16, 16))
    assert not worth_compiling(torch.zeros(3, 3, 16, 16))
    assert not worth_compiling(torch.zeros(4, 3, 16, 16, dtype=torch.float64))
    assert not worth_compiling(torch.zeros(4, 3, 16, 16, device="meta"))


def test_without_numba_operations_do_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, aim = stained_tiles(3, 61).float() / 255, fit_stains("reinhard", stained_tiles(1, 61, seed=1))
    wanted, _ = normalise("reinhard", batch, aim)
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.setattr(compiled, "_has_numba", compiled._has_numba.__wrapped__)
    assert not worth_compiling(batch)
    got, _ = normalise("reinhard", batch, aim)
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)


def _doubled(values: np.ndarray) -> None:
    for i in range(len(values)):
        values[i] *= 2


def test_a_kernel_compiles_where_no_cache_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba.core.caching import CacheImpl

    monkeypatch.setattr(CacheImpl, "_locator_classes", [])
    kernel = compiled.compiled.__wrapped__(_doubled)
    values = np.arange(3.0)
    kernel(values)
    assert values.tolist() == [0, 2, 4]


def _total(tiles: np.ndarray) -> int:
    # As a loader's worker: what PyTorch itself does with several threads hangs after a fork.
    torch.set_num_threads(1)
    batch = torch.from_numpy(tiles)
    return int(normalise("reinhard", batch, fit_of("dark"))[0].numpy().sum())


def test_a_forked_process_normalises_too(three_threads: None) -> None:
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system does not fork")
    tiles = stained_tiles(12, 112)
    here = int(normalise("reinhard", tiles, fit_of("dark"))[0].numpy().sum())
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map_async(_total, [tiles.numpy()] * 2).get(60) == [here, here]
