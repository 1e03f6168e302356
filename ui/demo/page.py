"""The demo's page: one HTML file that holds everything it shows."""

from __future__ import annotations

import base64
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from encoder.progress import format_seconds

if TYPE_CHECKING:
    from ui.demo.steps import DemoRun

THUMBNAIL_PX = 260

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2430; background: #fafafa; margin: 0; }
main { max-width: 1180px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 28px; margin: 0 0 4px; } h2 { font-size: 20px; margin: 36px 0 8px; }
p { max-width: 74ch; } .quiet { color: #5a6675; }
.warn { background: #fff4d6; border-left: 4px solid #d99a00; padding: 10px 14px; }
table { border-collapse: collapse; margin: 8px 0; } th { text-align: left; color: #5a6675; font-weight: 600; }
th, td { padding: 4px 16px 4px 0; border-bottom: 1px solid #e4e7eb; } td.n, th.n { text-align: right; }
img { max-width: 100%; height: auto; } figure { margin: 12px 0 28px; }
figure img { background: #fff; box-shadow: 0 1px 4px #0003; border-radius: 4px; }
.slides { display: flex; flex-wrap: wrap; gap: 16px; }
.slides figure { margin: 0; width: 200px; font-size: 13px; overflow-wrap: anywhere; }
.slides img { width: 200px; height: 160px; object-fit: contain; }
code, pre { font: 14px/1.5 ui-monospace, monospace; background: #eef1f4; border-radius: 4px; }
code { padding: 1px 5px; } pre { padding: 12px 14px; overflow-x: auto; }
"""


def write_page(run: DemoRun, target: Path) -> Path:
    """Write what the demo did and found as one self-contained page.

    Args:
        run: the demo's slides, training, index and searches.
        target: the HTML file.

    Returns:
        The file.
    """
    several = len(run.cohort.slides) > 1 and not run.smoke
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width'><title>HistoSeek demo</title>",
        f"<style>{_STYLE}</style></head><body><main>",
        "<h1>HistoSeek demo</h1>",
        f"<p class='quiet'>{escape(_sentence(run.slides.origin))} An encoder was trained on them without labels, "
        "every tile was embedded, and the store was asked which tissue looks like the framed tile.</p>",
    ]
    if run.smoke:
        parts.append(
            "<p class='warn'>This is a smoke run on one small slide: it shows that the parts work together, "
            "and nothing about how well they find tissue.</p>"
        )
    if run.slides.synthetic:
        parts.append("<p class='warn'>The slides were drawn by a program: no real tissue is shown here.</p>")
    parts.append("<h2>Similar tissue</h2>")
    parts.append(
        "<p>Each search starts from the framed tile at the left. "
        + ("Its own slide is left out. " if several else "")
        + "The distance is 1 minus the cosine of the two vectors: 0 is the same tile.</p>"
    )
    for results, picture in zip(run.searches, run.montages, strict=True):
        row = results.to_json_rows()[0] if len(results.table) else None
        caption = f"Best hit: {row['slide_id']}, distance {row['distance']:.3f}." if row else "No hit."
        parts.append(
            f"<figure><img alt='A query tile and its most similar tiles' src='{_picture(picture.read_bytes())}'>"
            f"<figcaption class='quiet'>{escape(caption)}</figcaption></figure>"
        )
    parts += [_slides(run), _work(run), _next(run), "</main></body></html>"]
    target.write_text("\n".join(parts), encoding="utf-8")
    return target


def _slides(run: DemoRun) -> str:
    figures = []
    for row in run.cohort.slides.select(["slide_id", "status", "mpp", "mpp_source"]).to_pylist():
        jpeg = run.cohort.store.thumbnail(row["slide_id"])
        image = f"<img alt='' src='{_picture(_smaller(jpeg))}'>" if jpeg else ""
        mpp = f"{row['mpp']:.3f} um/px ({row['mpp_source']})" if row["mpp"] else "mpp unknown"
        figures.append(
            f"<figure>{image}<figcaption>{escape(row['slide_id'])}<br>"
            f"<span class='quiet'>{escape(row['status'])}, {escape(mpp)}</span></figcaption></figure>"
        )
    problems = "".join(
        f"<p class='warn'>{escape(failure.slide_id)}: {escape(failure.message)}</p>"
        for failure in run.indexing.quarantined
    )
    return f"<h2>Slides</h2><div class='slides'>{''.join(figures)}</div>{problems}"


def _work(run: DemoRun) -> str:
    training, indexing = run.training, run.indexing
    stages = "".join(
        f"<tr><td>{escape(name)}</td><td class='n'>{stage.seconds:.1f} s</td><td class='n'>{stage.share:.0%}</td></tr>"
        for name, stage in indexing.stages.items()
    )
    return (
        "<h2>What was done</h2>"
        f"<p>Training: {training.step} steps in {format_seconds(training.seconds)}. "
        f"Indexing: {indexing.tiles} tiles of {indexing.indexed} slides in "
        f"{format_seconds(indexing.seconds)}, limited by: {escape(indexing.limited_by or 'nothing to do')}.</p>"
        f"<table><tr><th>stage</th><th class='n'>busy</th><th class='n'>share</th></tr>{stages}</table>"
    )


def _next(run: DemoRun) -> str:
    store = escape(str(run.store))
    return (
        "<h2>Go on from here</h2>"
        f"<pre>histoseek ui --store {store}\nhistoseek status --store {store}\n"
        f'histoseek sql --store {store} "SELECT slide_id, count(*) AS tiles FROM tiles GROUP BY slide_id"</pre>'
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _smaller(jpeg: bytes) -> bytes:
    from PIL import Image

    image = Image.open(BytesIO(jpeg)).convert("RGB")
    image.thumbnail((2 * THUMBNAIL_PX, 2 * THUMBNAIL_PX))
    out = BytesIO()
    image.save(out, "JPEG", quality=85)
    return out.getvalue()


def _picture(content: bytes) -> str:
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
