"""The tiny network of patch-based contrastive segmentation (Boserup and Selvan, NLDL 2023)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

DILATIONS = (1, 2, 3, 5, 10, 20)
# What no channel is while none has been chosen for nuclei.
NO_CHANNEL = -1


class ConfidenceNet(nn.Module):
    """A confidence between 0 and 1 of every class in every pixel, at full resolution.

    A 3x3 block, six residual pairs of 3x3 blocks of growing dilation, and a 1x1 convolution; each block is a
    convolution without bias, batch normalisation and ELU. It sees 167 pixels across.

    Args:
        classes: number of maps.
        in_channels: of the picture.
        width: channels of all blocks.
    """

    def __init__(self, classes: int = 4, in_channels: int = 3, width: int = 8) -> None:
        super().__init__()
        self.stem = _block(in_channels, width, 1)
        self.pairs = nn.ModuleList(nn.Sequential(_block(width, width, d), _block(width, width, d)) for d in DILATIONS)
        self.head = nn.Conv2d(width, classes, 1)

    def features(self, pictures: Tensor) -> Tensor:
        """What the last convolution sees, [N, width, H, W]."""
        features: Tensor = self.stem(pictures)
        for pair in self.pairs:
            features = features + pair(features)
        return features

    def forward(self, pictures: Tensor) -> Tensor:
        """Confidences [N, classes, H, W] of pictures [N, in_channels, H, W]."""
        return torch.sigmoid(self.head(self.features(pictures)))


class ConfidenceDescriptor(nn.Module):
    """The network as an encoder of tiles: a descriptor made by hand of what a segmenter computes.

    It has mean and standard deviation of each feature, and of each class the mean confidence, the share of the
    tile where it is above one half, and the length of its outline per area.

    Args:
        classes: number of maps.
        width: channels of the network.
        field_threshold: whether a field is segmented at the confidence that separates its haematoxylin best,
            or at one half.

    Attributes:
        nucleus_channel: which map is that of nuclei, or -1; from `classes` on, what the map with that many less
            leaves out.
    """

    nucleus_channel: Tensor

    def __init__(self, classes: int = 4, width: int = 8, field_threshold: bool = True) -> None:
        super().__init__()
        self.net = ConfidenceNet(classes, width=width)
        self.field_threshold = field_threshold
        self.register_buffer("nucleus_channel", torch.tensor(NO_CHANNEL))

    def forward(self, tiles: Tensor) -> Tensor:
        """Descriptors [N, 2 * width + 3 * classes] of tiles [N, 3, H, W]."""
        features = self.net.features(tiles)
        confidence = torch.sigmoid(self.net.head(features))
        down = (confidence[:, :, 1:] - confidence[:, :, :-1]).abs().mean(dim=(2, 3))
        across = (confidence[:, :, :, 1:] - confidence[:, :, :, :-1]).abs().mean(dim=(2, 3))
        spread, mean = torch.std_mean(features, dim=(2, 3), correction=0)
        covered = (confidence > 0.5).to(confidence.dtype).mean(dim=(2, 3))
        return torch.cat([mean, spread, confidence.mean(dim=(2, 3)), covered, down + across], dim=1)

    def confidences(self, tiles: Tensor) -> Tensor:
        """Confidences [N, classes, H, W] of normalised tiles [N, 3, H, W]."""
        confidences: Tensor = self.net(tiles)
        return confidences

    def nuclei(self, tiles: Tensor) -> Tensor:
        """Confidence [N, H, W] that a pixel of normalised tiles [N, 3, H, W] lies in a nucleus."""
        maps = self.confidences(tiles)
        channel = int(self.nucleus_channel)
        return maps[:, channel] if channel < maps.shape[1] else 1 - maps[:, channel - maps.shape[1]]


def _block(before: int, width: int, dilation: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, width, 3, padding=dilation, dilation=dilation, bias=False),
        nn.BatchNorm2d(width),
        nn.ELU(inplace=True),
    )
