"""Patch contrast against literal loops, and its options, shapes and choices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from encoder.config import TrainConfig
from encoder.errors import ConfigError, EncoderError, UsageError
from encoder.methods.catalogue import build_method
from encoder.methods.patch_contrast.choice import MapTally
from encoder.methods.patch_contrast.means import held_by_windows, mean_contrast
from encoder.methods.patch_contrast.options import StopOptions, WindowOptions
from encoder.methods.patch_contrast.pixels import pixel_contrast
from encoder.methods.patch_contrast.plateau import Plateau
from encoder.methods.patch_contrast.windows import cut_windows, draw_windows, grid_size
from encoder.methods.protocol import Batch
from encoder.nets.confidence import ConfidenceDescriptor, ConfidenceNet
from encoder.processes import ALONE
from encoder.progress import SilentReporter
from encoder.registry import load_encoder
from encoder.segment import _field_threshold, classical_nuclei, segment_field
from encoder.stain.haematoxylin import haematoxylin
from encoder.stain.normalise import fit_stains
from encoder.train import train
from tests.encoder import patch_contrast_reference as plain
from tests.encoder.nuclei_pictures import NucleiTiles, nuclei_picture

WINDOW = WindowOptions(side_px=6, stride_px=4, draws=5)
SIDE, PICTURES, CLASSES = 18, 3, 3


def config(**changes: Any) -> TrainConfig:
    method = {"name": "patch_contrast", "classes": 2, "window": {"side_px": 12, "stride_px": 6, "draws": 4}}
    values = {
        "name": "test",
        "tile_px": 48,
        "mpp": 0.5,
        "batch": 4,
        "max_steps": 6,
        "precision": "fp32",
        "channels_last": False,
        "tensorboard": False,
        "monitor": {"looks": 2, "tiles": 8},
        "method": method | changes.pop("method", {}),
    }
    return TrainConfig.model_validate(values | changes)


def drawn_step(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    grid = grid_size(SIDE, SIDE, WINDOW)
    return {
        "maps": torch.rand(PICTURES, CLASSES, SIDE, SIDE, generator=generator, dtype=torch.float64),
        "pictures": torch.rand(PICTURES, 3, SIDE, SIDE, generator=generator, dtype=torch.float64),
        "places": torch.rand(PICTURES, CLASSES, WINDOW.draws, generator=generator, dtype=torch.float64),
        "coins": torch.rand(PICTURES, CLASSES, grid, generator=generator, dtype=torch.float64),
        "anchors": torch.rand(CLASSES, 4, generator=generator, dtype=torch.float64),
    }


def test_the_network_has_the_stated_number_of_parameters() -> None:
    def count(net: ConfidenceNet) -> int:
        return sum(p.numel() for p in net.parameters())

    assert count(ConfidenceNet(4)) == 7372
    assert count(ConfidenceNet(1)) == 7345
    assert count(ConfidenceNet(1, in_channels=1)) == 7201


def test_the_network_sees_167_pixels() -> None:
    net = ConfidenceNet(1).eval()
    picture = torch.rand(1, 3, 201, 201, requires_grad=True)
    net(picture)[0, 0, 100, 100].backward()
    assert picture.grad is not None
    seen = picture.grad.abs().sum(dim=(0, 1)).nonzero()
    assert (seen.amax(dim=0) - seen.amin(dim=0) + 1).tolist() == [167, 167]


@pytest.mark.parametrize("seed", range(4))
def test_windows_are_drawn_as_the_loop_draws_them(seed: int) -> None:
    step = drawn_step(seed)
    # Some windows must be certain for the weights to differ.
    maps = torch.where(step["maps"] < 0.5, step["maps"] ** 6, step["maps"])
    got = draw_windows(maps, WINDOW, step["places"].float(), step["coins"].float())
    numbers, signs = plain.drawn(
        maps.numpy(), WINDOW.side_px, WINDOW.stride_px, step["places"].numpy(), step["coins"].numpy()
    )
    assert got.number.tolist() == numbers
    assert got.positive.tolist() == signs
    assert 0 < got.positive.float().mean() < 1


@pytest.mark.parametrize("per_positive", [False, True])
@pytest.mark.parametrize("classes", [1, 3])
def test_the_pixel_contrast_and_its_gradient_are_the_literal_loops(classes: int, per_positive: bool) -> None:
    step = drawn_step(5)
    maps = step["maps"][:, :classes].clone().requires_grad_()
    places, coins, anchors = step["places"][:, :classes], step["coins"][:, :classes], step["anchors"][:classes]
    windows = draw_windows(maps, WINDOW, places, coins)
    held, seen = cut_windows(maps[:, :, None], windows, WINDOW), cut_windows(step["pictures"], windows, WINDOW)
    patches = (held * seen).flatten(3).transpose(0, 1).flatten(1, 2)
    loss, _, counted = pixel_contrast(patches, windows.positive.transpose(0, 1).flatten(1), anchors, per_positive)
    loss.backward()
    assert counted == 1

    def literal(given: np.ndarray) -> float:
        corners = plain.windows(SIDE, SIDE, WINDOW.side_px, WINDOW.stride_px)
        cut = [[] for _ in range(classes)]
        signs = [[] for _ in range(classes)]
        for c in range(classes):
            for b in range(PICTURES):
                for n in range(WINDOW.draws):
                    y, x = corners[int(windows.number[b, c, n])]
                    box = np.s_[y : y + WINDOW.side_px, x : x + WINDOW.side_px]
                    cut[c].append(given[b, c][box] * step["pictures"].numpy()[b][(slice(None), *box)])
                    signs[c].append(bool(windows.positive[b, c, n]))
        return plain.pixel_loss(cut, signs, anchors.numpy(), per_positive)

    start = maps.detach().numpy()
    assert loss.item() == pytest.approx(literal(start), rel=1e-9)
    assert maps.grad is not None
    for place in [(0, 0, 5, 5), (1, classes - 1, 9, 3), (2, 0, 12, 12), (2, classes - 1, 8, 8)]:
        up, down = start.copy(), start.copy()
        up[place] += 1e-5
        down[place] -= 1e-5
        slope = (literal(up) - literal(down)) / 2e-5
        assert maps.grad[place].item() == pytest.approx(slope, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("positive", [torch.zeros(2, 6, dtype=torch.bool), torch.ones(2, 6, dtype=torch.bool)])
def test_a_step_without_positives_or_negatives_changes_nothing(positive: torch.Tensor) -> None:
    patches = torch.rand(2, 6, 12, requires_grad=True)
    loss, gap, counted = pixel_contrast(patches, positive, torch.rand(2, 3))
    loss.backward()
    assert (loss.item(), gap.item(), counted.item()) == (0, 0, 0)
    assert patches.grad is not None and not patches.grad.any()


@pytest.mark.parametrize("other", [0.0, 0.3])
def test_the_contrast_of_means_is_the_literal_loop(other: float) -> None:
    step = drawn_step(7)
    windows = draw_windows(step["maps"], WINDOW, step["places"], step["coins"])
    amounts = step["pictures"][:, :1]
    loss, gap = mean_contrast(held_by_windows(step["maps"], amounts, windows, WINDOW), other)
    expected = plain.mean_loss(
        step["maps"].numpy(), amounts[:, 0].numpy(), windows.number.tolist(), WINDOW.side_px, WINDOW.stride_px, other
    )
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    assert gap > 0


def test_the_contrast_of_means_is_best_for_the_true_mask() -> None:
    picture, mask = nuclei_picture(0, side=64)
    rgb = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    amounts = haematoxylin(rgb, fit_stains("macenko", rgb))
    truth = torch.from_numpy(mask)[None, None].float()
    window = WindowOptions(side_px=32, stride_px=16, draws=9)

    def loss(maps: torch.Tensor) -> float:
        places = torch.linspace(0, 1, 9).view(1, 1, 9)
        windows = draw_windows(maps, window, places, torch.rand(1, 1, grid_size(64, 64, window)))
        return mean_contrast(held_by_windows(maps, amounts, windows, window), 0.0)[0].item()

    grown = torch.nn.functional.max_pool2d(truth, 7, 1, 3)
    shrunk = -torch.nn.functional.max_pool2d(-truth, 5, 1, 2)
    best = loss(truth)
    assert all(best < loss(other) for other in (grown, shrunk, torch.ones_like(truth), truth.flip(2), truth * 0.5))


def test_nuclei_are_the_map_over_the_most_haematoxylin_of_plausible_size() -> None:
    picture, mask = nuclei_picture(1, side=96)
    rgb = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    truth = torch.from_numpy(mask).float()
    speck = torch.zeros_like(truth)
    speck[mask.nonzero()[0][0], mask.nonzero()[1][0]] = 1
    tally = MapTally(4)
    tally.add(torch.stack([1 - truth, torch.ones_like(truth), truth, speck])[None], rgb)
    choice = tally.choose(0.02, 0.45)
    assert choice.channel == 2
    assert choice.coverage[1] == pytest.approx(1)
    assert choice.haematoxylin[2] > choice.haematoxylin[0]
    assert 0.5 < choice.separation <= 1
    assert tally.choose(0.5, 0.6).channel == -1
    turned = MapTally(2)
    turned.add(torch.stack([torch.zeros_like(truth), 1 - truth])[None], rgb)
    inverse = turned.choose(0.02, 0.45)
    assert inverse.channel == 3
    assert inverse.separation == pytest.approx(choice.separation)


def test_what_a_map_leaves_out_may_be_the_nuclei() -> None:
    torch.manual_seed(0)
    network = ConfidenceDescriptor(3).eval()
    tiles = torch.rand(2, 3, 20, 24)
    maps = network.confidences(tiles)
    for channel, expected in ((1, maps[:, 1]), (4, 1 - maps[:, 1])):
        network.nucleus_channel.fill_(channel)
        torch.testing.assert_close(network.nuclei(tiles), expected)


@pytest.mark.parametrize("kind", ["means", "pixels"])
def test_a_run_keeps_an_encoder_that_embeds_and_segments(tmp_path: Path, kind: str) -> None:
    source = NucleiTiles(12, 48)
    changes = {"contrast": {"kind": kind}, "least_coverage": 0.0, "most_coverage": 1.0, "crop_px": 36}
    settings = config(method=changes, stain_normalisation={"method": "macenko"})
    result = train(settings, source, tmp_path / "run", SilentReporter(), "cpu")
    assert {"score", "nucleus_channel", "nucleus_coverage", "haematoxylin_separation"} <= set(result.metrics)
    encoder = load_encoder(str(tmp_path / "run"), "cpu")
    assert encoder.spec.pooling == "descriptor of a segmenter, made by hand"
    assert encoder.spec.stain_normalisation is not None
    vectors = encoder.embed(source.images(np.arange(5)))
    assert vectors.shape == (5, 2 * 8 + 3 * 2)
    picture, _ = nuclei_picture(9, side=70)
    found = segment_field(encoder, picture[:, :60], 0.5)
    assert found.instances.shape == found.mask.shape == (70, 60)


def test_a_run_without_a_plausible_map_says_that_it_collapsed(tmp_path: Path) -> None:
    settings = config(method={"least_coverage": 0.98, "most_coverage": 0.99})
    train(settings, NucleiTiles(12, 48), tmp_path / "run", SilentReporter(), "cpu")
    encoder = load_encoder(str(tmp_path / "run"), "cpu")
    with pytest.raises(EncoderError, match="collapsed"):
        segment_field(encoder, nuclei_picture(0)[0], 0.5)


def test_an_encoder_that_does_not_segment_is_refused() -> None:
    with pytest.raises(EncoderError, match="does not segment"):
        segment_field(load_encoder("colour", "cpu"), nuclei_picture(0)[0], 0.5)


def test_a_field_of_another_scale_is_refused(tmp_path: Path) -> None:
    settings = config(method={"least_coverage": 0.0, "most_coverage": 1.0})
    train(settings, NucleiTiles(12, 48), tmp_path / "run", SilentReporter(), "cpu")
    with pytest.raises(UsageError, match=r"2\.5 um/px"):
        segment_field(load_encoder(str(tmp_path / "run"), "cpu"), nuclei_picture(0)[0], 2.5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": {"crop_px": 64}}, "larger than the tiles of 48 px"),
        ({"method": {"window": {"side_px": 60}}}, "larger than the 48 px"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_method(config(**changes), NucleiTiles(8, 48))


def test_crops_stay_inside_and_differ() -> None:
    source = NucleiTiles(8, 48)
    method = build_method(config(method={"crop_px": 20, "window": {"side_px": 8, "stride_px": 4, "draws": 3}}), source)
    tiles = torch.from_numpy(source.images(np.arange(8)))
    for seed in range(3):
        batch = Batch(tiles, torch.arange(8), torch.Generator().manual_seed(seed), 0.0)
        cut = method._crop(batch)  # type: ignore[attr-defined]
        assert cut.shape == (8, 3, 20, 20)
        whole = tiles.permute(0, 3, 1, 2).float() / 255
        for part, picture in zip(cut, whole, strict=True):
            places = picture.unfold(1, 20, 1).unfold(2, 20, 1)
            assert (places == part[:, None, None]).all(dim=4).all(dim=3).all(dim=0).any()


def test_a_plateau_ends_the_run_and_is_remembered() -> None:
    plateau = Plateau(StopOptions(epochs=2, least_change=0.02, least_epochs=3))
    ended = []
    for gap in (0.1, 0.2, 0.3, 0.302, 0.301, 0.4):
        plateau.note(torch.tensor(gap), torch.tensor(1.0))
        plateau.note(torch.tensor(9.0), torch.tensor(0.0))
        copy = Plateau(StopOptions(epochs=2, least_change=0.02, least_epochs=3))
        copy.load_state_dict(plateau.state_dict())
        for each in (plateau, copy):
            each.end_epoch(ALONE)
        assert copy.reached == plateau.reached
        ended.append(plateau.reached)
    assert ended == [False, False, False, False, True, False]


def test_convergence_stops_a_run_before_its_last_step(tmp_path: Path) -> None:
    stop = {"epochs": 1, "least_change": 1e9, "least_epochs": 2}
    result = train(
        config(method={"stop": stop}, max_steps=60), NucleiTiles(8, 48), tmp_path / "run", SilentReporter(), "cpu"
    )
    assert result.finished
    assert result.step == 4  # two passes of two steps


def test_the_descriptor_is_what_it_says() -> None:
    torch.manual_seed(0)
    network = ConfidenceDescriptor(3).eval()
    tiles = torch.rand(2, 3, 20, 24)
    vector = network(tiles)
    maps = network.confidences(tiles)
    assert vector.shape == (2, 16 + 9)
    torch.testing.assert_close(vector[:, 16:19], maps.mean(dim=(2, 3)))
    torch.testing.assert_close(vector[:, 19:22], (maps > 0.5).float().mean(dim=(2, 3)))


def test_otsu_finds_clean_nuclei() -> None:
    picture, mask = nuclei_picture(4, side=160)
    found = classical_nuclei(picture, 0.5)
    assert 2 * (found.mask & mask).sum() / (found.mask.sum() + mask.sum()) > 0.85


@pytest.mark.parametrize("seed", range(4))
def test_a_fields_threshold_separates_its_haematoxylin_best(seed: int) -> None:
    rng = np.random.default_rng(seed)
    amount = rng.gamma(2, 0.2, (40, 40)).astype(np.float32)
    confidence = (1 / (1 + np.exp(-(6 * amount - 3 + rng.normal(0, 1, amount.shape))))).astype(np.float32)
    best, lowest = 0.5, -1.0
    for threshold in 1 / (1 + np.exp(-np.linspace(-1.4, 4.0, 55))):
        above = confidence >= threshold
        share = above.mean()
        if 0 < share < 1:
            between = share * (1 - share) * max(0.0, amount[above].mean() - amount[~above].mean()) ** 2
            if between > lowest:
                best, lowest = threshold, between
    assert _field_threshold(confidence, amount) == pytest.approx(best)


def test_a_field_without_confidence_has_no_nuclei() -> None:
    amount = np.random.default_rng(0).gamma(2, 0.2, (20, 20)).astype(np.float32)
    low = np.full((20, 20), 0.1, np.float32) + 0.05 * (amount > 0.4)
    assert not (low > _field_threshold(low, amount)).any()
