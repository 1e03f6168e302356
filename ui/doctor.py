"""Is this machine fit for the job? Findings with a verdict and, where needed, what to do."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

Verdict = Literal["PASS", "WARN", "FAIL"]

_PACKAGES = {  # distribution -> module that must import
    "torch": "torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "lancedb": "lancedb",
    "pylance": "lance",
    "pyarrow": "pyarrow",
    "duckdb": "duckdb",
    "openslide-python": "openslide",
    "pyvips": "pyvips",
    "streamlit": "streamlit",
    "numpy": "numpy",
    "scipy": "scipy",
}
# A FAISS wheel without code for the card aborts the whole process, so a child process tries it.
_FAISS_PROBE = (
    "import faiss, numpy as np\n"
    "x = np.eye(8, dtype='float32')\n"
    "index = faiss.IndexFlatIP(8)\n"
    "gpus = faiss.get_num_gpus() if hasattr(faiss, 'get_num_gpus') else 0\n"
    "if gpus:\n"
    "    index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)\n"
    "index.add(x)\n"
    "assert index.search(x, 1)[1][3, 0] == 3\n"
    "print(faiss.__version__, gpus)\n"
)


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        verdict: PASS, WARN (works, but) or FAIL.
        subject: what was looked at.
        text: what was seen.
        fix: what to do about it, where it is not PASS.
    """

    verdict: Verdict
    subject: str
    text: str
    fix: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, for JSON."""
        return asdict(self)


def examine() -> list[Finding]:
    """Look at the packages, the readers, the devices, the memory and the disk."""
    checks: list[Callable[[], Finding]] = [_python, *(_package(*names) for names in _PACKAGES.items())]
    checks += [_faiss, _reading, _viewer, _device, _memory, _disk]
    return [_safely(check) for check in checks]


def _safely(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # noqa: BLE001 - whatever a broken package raises is the finding
        subject = check.__name__.strip("_")
        return Finding("FAIL", subject, f"{type(error).__name__}: {error}", "Run `make setup` again.")


def _python() -> Finding:
    return Finding("PASS", "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _package(distribution: str, module: str) -> Callable[[], Finding]:
    def check() -> Finding:
        importlib.import_module(module)
        return Finding("PASS", distribution, version(distribution))

    check.__name__ = distribution
    return check


def _faiss() -> Finding:
    done = subprocess.run([sys.executable, "-c", _FAISS_PROBE], capture_output=True, text=True, timeout=120)
    if done.returncode == 0:
        found, gpus = done.stdout.split()
        return Finding("PASS", "faiss", f"{found}, {gpus} GPUs")
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return Finding("FAIL", "faiss", f"a first search failed: {last}", "Install the FAISS wheel for this card.")


def _reading() -> Finding:
    """Draw a tiny pyramid and read it back with both readers: native libraries fail at use, not at import."""
    import numpy as np
    import openslide
    import pyvips

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.tif"
        pixels = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (256, 1, 3))
        image = pyvips.Image.new_from_array(pixels)
        image.tiffsave(str(path), tile=True, tile_width=128, tile_height=128, compression="jpeg", pyramid=True)
        with openslide.OpenSlide(str(path)) as slide:
            first = np.asarray(slide.read_region((64, 0), 0, (128, 128)).convert("RGB"))
        fetched = pyvips.Region.new(pyvips.Image.new_from_file(str(path), page=0)).fetch(64, 0, 128, 128)
        second = np.frombuffer(fetched, dtype=np.uint8).reshape(128, 128, 3)
    if np.array_equal(first, second):
        return Finding("PASS", "slide reading", f"OpenSlide {openslide.__library_version__} and libvips agree")
    return Finding(
        "WARN",
        "slide reading",
        "OpenSlide and libvips disagree",
        "OpenSlide will read every slide: slower, right.",
    )


def _viewer() -> Finding:
    from ui.server.viewer_files import HOW_TO_INSTALL, openseadragon_folder, openseadragon_version

    if openseadragon_folder() is None:
        text = "OpenSeadragon is not installed: slides are shown as overviews only"
        return Finding("WARN", "slide viewer", text, HOW_TO_INSTALL)
    return Finding("PASS", "slide viewer", f"OpenSeadragon {openseadragon_version()}")


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Finding("PASS", "device", names)
    return Finding(
        "WARN",
        "device",
        f"no GPU; {os.cpu_count()} cores",
        "Everything works; training a full encoder wants a GPU.",
    )


def _memory() -> Finding:
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (AttributeError, ValueError, OSError):
        return Finding("WARN", "memory", "size unknown", "Have at least 8 GiB.")
    if total < 7.5:
        return Finding("WARN", "memory", f"{total:.1f} GiB", "Use small batches; 8 GiB or more is comfortable.")
    return Finding("PASS", "memory", f"{total:.1f} GiB")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    if free < 5:
        return Finding("WARN", "disk", f"{free:.1f} GiB free here", "A store needs about 4 kB a tile.")
    return Finding("PASS", "disk", f"{free:.1f} GiB free here")
