"""The published patch contrast in plain loops and float64: windows, their signs, and the loss of one step."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def windows(height: int, width: int, side: int, stride: int) -> list[tuple[int, int]]:
    """Upper left corners, row by row."""
    rows, columns = range(0, height - side + 1, stride), range(0, width - side + 1, stride)
    return [(y, x) for y in rows for x in columns]


def certainty(part: Array) -> float:
    """One minus the mean entropy in bits, at least a thousandth."""
    total = 0.0
    for value in part.ravel():
        for share in (value, 1 - value):
            total -= share * math.log2(share) if share > 0 else 0.0
    return max(1 - total / part.size, 1e-3)


def drawn(
    maps: Array, side: int, stride: int, places: Array, coins: Array
) -> tuple[list[list[list[int]]], list[list[list[bool]]]]:
    """Numbers and signs of the windows drawn for each picture and class; `maps` is [B, C, H, W]."""
    numbers, signs = [], []
    for b, picture in enumerate(maps):
        numbers.append([])
        signs.append([])
        for c, confidence in enumerate(picture):
            corners = windows(*confidence.shape, side, stride)
            parts = [confidence[y : y + side, x : x + side] for y, x in corners]
            weights = [certainty(part) for part in parts]
            chosen = []
            for place in places[b, c]:
                left, number = place * sum(weights), 0
                while number < len(weights) - 1 and left >= weights[number]:
                    left -= weights[number]
                    number += 1
                chosen.append(number)
            numbers[b].append(chosen)
            signs[b].append([bool(coins[b, c, number] < parts[number].mean()) for number in chosen])
    return numbers, signs


def similarity(first: Array, second: Array) -> float:
    """Negated mean square difference."""
    return -float(((first - second) ** 2).mean())


def pixel_loss(patches: list[list[Array]], positive: list[list[bool]], anchors: Array, per_positive: bool) -> float:
    """The loss of the patches of each class; zero where a class has no positives or no negatives."""
    total = 0.0
    for c, own in enumerate(patches):
        alike = [patch for patch, sign in zip(own, positive[c], strict=True) if sign]
        unlike = [patch for patch, sign in zip(own, positive[c], strict=True) if not sign]
        others = [
            patch
            for k, theirs in enumerate(patches)
            for patch, sign in zip(theirs, positive[k], strict=True)
            if sign and k != c
        ]
        if not alike or not unlike:
            return 0.0
        part = 0.0
        for uniform in anchors[c]:
            anchor = alike[int(uniform * len(alike))]
            for other in [unlike, others] if others else [unlike]:
                repulsion = math.log(sum(math.exp(similarity(anchor, patch)) for patch in other))
                for patch in alike:
                    part += -similarity(anchor, patch) + repulsion
        total += part / (len(anchors[c]) * (len(alike) if per_positive else len(own)))
    return total


def mean_loss(
    maps: Array, amounts: Array, numbers: list[list[list[int]]], side: int, stride: int, other: float
) -> float:
    """The contrast of means, window by window; `amounts` is [B, H, W]."""
    held: list[list[tuple[float, float, float]]] = [[] for _ in maps[0]]
    for b, picture in enumerate(maps):
        corners = windows(*picture[0].shape, side, stride)
        for c, confidence in enumerate(picture):
            for number in numbers[b][c]:
                y, x = corners[number]
                weight = confidence[y : y + side, x : x + side]
                amount = amounts[b, y : y + side, x : x + side]
                inside = (weight * amount).sum() / weight.sum()
                outside = ((1 - weight) * amount).sum() / (1 - weight).sum()
                held[c].append((weight.mean(), inside, outside))
    loss = -float(np.mean([w * (1 - w) * (i - o) ** 2 for part in held for w, i, o in part]))
    pairs = [
        4 * w * (1 - w) * v * (1 - v) * (i - j) ** 2
        for c, part in enumerate(held)
        for k, theirs in enumerate(held)
        if c != k
        for w, i, _ in part
        for v, j, _ in theirs
    ]
    return loss - other * float(np.mean(pairs)) if pairs and other else loss
