"""Checkpoint folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from encoder.checkpoint import load_checkpoint, save_checkpoint
from encoder.contract import EncoderSpec
from encoder.errors import EncoderError
from encoder.registry import load_encoder, timm_spec

MODEL = "test_byobnet"
TILES = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)


def make(folder: Path, seed: int) -> EncoderSpec:
    from encoder.architectures import build_timm

    torch.manual_seed(seed)
    module = build_timm(MODEL)
    return save_checkpoint(folder, module, timm_spec("x", "test", MODEL, module), {"a": 1}, {"seed": seed}, {"m": 0.5})


def test_a_folder_loads_alone_or_inside_its_run(tmp_path: Path) -> None:
    spec = make(tmp_path / "run" / "checkpoint", 0)
    direct, by_run = load_checkpoint(tmp_path / "run" / "checkpoint", "cpu"), load_encoder(str(tmp_path / "run"), "cpu")
    assert direct.spec == by_run.spec == spec
    assert direct.record == {"config": {"a": 1}, "provenance": {"seed": 0}, "metrics": {"m": 0.5}}
    assert np.array_equal(direct.embed(TILES), by_run.embed(TILES))
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["checkpoint"]


def test_saving_again_replaces_the_folder(tmp_path: Path) -> None:
    first, second = make(tmp_path / "c", 0), make(tmp_path / "c", 1)
    assert first.encoder_id != second.encoder_id
    assert load_checkpoint(tmp_path / "c", "cpu").spec == second
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_damage_is_noticed(tmp_path: Path) -> None:
    make(tmp_path / "c", 0)
    weights = tmp_path / "c" / "encoder.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(EncoderError, match=r"not those that its encoder\.json describes"):
        load_checkpoint(tmp_path / "c", "cpu")
    (tmp_path / "c" / "encoder.json").write_text("{")
    with pytest.raises(EncoderError, match=r"encoder\.json of .* cannot be read"):
        load_checkpoint(tmp_path / "c", "cpu")
    with pytest.raises(EncoderError, match="no finished checkpoint"):
        load_checkpoint(tmp_path, "cpu")
