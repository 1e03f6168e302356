"""The report of an evaluation: one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from query.evaluate import EncoderOutcome, Evaluation
from query.knn import KnnTask
from query.output_path import check_output_file, whole_file

_STYLE = """
:root { color-scheme: light; --ink: #1d2129; --faint: #667080; --line: #dfe3e8; --bar: #7c3a68; --warn: #9a3412; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 66rem;
  margin: 2.5rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p.about, td.faint, .faint { color: var(--faint); }
table { border-collapse: collapse; width: 100%; margin: .8rem 0; }
th, td { text-align: left; padding: .4rem .7rem; border-bottom: 1px solid var(--line); vertical-align: middle; }
th { font-weight: 600; font-size: .85rem; color: var(--faint); }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
ul.warnings { background: #fff7ed; border-left: 4px solid var(--warn); padding: .7rem 1rem .7rem 2rem; }
table.confusion { width: auto; } table.confusion td, table.confusion tr:first-child th { text-align: right; }
table.confusion td { min-width: 3rem; font-variant-numeric: tabular-nums; }
"""
_WIDTH, _HEIGHT = 220, 26


def write_report(evaluation: Evaluation, path: Path | str) -> Path:
    """Write the report page, whole or not at all.

    Args:
        path: of the HTML file; its folder is made.

    Raises:
        UsageError: no file can be written there.
    """
    path = check_output_file(path)
    with whole_file(path) as part:
        part.write_text(report_html(evaluation), encoding="utf-8")
    return path


def report_html(evaluation: Evaluation) -> str:
    """The report page as text."""
    task = evaluation.encoders[0].task
    title = f"Encoders compared on {escape(Path(evaluation.source).name or evaluation.source)}"
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{_STYLE}</style></head><body>",
            f"<h1>{title}</h1>",
            f'<p class="about">Label <b>{escape(evaluation.label)}</b>: balanced accuracy of the {evaluation.k} '
            f"nearest neighbours, {escape(task.rule)}. Intervals are 95 % bootstrap intervals over {task.unit_name}. "
            f"{_chance_words(task)}</p>",
            _warnings(evaluation),
            _score_table(evaluation),
            "<h2>Classes</h2>",
            _class_table(evaluation),
            _left_out(evaluation),
            "<h2>What was taken for what</h2>",
            '<p class="about">Rows are the true class, columns the predicted one; tiles.</p>',
            *(_confusion(item) for item in evaluation.encoders),
            _notes(evaluation),
            "</body></html>",
        ]
    )


def _score_table(evaluation: Evaluation) -> str:
    rows = []
    for item in evaluation.encoders:
        rate = "" if item.tiles_per_second is None else f"{item.tiles_per_second:,.0f}"
        best = len(evaluation.encoders) > 1 and item is evaluation.best
        name = f"<b>{escape(item.encoder)}</b>" if best else escape(item.encoder)
        rows.append(
            f'<tr><td>{name}<br><span class="faint">{escape(item.encoder_id)}</span></td>'
            f'<td class="number">{_percent(item.outcome.score.value)}</td>'
            f'<td class="number">{_interval(item)}</td><td>{_bar(item)}</td>'
            f'<td class="number">{item.task.queries.size:,}</td><td class="number">{item.task.reference.size:,}</td>'
            f'<td class="number">{item.dim}</td><td class="number">{rate}</td></tr>'
        )
    return (
        '<table><tr><th>Encoder</th><th class="number">Balanced accuracy</th><th class="number">95 % interval</th>'
        '<th>0 to 100 %, chance dashed</th><th class="number">Tiles</th><th class="number">Reference</th>'
        '<th class="number">Dim</th><th class="number">Tiles/s</th></tr>' + "".join(rows) + "</table>"
    )


def _bar(item: EncoderOutcome) -> str:
    score, chance = item.outcome.score, item.task.chance
    if np.isnan(score.value):
        return ""
    middle = _HEIGHT / 2
    marks = [f'<rect x="0" y="6" width="{score.value * _WIDTH:.1f}" height="14" fill="#7c3a68" opacity=".8"/>']
    if not np.isnan(score.low):
        left, right = score.low * _WIDTH, score.high * _WIDTH
        top, end = middle - 5, middle + 5
        marks += [
            f'<path d="M{left:.1f} {top}V{end}M{right:.1f} {top}V{end}M{left:.1f} {middle}H{right:.1f}" '
            'stroke="#1d2129" stroke-width="2"/>'
        ]
    x = chance * _WIDTH
    dashed = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{_HEIGHT}" stroke="#667080" stroke-dasharray="3 3"/>'
    frame = f'<rect x="0" y="6" width="{_WIDTH}" height="14" fill="#eef0f3"/>'
    return f'<svg width="{_WIDTH + 2}" height="{_HEIGHT}" role="img">{frame}{"".join(marks)}{dashed}</svg>'


def _class_table(evaluation: Evaluation) -> str:
    task = evaluation.encoders[0].task
    counts = np.bincount(task.truth[task.queries], minlength=len(task.classes))
    head = "".join(f'<th class="number">{escape(item.encoder)}</th>' for item in evaluation.encoders)
    rows = []
    for number, name in enumerate(task.classes):
        cells = "".join(
            f'<td class="number">{_percent(item.outcome.recalls.get(name, float("nan")))}</td>'
            for item in evaluation.encoders
        )
        mark = ' <span class="faint">(not in the mean)</span>' if name in task.left_out else ""
        rows.append(f'<tr><td>{escape(name)}{mark}</td><td class="number">{counts[number]:,}</td>{cells}</tr>')
    return (
        f'<table><tr><th>Class</th><th class="number">Tiles</th>{head}</tr>'
        + "".join(rows)
        + '</table><p class="about">Share of each class that is predicted as such.</p>'
    )


def _confusion(item: EncoderOutcome) -> str:
    names = item.task.classes
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    rows = []
    for number, name in enumerate(names):
        counts: NDArray[np.int64] = item.outcome.confusion[number]
        total = max(1, int(counts.sum()))
        cells = "".join(
            f'<td style="background: rgba(124, 58, 104, {0.6 * count / total:.2f})">{count:,}</td>' for count in counts
        )
        rows.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    return f'<h3>{escape(item.encoder)}</h3><table class="confusion"><tr><th></th>{head}</tr>{"".join(rows)}</table>'


def _warnings(evaluation: Evaluation) -> str:
    found = dict.fromkeys(text for item in evaluation.encoders for text in item.task.warnings)
    return f'<ul class="warnings">{_items(found)}</ul>' if found else ""


def _left_out(evaluation: Evaluation) -> str:
    gaps = {name: why for item in evaluation.encoders for name, why in item.task.left_out.items()}
    if not gaps:
        return ""
    listed = _items([f"{name}: {why}" for name, why in gaps.items()])
    return f"<h2>Left out of the mean</h2><ul>{listed}</ul>"


def _notes(evaluation: Evaluation) -> str:
    notes = dict.fromkeys(text for item in evaluation.encoders for text in item.task.notes)
    notes |= dict.fromkeys(f"{item.encoder}: {text}" for item in evaluation.encoders for text in item.notes)
    for item in evaluation.encoders:
        if item.outcome.unanswered:
            notes[f"{item.encoder}: {item.outcome.unanswered:,} tiles had no neighbour that may vote."] = None
    return f"<h2>Notes</h2><ul>{_items(notes)}</ul>" if notes else ""


def _items(texts: Iterable[str]) -> str:
    return "".join(f"<li>{escape(text)}</li>" for text in texts)


def _chance_words(task: KnnTask) -> str:
    return "" if np.isnan(task.chance) else f"Guessing gives {_percent(task.chance)}."


def _interval(item: EncoderOutcome) -> str:
    score = item.outcome.score
    return "none" if np.isnan(score.low) else f"{100 * score.low:.1f} to {100 * score.high:.1f} %"


def _percent(value: float) -> str:
    return "none" if np.isnan(value) else f"{100 * value:.1f} %"
