"""Configs, overrides and what is said of mistakes in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from encoder.config import dump_config, load_config
from encoder.errors import ConfigError
from encoder.methods.contrastive import ContrastiveOptions

MINIMAL = "name: x\nmethod: {name: contrastive}\ntile_px: 32\nbatch: 8\nmax_steps: 4\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "c.yaml"
    file.write_text(MINIMAL)
    return file


def test_overrides_reach_nested_keys_with_yaml_values(path: Path) -> None:
    config = load_config(
        path, ["optimiser.lr=1e-2", "method.augment.flip=false", "mpp=0.5", "method.network.arguments={layers: [1, 1]}"]
    )
    assert config.optimiser.lr == 0.01 and config.mpp == 0.5
    assert isinstance(config.method, ContrastiveOptions)
    assert config.method.augment.flip is False
    assert config.method.network.arguments == {"layers": [1, 1]}


def test_dumped_config_reads_back_equal(path: Path, tmp_path: Path) -> None:
    config = load_config(path, ["method.temperature=0.31"])
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(config))
    assert load_config(again) == config


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("max_step=3", "unknown key max_step; did you mean max_steps"),
        ("optimiser.weight_deca=3", "did you mean optimiser.weight_decay"),
        ("method.augment.blur_probabilty=1", "did you mean method.augment.blur_probability"),
        ("method.temprature=1", "did you mean method.temperature"),
        ("method.name=contrast", "name is 'contrast', not one of contrastive"),
        ("batch=one", "batch='one'"),
        ("batch=1", "greater than or equal to 2"),
        ("method.augment.min_area=0.9", None),
        ("batch", "not key=value"),
        ("batch.size=3", "batch has no keys below it"),
        ("zzz=1", "unknown key zzz"),
    ],
)
def test_mistakes_are_named_with_the_nearest_key(path: Path, override: str, said: str | None) -> None:
    if said is None:
        load_config(path, [override])
        return
    with pytest.raises(ConfigError, match=said):
        load_config(path, [override])


def test_missing_keys_files_and_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "absent.yaml")
    file = tmp_path / "c.yaml"
    file.write_text("just text")
    with pytest.raises(ConfigError, match="no table"):
        load_config(file)
    file.write_text("a: [")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(file)
    file.write_text(MINIMAL.replace("batch: 8\n", ""))
    with pytest.raises(ConfigError, match="key batch is missing"):
        load_config(file)


@pytest.mark.parametrize("name", ["contrastive-small", "contrastive"])
def test_shipped_configs_are_valid_and_named_like_their_files(name: str) -> None:
    root = Path(__file__).parents[2]
    config = load_config(root / "configs" / "encoder" / f"{name}.yaml")
    assert config.name == name
