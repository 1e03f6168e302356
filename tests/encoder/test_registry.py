"""Encoders by name, and their files."""

from __future__ import annotations

import threading
import time
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from encoder import plugins, pretrained
from encoder.architectures import build_timm
from encoder.checkpoint import checkpoint_files, encoder_from_files
from encoder.contract import EncoderSpec
from encoder.errors import EncoderError
from encoder.registry import load_encoder

# Small, quick to build, and 160 px at least, so that resizing is part of the test.
MODEL = "test_byobnet"
TILES = np.random.default_rng(0).integers(0, 256, (5, 40, 40, 3), dtype=np.uint8)


class Thirds(nn.Module):
    """Mean colour of each third of a tile, scaled by a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((9,), 2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([part.mean(dim=(2, 3)) for part in x.tensor_split(3, dim=3)], dim=1) * self.weight


def make_plugin() -> plugins.Plugin:
    spec = EncoderSpec("thirds", "thirds", {}, 9, 30, 0.5, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return plugins.Plugin(Thirds(), spec)


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> str:
    point = EntryPoint("thirds", f"{__name__}:make_plugin", plugins.GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda self: make_plugin)
    monkeypatch.setattr(plugins, "entry_points", lambda group, name=None: [point] if name in (None, "thirds") else [])
    return "thirds"


@pytest.mark.parametrize("name", [f"random:{MODEL}", f"random:{MODEL}@3", "colour"])
def test_files_give_the_same_vectors(name: str) -> None:
    encoder = load_encoder(name, "cpu")
    vectors = encoder.embed(TILES)
    assert vectors.shape == (5, encoder.spec.dim) and vectors.dtype == np.float32
    files = checkpoint_files(encoder)
    assert sorted(files) == ["encoder.json", "encoder.safetensors"]
    again = encoder_from_files(files, "cpu")
    assert again.spec == encoder.spec and again.spec.encoder_id == encoder.spec.encoder_id
    assert np.array_equal(again.embed(TILES), vectors)
    assert checkpoint_files(again) == files


def test_plugins_load_by_name_and_from_files(plugin: str) -> None:
    encoder = load_encoder(plugin, "cpu")
    assert encoder.spec.architecture == {"kind": "plugin", "name": "thirds"} and len(encoder.spec.weights_sha256) == 64
    again = encoder_from_files(checkpoint_files(encoder), "cpu")
    assert np.array_equal(again.embed(TILES), encoder.embed(TILES))


def test_a_plugin_that_is_gone_is_named(plugin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = checkpoint_files(load_encoder(plugin, "cpu"))
    monkeypatch.setattr(plugins, "entry_points", lambda group, name=None: [])
    with pytest.raises(EncoderError, match="'thirds' is offered by no installed package"):
        encoder_from_files(files, "cpu")


def test_seeds_decide_untrained_weights_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, same, other = (load_encoder(f"random:{MODEL}{s}", "cpu") for s in ("", "@0", "@1"))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.spec.encoder_id == same.spec.encoder_id != other.spec.encoder_id
    assert np.array_equal(first.embed(TILES), same.embed(TILES))
    assert not np.allclose(first.embed(TILES), other.embed(TILES))


def test_spec_follows_the_model(tmp_path: Path) -> None:
    spec = load_encoder(f"random:{MODEL}", "cpu").spec
    settings: dict[str, Any] = vars(build_timm(MODEL))["pretrained_cfg"]
    assert spec.tile_px == settings["input_size"][1] and spec.mpp is None
    assert spec.mean == tuple(settings["mean"]) and spec.std == tuple(settings["std"])


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_from_a_file_with_its_classifier_left_out(tmp_path: Path, suffix: str) -> None:
    import timm

    torch.manual_seed(1)
    whole = timm.create_model(MODEL, pretrained=False, num_classes=7)
    file = tmp_path / f"w.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": whole.state_dict()}, file)
    else:
        safetensors.torch.save_file(whole.state_dict(), file)
    encoder = load_encoder(f"timm:{MODEL}@{file}", "cpu")
    assert encoder.spec.method == "timm" and encoder.spec.name == f"timm:{MODEL}@w.{suffix}"
    mine = encoder.module.state_dict()
    assert all(torch.equal(mine[key], whole.state_dict()[key]) for key in mine)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    safetensors.torch.save_file(build_timm("test_resnet").state_dict(), file)
    with pytest.raises(EncoderError, match=f"does not hold the weights of {MODEL}.*missing"):
        load_encoder(f"timm:{MODEL}@{file}", "cpu")
    file.write_bytes(b"no weights")
    with pytest.raises(EncoderError, match="cannot be read"):
        load_encoder(f"timm:{MODEL}@{file}", "cpu")
    with pytest.raises(EncoderError, match="does not exist"):
        load_encoder(f"timm:{MODEL}@{tmp_path / 'absent.pth'}", "cpu")


def test_a_hub_out_of_reach_is_said_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def never(*args: object, **settings: object) -> None:
        over.wait(30)
        raise TimeoutError

    monkeypatch.setattr(pretrained, "_REACH_SECONDS", 0.2)
    monkeypatch.setattr(pretrained, "_cached", lambda repository: False)
    monkeypatch.setattr(pretrained.urllib.request, "urlopen", never)
    began = time.monotonic()
    with pytest.raises(EncoderError, match=r"hub cannot be reached \(no answer\).*timm:resnet18@FILE"):
        load_encoder("timm:resnet18", "cpu")
    assert time.monotonic() - began < 10
    over.set()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("random:resnet19", "Did you mean .*resnet1"),
        (f"random:{MODEL}@x", "seed .* not a whole number"),
        ("nothing", "no encoder 'nothing'.*random:MODEL.*colour"),
    ],
)
def test_unknown_names_say_what_would_do(name: str, said: str) -> None:
    with pytest.raises(EncoderError, match=said):
        load_encoder(name, "cpu")


def test_colour_statistics_equal_numpy() -> None:
    encoder = load_encoder("colour", "cpu")
    side = encoder.spec.tile_px
    tile = np.random.default_rng(1).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    vector = encoder.embed(tile)[0]
    pixels = tile[0].reshape(-1, 3) / 255
    values = np.concatenate([pixels, -np.log(np.maximum(pixels, 1 / 255)) / 5.541], axis=1)
    white = np.array([1, 1, 1, 0, 0, 0])
    expected = [values.mean(0) - white, values.std(0, ddof=1)]
    expected += [np.quantile(values, q, axis=0, method="nearest") - white for q in (0.05, 0.25, 0.5, 0.75, 0.95)]
    assert encoder.spec.dim == 42
    assert np.allclose(vector, np.concatenate(expected), atol=5e-3)
    assert np.abs(encoder.embed(np.full((1, side, side, 3), 255, np.uint8))).max() < 1e-6
