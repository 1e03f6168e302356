"""One step of the published patch contrast, vectorised, against literal loops over windows and pairs."""

from __future__ import annotations

import argparse
import statistics

import torch
from harness import Row, add_options, cores, describe_machine, interleave, median_ratio, report
from torch import Tensor
from torch.nn import functional as F

from encoder.methods.patch_contrast.options import WindowOptions
from encoder.methods.patch_contrast.pixels import pixel_contrast
from encoder.methods.patch_contrast.windows import cut_windows, draw_windows, grid_size
from encoder.nets.confidence import ConfidenceNet

CLASSES, ANCHORS = 4, 10


def entropy_of(values: Tensor) -> Tensor:
    """Mean binary entropy in bits."""
    clipped = values.clamp(1e-6, 1 - 1e-6)
    return -(clipped * clipped.log2() + (1 - clipped) * (1 - clipped).log2()).mean()


def literal_loss(maps: Tensor, pictures: Tensor, options: WindowOptions) -> Tensor:
    """The step as the source writes it: window by window, and one similarity at a time."""
    patches: list[list[Tensor]] = [[] for _ in range(CLASSES)]
    positive: list[list[bool]] = [[] for _ in range(CLASSES)]
    side = options.side_px
    for picture, of_classes in zip(pictures, maps, strict=True):
        rows = range(0, picture.shape[1] - side + 1, options.stride_px)
        columns = range(0, picture.shape[2] - side + 1, options.stride_px)
        for number, confidence in enumerate(of_classes):
            corners, certain, signs = [], [], []
            for y in rows:
                for x in columns:
                    window = confidence[y : y + side, x : x + side].detach()
                    corners.append((y, x))
                    certain.append(max(1 - entropy_of(window).item(), 1e-3))
                    signs.append(bool(torch.rand(()) < window.mean().item()))
            for chosen in torch.multinomial(torch.tensor(certain), options.draws, replacement=True).tolist():
                y, x = corners[chosen]
                held = confidence[y : y + side, x : x + side] * picture[:, y : y + side, x : x + side]
                patches[number].append(held)
                positive[number].append(signs[chosen])
    total = pictures.new_zeros(())
    for number in range(CLASSES):
        pairs = list(zip(patches[number], positive[number], strict=True))
        alike = [patch for patch, sign in pairs if sign]
        unlike = [patch for patch, sign in pairs if not sign]
        others = [
            patch
            for k in range(CLASSES)
            if k != number
            for patch, sign in zip(patches[k], positive[k], strict=True)
            if sign
        ]
        for chosen in torch.randint(len(alike), (ANCHORS,)).tolist():
            anchor = alike[chosen]
            for against in (unlike, others):
                repulsion = torch.stack([-(anchor - patch).square().mean() for patch in against]).logsumexp(0)
                for patch in alike:
                    total = total + ((anchor - patch).square().mean() + repulsion) / (ANCHORS * len(pairs))
    return total


def our_loss(maps: Tensor, pictures: Tensor, options: WindowOptions) -> Tensor:
    """The same step without a loop."""
    count = len(pictures)
    grid = grid_size(pictures.shape[2], pictures.shape[3], options)
    places, coins = torch.rand(count, CLASSES, options.draws), torch.rand(count, CLASSES, grid)
    windows = draw_windows(maps, options, places, coins)
    held = cut_windows(maps[:, :, None], windows, options)
    patches = (held * cut_windows(pictures, windows, options)).flatten(3).transpose(0, 1).flatten(1, 2)
    positive = windows.positive.transpose(0, 1).flatten(1)
    return pixel_contrast(patches, positive, torch.rand(CLASSES, ANCHORS))[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--crop", type=int, default=300)
    add_options(parser)
    options = parser.parse_args()
    machine = describe_machine()
    torch.set_num_threads(cores())
    torch.manual_seed(0)
    window = WindowOptions()
    pictures = torch.rand(options.batch, 3, options.crop, options.crop)
    net = ConfidenceNet(CLASSES)
    with torch.no_grad():
        maps = F.avg_pool2d(net(pictures), 9, 1, 4)

    def contrast(loss: object) -> None:
        leaf = maps.clone().requires_grad_()
        loss(leaf, pictures, window).backward()  # type: ignore[operator]

    def step(loss: object) -> None:
        net.zero_grad()
        loss(net(pictures), pictures, window).backward()  # type: ignore[operator]

    alone = interleave({"literal": lambda: contrast(literal_loss), "ours": lambda: contrast(our_loss)}, options.repeats)
    whole = interleave({"literal": lambda: step(literal_loss), "ours": lambda: step(our_loss)}, options.repeats)
    rows = []
    for what, seconds, budget in (
        ("sampling and loss, forward and backward", alone, 5.0),
        ("whole step, network included", whole, None),
    ):
        middle = {name: statistics.median(values) for name, values in seconds.items()}
        detail = f"literal {middle['literal']:.2f} s, ours {middle['ours']:.2f} s"
        rows.append(Row(what, median_ratio(seconds["literal"], seconds["ours"]), "x", budget, detail=detail))
    report("patch_contrast", rows, options.out, machine, batch=options.batch, crop_px=options.crop)


if __name__ == "__main__":
    main()
