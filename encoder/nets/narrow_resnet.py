"""The narrow ResNet-18 of stain-invariant learning (Tiard et al., arXiv 2211.07590, as others rebuilt it)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

_SLOPE = 0.1


class NarrowResnet(nn.Module):
    """Maps [N, 3, H, W] to pooled features [N, widths[-1]].

    A stem that halves twice, then four stages of basic blocks, each stage but the first halving.

    Args:
        widths: channels of the stem and of the four stages.
        blocks: in each stage.
    """

    def __init__(self, widths: Sequence[int] = (32, 64, 128, 256, 256), blocks: int = 2) -> None:
        super().__init__()
        if len(widths) != 5:
            raise ValueError(f"widths are those of a stem and four stages, five numbers, not {list(widths)}")
        stem, *stages = widths
        layers: list[nn.Module] = [
            nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(stem),
            nn.LeakyReLU(_SLOPE, inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        ]
        before = stem
        for number, width in enumerate(stages):
            layers.append(BasicBlock(before, width, 1 if number == 0 else 2))
            layers += [BasicBlock(width, width, 1) for _ in range(blocks - 1)]
            before = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, a=_SLOPE, mode="fan_out", nonlinearity="leaky_relu")

    def forward(self, tiles: Tensor) -> Tensor:
        """Features averaged over the tile."""
        pooled: Tensor = self.pool(self.features(tiles)).flatten(1)
        return pooled


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016), with leaky units."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(_SLOPE, inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != width:
            self.shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))
        self.activation = nn.LeakyReLU(_SLOPE, inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        """Add what the body finds to the shortcut."""
        out: Tensor = self.activation(self.body(features) + self.shortcut(features))
        return out
