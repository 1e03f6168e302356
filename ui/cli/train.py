"""Commands about encoders: pretrain one, list those there are."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ui.cli import options

if TYPE_CHECKING:
    from encoder.seeds import SeedsResult


def pretrain(
    config: Annotated[str, typer.Argument(help="Config file, or the name of a shipped one: contrastive-small.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; an unfinished run there goes on.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value settings over the config's.", show_default=False)
    ] = None,
    tiles: Annotated[list[Path] | None, typer.Option(help="Folder of tile pictures; may be repeated.")] = None,
    slides: Annotated[list[Path] | None, typer.Option(help="Folder or file of slides; may be repeated.")] = None,
    store: Annotated[str | None, typer.Option(help="Store whose kept tile images to train on.")] = None,
    manifest: options.Manifest = None,
    cohort_mpp: options.CohortMpp = None,
    max_tiles: Annotated[int, typer.Option(min=1, help="At most so many tiles are drawn from slides.")] = 200_000,
    seeds: Annotated[
        int | None, typer.Option(min=2, help="Train with so many seeds, report their spread, keep the best.")
    ] = None,
    device: options.Device = None,
    json_output: options.Json = False,
) -> None:
    """Train an encoder on a cohort, without labels."""
    from encoder.config import load_config
    from encoder.errors import UsageError
    from encoder.progress import format_seconds
    from encoder.seeds import train_seeds
    from encoder.train import train
    from ui.cli.console import make_reporter, say, say_json
    from ui.shipped import config_path
    from ui.sources import training_source

    if sum(bool(given) for given in (tiles, slides, store)) != 1:
        raise UsageError("pretrain takes its tiles from one kind of place.", "Give --tiles, --slides or --store.")
    reporter = make_reporter()
    settings = load_config(config_path(config), overrides or [])
    source = training_source(
        settings,
        tiles=tiles or [],
        slides=slides or [],
        store=store,
        manifest=manifest,
        cohort_mpp=cohort_mpp,
        max_tiles=max_tiles,
        reporter=reporter,
    )
    if seeds is not None:
        _report_seeds(train_seeds(settings, source, out, seeds, reporter, device), json_output)
        return
    result = train(settings, source, out, reporter, device=device)
    if json_output:
        say_json(asdict(result))
    elif result.checkpoint is not None:
        say(f"encoder: {result.checkpoint} ({result.step} steps, {format_seconds(result.seconds)})")
    if not result.finished:
        raise KeyboardInterrupt


def _report_seeds(result: SeedsResult, json_output: bool) -> None:
    from ui.cli.console import say, say_json, say_table

    if not result.finished:
        raise KeyboardInterrupt
    if json_output:
        say_json(asdict(result))
        return
    names = list(result.spread)
    say_table(
        ["seed", *names],
        [[seed, *(f"{each[name]:.3g}" for name in names)] for seed, each in result.metrics.items()]
        + [["mean ± sd", *(f"{s.mean:.3g} ± {s.std:.2g}" for s in result.spread.values())]],
    )
    say(f"encoder: {result.checkpoint} (seed {result.best_seed}, the best score)")


def encoders(
    store: Annotated[str | None, typer.Option("--store", help="List the encoders of this store.")] = None,
    json_output: options.Json = False,
) -> None:
    """List the encoders that can be named, or those that a store holds."""
    from ui.cli.console import say, say_json, say_table

    if store is not None:
        from query import open_cohort

        rows = open_cohort(store).status()["vectors"]
        if json_output:
            say_json({"encoders": rows})
        else:
            say_table(["encoder id", "name", "grid", "rows"], [list(row.values()) for row in rows])
        return
    from encoder.registry import FORMS
    from ui.shipped import shipped_configs

    forms = [{"form": form, "meaning": meaning} for form, meaning in FORMS.items()]
    configs = shipped_configs()
    if json_output:
        say_json({"forms": forms, "configs": configs})
        return
    say_table(["encoder", "what it is"], [list(row.values()) for row in forms])
    say("")
    say("configs for `histoseek pretrain`: " + ", ".join(configs))
