"""Which slides the demo uses: those given, a freely licensed sample, or a drawn cohort."""

from __future__ import annotations

import hashlib
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from encoder.errors import UsageError
from encoder.progress import Reporter

# OpenSlide's own test slide (Carnegie Mellon University), CC0.
SAMPLE_URL = "https://openslide.cs.cmu.edu/download/openslide-testdata/Aperio/CMU-1-Small-Region.svs"
SAMPLE_SHA256 = "ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7"
ANSWER_SECONDS = 10.0


@dataclass(frozen=True)
class DemoSlides:
    """Slides for the demo.

    Attributes:
        folder: where they lie.
        manifest: their CSV, where there is one.
        origin: where they come from, in words.
        synthetic: True where they were drawn.
    """

    folder: Path
    manifest: Path | None
    origin: str
    synthetic: bool = False


def choose_slides(given: Path | None, out: Path, reporter: Reporter) -> DemoSlides:
    """Take the given folder, else download the sample slide, else draw a cohort and say so.

    Args:
        given: folder of slides, or None.
        out: the demo's folder; a sample or drawn slides go below it.
        reporter: is told what was chosen and why.

    Raises:
        UsageError: the given folder does not exist.
    """
    if given is not None:
        if not given.is_dir():
            raise UsageError(f"the slide folder '{given}' does not exist.", "Give a folder that holds slides.")
        manifest = given / "manifest.csv"
        return DemoSlides(given, manifest if manifest.is_file() else None, f"the slides in {given}")
    sample = out / "sample" / "CMU-1-Small-Region.svs"
    try:
        fetch_sample(sample, SAMPLE_URL, SAMPLE_SHA256, ANSWER_SECONDS)
    except (OSError, HTTPException) as error:
        reporter.note(f"the sample slide could not be fetched ({error}); drawing synthetic slides instead")
        return _drawn(out / "synthetic", reporter)
    return DemoSlides(sample.parent, None, "CMU-1-Small-Region.svs from OpenSlide's freely licensed test data")


def fetch_sample(target: Path, url: str, sha256: str, answer_seconds: float) -> None:
    """Download a file once, and keep it only where its hash is right.

    Raises:
        OSError: no answer in `answer_seconds`, or other bytes than expected.
    """
    if target.is_file() and _sha256(target.read_bytes()) == sha256:
        return
    with urllib.request.urlopen(url, timeout=answer_seconds) as answer:
        content = answer.read()
    if _sha256(content) != sha256:
        raise OSError(f"{url} sent other bytes than expected")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".part")
    partial.write_bytes(content)
    partial.replace(target)


def _drawn(folder: Path, reporter: Reporter) -> DemoSlides:
    from indexer.synthetic import draw_cohort

    manifest = folder / "manifest.csv"
    if not manifest.is_file():  # the manifest is written last, so its presence means a whole cohort
        reporter.note("drawing four synthetic slides")
        draw_cohort(folder, slides=4, seed=7, width0=6144, height0=5120)
    return DemoSlides(folder, manifest, "synthetic slides, drawn for this demo (no real tissue)", synthetic=True)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
