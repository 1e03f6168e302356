"""Training configs: a schema, a YAML file, and `key=value` overrides."""

from __future__ import annotations

import contextlib
import difflib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, field_validator

from encoder.contract import Precision
from encoder.errors import ConfigError
from encoder.methods.catalogue import method_names, options_class
from encoder.methods.protocol import MethodOptions
from encoder.stain.normaliser import StainNormalisation


class OptimiserConfig(BaseModel):
    """How weights are changed.

    Attributes:
        kind: `adamw`, or `sgd` with momentum 0.9.
        lr: highest learning rate.
        final_lr_share: share of `lr` that is left at the end of the cosine.
        warmup_steps: steps over which the rate rises from near zero.
        weight_decay: on matrices and kernels only, not on biases and normalisation.
        clip_norm: largest norm of the gradient of a phase.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(default=1e-3, gt=0)
    final_lr_share: float = Field(default=0.01, ge=0, le=1)
    warmup_steps: int = Field(default=50, ge=0)
    weight_decay: float = Field(default=0.05, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)


class MonitorConfig(BaseModel):
    """How a run watches itself without labels.

    Attributes:
        looks: how often it looks, evenly over the run, the last time at its end.
        tiles: size of the fixed sample that is looked at.
        labelled_tiles: most labelled tiles for the kNN figures.
        k: neighbours for the kNN figures.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    looks: int = Field(default=10, ge=1)
    tiles: int = Field(default=1024, ge=8)
    labelled_tiles: int = Field(default=5000, ge=0)
    k: int = Field(default=20, ge=1)


class TrainConfig(BaseModel):
    """Everything that decides a training run, besides the tiles.

    Attributes:
        name: readable name of the encoder.
        method: the method and its options; `method.name` says which.
        tile_px: side of the tiles that the encoder takes.
        mpp: micrometres per pixel of those tiles; None where unknown.
        stain_normalisation: of every tile before the network, in training and when embedding; None for none.
        mean, std: per channel in 0..1, for the normalisation before the network; typical of H&E tissue.
        seed: of the weights, the order of the tiles and the views.
        batch: tiles per step.
        max_steps: steps of the whole run.
        max_seconds: wall time of the whole run, resumed parts together; the schedule then follows whichever
            of steps and time is further, so that a run that time ends is annealed as well.
        precision: arithmetic of training and of the encoder.
        channels_last: memory layout that convolutions run faster in.
        compile: compile the network; pays on a GPU.
        cache_mb: memory for decoded tiles.
        log_every_steps: steps between two lines of metrics.
        save_every_steps: steps between two saved states.
        tensorboard: write metrics for TensorBoard as well.
        optimiser: how weights are changed.
        monitor: how the run watches itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    method: SerializeAsAny[MethodOptions]
    tile_px: int = Field(ge=16)
    mpp: float | None = Field(default=None, gt=0)
    stain_normalisation: StainNormalisation | None = None
    mean: tuple[float, float, float] = (0.7, 0.55, 0.7)
    std: tuple[float, float, float] = (0.2, 0.2, 0.2)
    seed: int = Field(default=0, ge=0)
    batch: int = Field(ge=2)
    max_steps: int = Field(ge=1)
    max_seconds: float | None = Field(default=None, gt=0)
    precision: Precision = "bf16"
    channels_last: bool = True
    compile: bool = False
    cache_mb: int = Field(default=2048, ge=0)
    log_every_steps: int = Field(default=10, ge=1)
    save_every_steps: int = Field(default=200, ge=1)
    tensorboard: bool = True
    optimiser: OptimiserConfig = OptimiserConfig()
    monitor: MonitorConfig = MonitorConfig()

    @field_validator("method", mode="before")
    @classmethod
    def _of_its_method(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        name = value.get("name")
        if name not in method_names():
            raise ValueError(f"name is {name!r}, not one of {', '.join(method_names())}")
        return options_class(str(name)).model_validate(value)


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a training config.

    Args:
        path: a YAML file.
        overrides: `key=value`, nested keys with dots, values in YAML, such as `optimiser.lr=1e-3`.

    Raises:
        ConfigError: the file is absent or not YAML, or a key or value does not fit; names the nearest key.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"Config {path} does not exist.", fix="Give the path of a YAML file.") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"Config {path} cannot be read: {error}", fix="Correct the file.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"Config {path} is no table of keys and values.", fix="Write one `key: value` per line.")
    for override in overrides:
        _override(values, override)
    where = f"{path} with {', '.join(overrides)}" if overrides else str(path)
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"Config {where}: {_explain(error, values)}", fix="Correct it.") from error


def dump_config(config: TrainConfig) -> str:
    """The config as YAML that `load_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"Override {override!r} is not key=value.", fix="Write, for example, max_steps=500.")
    *parents, last = key.strip().split(".")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"The value of override {override!r} cannot be read.", fix="Quote it.") from error
    # YAML 1.1 takes 1e-3 for a text; whoever writes it means the number.
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    table = values
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise ConfigError(f"Override {override!r}: {parent} has no keys below it.", fix="Correct the key.")
    table[last] = value


def _explain(error: ValidationError, values: dict[str, Any]) -> str:
    parts = []
    for problem in error.errors():
        place = [str(step) for step in problem["loc"]]
        key = ".".join(place)
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(place[-1], _keys_at(place[:-1], values), n=1, cutoff=0.5)
            hint = f"; did you mean {'.'.join([*place[:-1], near[0]])}" if near else ""
            parts.append(f"unknown key {key}{hint}")
        elif problem["type"] == "missing":
            parts.append(f"key {key} is missing")
        else:
            text = problem["msg"].removeprefix("Value error, ")
            parts.append(
                f"{key}: {text}" if isinstance(problem["input"], dict) else f"{key}={problem['input']!r}: {text}"
            )
    return "; ".join(parts) + "."


def _keys_at(place: Sequence[str], values: dict[str, Any]) -> list[str]:
    model: type[BaseModel] = TrainConfig
    for depth, step in enumerate(place):
        if depth == 0 and step == "method":
            model = options_class(str(values["method"]["name"]))
            continue
        field = model.model_fields.get(step)
        inner = _model_of(field.annotation) if field is not None else None
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return next((m for m in map(_model_of, typing.get_args(annotation)) if m is not None), None)
    return None
