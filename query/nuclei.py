"""What segmentation finds in fields: written as tables and pictures, and measured where nuclei were drawn."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from encoder.embed import TileEncoder
from encoder.errors import HistoSeekError
from encoder.instances import Agreement, agreement, dice
from encoder.segment import Nuclei, classical_nuclei, segment_field
from encoder.stain.haematoxylin import haematoxylin
from encoder.stain.normalise import fit_stains
from query.fields import Field, read_drawn
from query.output_path import whole_folder

_OUTLINE = (0, 230, 90)
_COLUMNS = ("nucleus", "x_px", "y_px", "area_um2", "length_um", "width_um", "solidity", "haematoxylin")


@dataclass(frozen=True)
class FieldReport:
    """One field.

    Attributes:
        name: of the field.
        nuclei: how many were found.
        coverage: share of the field under them.
        agreement: with the drawn nuclei, where there are some.
        mask_dice: of the mask as the network gives it, before cleaning.
        classical: agreement of Otsu's threshold on haematoxylin, cleaned in the same way.
        classical_mask_dice: of that threshold, before cleaning.
    """

    name: str
    nuclei: int
    coverage: float
    agreement: Agreement | None = None
    mask_dice: float | None = None
    classical: Agreement | None = None
    classical_mask_dice: float | None = None


@dataclass(frozen=True)
class SegmentReport:
    """All fields.

    Attributes:
        fields: those that were segmented.
        failed: name and reason of those that were not.
    """

    fields: tuple[FieldReport, ...]
    failed: tuple[tuple[str, str], ...] = field(default=())

    @property
    def means(self) -> dict[str, float]:
        """Mean agreement over the fields with drawn nuclei; empty where there are none."""
        measured = [f for f in self.fields if f.agreement is not None and f.classical is not None]
        if not measured:
            return {}
        return {
            "dice": _mean(f.agreement.dice for f in measured if f.agreement),
            "aji": _mean(f.agreement.aji for f in measured if f.agreement),
            "panoptic": _mean(f.agreement.panoptic for f in measured if f.agreement),
            "mask_dice": _mean(f.mask_dice for f in measured if f.mask_dice is not None),
            "classical_dice": _mean(f.classical.dice for f in measured if f.classical),
            "classical_mask_dice": _mean(f.classical_mask_dice for f in measured if f.classical_mask_dice is not None),
        }

    @property
    def exit_code(self) -> int:
        """0 where every field was segmented, 3 where some could not be."""
        return 3 if self.failed else 0


def segment_fields(
    encoder: TileEncoder, fields: Iterable[Field | tuple[str, str]], out: Path, masks: Path | None = None
) -> SegmentReport:
    """Segment fields and write for each its nuclei as a table, as numbered pixels and as outlines on the picture.

    Args:
        encoder: one that segments.
        fields: pictures, or name and reason of those that could not be read.
        out: a folder that does not exist yet: `NAME.csv`, `NAME-instances.png` (16 bit), `NAME-outlines.png`.
        masks: a folder of drawn nuclei to measure against.

    Raises:
        EncoderError: the encoder does not segment.
    """
    done: list[FieldReport] = []
    failed: list[tuple[str, str]] = []
    with whole_folder(out) as folder:
        for given in fields:
            if isinstance(given, tuple):
                failed.append(given)
                continue
            try:
                found = segment_field(encoder, given.pixels, given.mpp)
                done.append(_report(given, found, masks))
                _write(folder, given, found)
            except HistoSeekError as error:
                failed.append((given.name, error.message))
    return SegmentReport(tuple(done), tuple(failed))


def nucleus_table(picture: NDArray[np.uint8], found: Nuclei) -> list[dict[str, Any]]:
    """A row for each nucleus: place in pixels, area, axes, solidity, mean amount of haematoxylin."""
    from skimage.measure import regionprops

    rgb = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
    amount = haematoxylin(rgb, fit_stains("macenko", rgb))[0, 0].numpy()
    rows = []
    for region in regionprops(found.instances, intensity_image=amount):
        y, x = region.centroid
        sizes = (region.axis_major_length * found.mpp, region.axis_minor_length * found.mpp)
        values = (region.label, x, y, region.area * found.mpp**2, *sizes, region.solidity, region.intensity_mean)
        rows.append(dict(zip(_COLUMNS, (int(values[0]), *(round(float(v), 3) for v in values[1:])), strict=True)))
    return rows


def draw_outlines(picture: NDArray[np.uint8], instances: NDArray[np.int32]) -> NDArray[np.uint8]:
    """The picture with the outline of every nucleus."""
    from skimage.segmentation import find_boundaries

    drawn = picture.copy()
    drawn[find_boundaries(instances, mode="inner")] = _OUTLINE
    return drawn


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _report(given: Field, found: Nuclei, masks: Path | None) -> FieldReport:
    count, coverage = int(found.instances.max()), float((found.instances > 0).mean())
    drawn = None if masks is None else read_drawn(masks, given)
    if drawn is None:
        return FieldReport(given.name, count, coverage)
    classical = classical_nuclei(given.pixels, given.mpp)
    return FieldReport(
        given.name,
        count,
        coverage,
        agreement(found.instances, drawn),
        dice(found.mask, drawn > 0),
        agreement(classical.instances, drawn),
        dice(classical.mask, drawn > 0),
    )


def _write(folder: Path, given: Field, found: Nuclei) -> None:
    with (folder / f"{given.name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        writer.writerows(nucleus_table(given.pixels, found))
    Image.fromarray(found.instances.astype(np.uint16)).save(folder / f"{given.name}-instances.png")
    Image.fromarray(draw_outlines(given.pixels, found.instances)).save(folder / f"{given.name}-outlines.png")


def report_document(report: SegmentReport) -> dict[str, Any]:
    """The report as plain values, for JSON."""
    return {**asdict(report), "means": report.means}
