"""The build command: a vector index, and how right it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ui.cli import options

if TYPE_CHECKING:
    from query.cards import IndexCard


def build(
    store: options.Store,
    target_recall: Annotated[float, typer.Option(help="Share of the true neighbours that searches shall find.")] = 0.95,
    kind: Annotated[str, typer.Option(help="ivf-rq: 1 bit a number; ivf-sq: 8 bits, larger.")] = "ivf-rq",
    partitions: Annotated[int | None, typer.Option(help="Lists of the index; chosen by default.")] = None,
    encoder: options.Encoder = None,
    grid: options.Grid = None,
    json_output: options.Json = False,
) -> None:
    """Make the store's vector index and measure its recall; for stores whose vectors do not fit memory."""
    from typing import get_args

    from encoder.errors import UsageError
    from indexer.ann import Kind
    from query.build import BuildRequest, build_index
    from ui.cli.console import make_reporter, say_json

    if kind not in get_args(Kind):
        raise UsageError(f"--kind {kind} is unknown.", f"Choose from: {', '.join(get_args(Kind))}.")
    request = BuildRequest(encoder, grid, kind, target_recall, partitions)  # type: ignore[arg-type]
    card = build_index(store, request, make_reporter())
    if json_output:
        say_json(card.to_json())
        return
    _say_card(card)


def _say_card(card: IndexCard) -> None:
    from query.build import reached
    from ui.cli.console import say, say_table

    size = "" if card.bytes is None else f", {card.bytes / 2**20:,.0f} MiB"
    say(f"{card.kind} index of {card.rows:,} rows in {card.partitions:,} lists, made in {card.seconds:.1f} s{size}")
    say("")
    say(f"recall card: {card.queries} rows of the store asked for, against exact search without an index")
    say_table(
        ["rows allowed", "recall@1", "recall@10", "recall@100", "ms", "engine"],
        [
            [
                f"{100 * line.share:g} %",
                line.recall_at_1,
                line.recall_at_10,
                line.recall_at_100,
                round(line.milliseconds, 1),
                line.engine,
            ]
            for line in card.lines
        ],
    )
    say("")
    say("settings, unfiltered:")
    say_table(
        ["lists probed", "refined", "recall@10", "+-", "ms"],
        [
            [
                "all" if step.probes is None else step.probes,
                f"{step.refine} x",
                step.recall,
                round(step.error, 3),
                round(step.milliseconds, 1),
            ]
            for step in card.steps
        ],
    )
    if reached(card) is None:
        say(
            f"note: no setting reaches the target of {card.target_recall:g}; searches that ask for it read all vectors."
        )
