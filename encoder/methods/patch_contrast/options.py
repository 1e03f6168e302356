"""Options of patch-based contrastive segmentation."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from encoder.methods.protocol import MethodOptions


class WindowOptions(BaseModel):
    """Which windows of a picture are compared.

    Attributes:
        side_px: of a window; it must be clearly larger than a nucleus, so that it holds nuclei and what lies
            between them.
        stride_px: distance of windows.
        draws: windows drawn for each picture and class, with replacement, the rather the more certain their map is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    side_px: int = Field(default=50, ge=2)
    stride_px: int = Field(default=20, ge=1)
    draws: int = Field(default=10, ge=1)


class PixelContrastOptions(BaseModel):
    """The published comparison: windows of the picture, weighted by their map, pixel by pixel.

    Attributes:
        anchors: positives of each class that all others are compared with.
        per_positive: divide each class's sum by its number of positives instead of by the number of draws, so
            that steps can be compared.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["pixels"] = "pixels"
    anchors: int = Field(default=10, ge=1)
    per_positive: bool = False


class MeanContrastOptions(BaseModel):
    """What a window holds under its map against what it holds beside it, by mean amount of haematoxylin.

    Attributes:
        blur_px: standard deviation of the blur of the amounts that are compared; 0 for none.
        other_classes: weight of keeping what different classes hold apart.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["means"] = "means"
    blur_px: float = Field(default=1.0, ge=0, le=5)
    other_classes: float = Field(default=0.2, ge=0)


class StopOptions(BaseModel):
    """When a run has converged, without labels; `epochs` 0 lets it run to its end.

    Attributes:
        epochs: between the two gaps that are compared.
        least_change: relative change of the gap below which the run ends.
        least_epochs: that are done in any case.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(default=0, ge=0)
    least_change: float = Field(default=0.02, gt=0)
    least_epochs: int = Field(default=10, ge=1)


class PatchContrastOptions(MethodOptions):
    """Options of patch-based contrastive segmentation.

    Attributes:
        classes: number of confidence maps, of which one becomes nuclei.
        width: channels of the network.
        crop_px: side of the random crops that are trained on; None takes whole tiles.
        window: which windows are compared.
        contrast: how.
        least_coverage, most_coverage: share of the tissue that nuclei may cover; a map outside is not chosen.
        field_threshold: segment each field at the confidence that separates its haematoxylin best; else at one half.
        stop: when to end before the last step.
    """

    name: Literal["patch_contrast"] = "patch_contrast"
    classes: int = Field(default=4, ge=1)
    width: int = Field(default=8, ge=1)
    crop_px: int | None = Field(default=None, ge=16)
    window: WindowOptions = WindowOptions()
    contrast: PixelContrastOptions | MeanContrastOptions = Field(default=MeanContrastOptions(), discriminator="kind")
    least_coverage: float = Field(default=0.03, ge=0, lt=1)
    most_coverage: float = Field(default=0.45, gt=0, le=1)
    field_threshold: bool = True
    stop: StopOptions = StopOptions()
