"""The demo command: from slides to a page of similar tissue in about five minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ui.cli import options


def demo(
    slides: Annotated[
        Path | None, typer.Option(help="Folder of slides; a manifest.csv in it is used. A sample otherwise.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the encoder, the store and the report.")] = Path("demo-out"),
    train_seconds: Annotated[float, typer.Option(help="Longest training time.")] = 110.0,
    json_output: options.Json = False,
) -> None:
    """Pretrain a small encoder on slides, index them, search, and write a page with what was found."""
    from ui.cli.console import make_reporter, say, say_json
    from ui.demo.steps import run_demo

    outcome = run_demo(slides, out, train_seconds, make_reporter())
    if json_output:
        say_json(outcome.to_dict())
    else:
        say(f"montage: {outcome.montages[0]}")
        say(f"report:  {outcome.report}")
        say(f"explore: histoseek ui --store {outcome.store}")
        say(f"(in a clone that is: .venv/bin/histoseek ui --store {outcome.store})")
    if outcome.exit_code:
        raise typer.Exit(outcome.exit_code)
