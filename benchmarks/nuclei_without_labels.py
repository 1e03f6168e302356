"""How well patch_contrast finds nuclei without labels: several seeds, trained on some fields and judged on others."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import OUT, describe_machine
from numpy.typing import NDArray
from torch.nn import functional as F

from encoder.config import load_config
from encoder.embed import TileEncoder
from encoder.instances import agreement, clean_mask, dice, split_instances
from encoder.nets.confidence import ConfidenceNet
from encoder.progress import SilentReporter
from encoder.registry import load_encoder
from encoder.segment import Nuclei, blurred_haematoxylin, classical_nuclei, segment_field
from encoder.tiles import TileFolder
from encoder.train import train
from query.fields import Field, folder_fields, read_drawn

# Of five fields in a row, two are judged on.
JUDGED = (1, 3)


class SomeTiles:
    """Some pictures of a tile folder, decoded once."""

    in_memory = True
    slide_ids = labels = groups = splits = positions_px0 = extents_px0 = None

    def __init__(self, folder: TileFolder, rows: list[int]) -> None:
        self._pixels = folder.images(np.array(rows))
        self.tile_px = folder.tile_px
        self.names = [folder.names[row] for row in rows]

    def __len__(self) -> int:
        return len(self.names)

    def images(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Tiles as RGB [B, tile_px, tile_px, 3]."""
        return self._pixels[indices]


def judge(found: Any, drawn: list[NDArray[np.integer]]) -> dict[str, float]:
    """Mean Dice before and after cleaning, AJI and PQ."""
    cleaned = [agreement(nuclei.instances, truth) for nuclei, truth in zip(found, drawn, strict=True)]
    return {
        "dice": float(np.mean([each.dice for each in cleaned])),
        "dice_before_cleaning": float(np.mean([dice(n.mask, t > 0) for n, t in zip(found, drawn, strict=True)])),
        "aji": float(np.mean([each.aji for each in cleaned])),
        "pq": float(np.mean([each.panoptic for each in cleaned])),
    }


def best_threshold(field: Field, truth: NDArray[np.integer]) -> Nuclei:
    """Nuclei by the threshold on haematoxylin that suits this field's labels best: no threshold does better."""
    amount = blurred_haematoxylin(field.pixels, field.mpp)
    masks = [amount > threshold for threshold in np.quantile(amount, np.linspace(0.4, 0.98, 59))]
    mask = max(masks, key=lambda mask: dice(mask, truth > 0))
    return Nuclei(split_instances(clean_mask(mask, field.mpp), field.mpp), mask, field.mpp)


def supervised(
    encoder: TileEncoder, seen: list[Field], truths: list[NDArray[np.integer]], unseen: list[Field], steps: int
) -> list[Any]:
    """The same network trained on labels: what it could reach at best with these fields."""

    def planes(field: Field) -> torch.Tensor:
        half = torch.from_numpy(field.pixels.copy()).permute(2, 0, 1)[None].float()
        small = F.interpolate(half, size=(500, 500), mode="bilinear", antialias=True)
        return encoder.prepare_field(small.round().to(torch.uint8)[0].permute(1, 2, 0).numpy())

    pictures = torch.cat([planes(field) for field in seen])
    wanted = torch.stack([torch.from_numpy(truth > 0).float()[None] for truth in truths])
    wanted = F.interpolate(wanted, size=(500, 500), mode="area")
    torch.manual_seed(0)
    net, generator = ConfidenceNet(1), torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(net.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=steps)
    for _ in range(steps):
        y, x = torch.randint(301, (2,), generator=generator).tolist()
        box = np.s_[:, :, y : y + 200, x : x + 200]
        optimiser.zero_grad()
        F.binary_cross_entropy(net(pictures[box]), wanted[box]).backward()
        optimiser.step()
        schedule.step()
    net.eval()
    found = []
    with torch.inference_mode():
        for field in unseen:
            maps = F.interpolate(net(planes(field)), size=field.pixels.shape[:2], mode="bilinear")
            mask = (maps[0, 0] > 0.5).numpy()
            found.append(Nuclei(split_instances(clean_mask(mask, field.mpp), field.mpp), mask, field.mpp))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("fields", type=Path, help="tile folder of 1,000 px fields with masks/ of numbered nuclei")
    parser.add_argument("--mpp", type=float, default=0.25, help="of fields for which the table has none")
    parser.add_argument("--seeds", type=int, default=5, help="0 judges the thresholds alone")
    parser.add_argument("--supervised", type=int, default=0, help="also train on labels, for so many steps")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("changes", nargs="*", help="key=value over the config")
    options = parser.parse_intermixed_args()
    config = load_config(options.config, ["max_seconds=null", "tensorboard=false", *options.changes])
    folder = TileFolder(options.fields, config.tile_px)
    fields = [field for field in folder_fields(options.fields, options.mpp) if isinstance(field, Field)]
    drawn = {field.name: read_drawn(options.fields / "masks", field) for field in fields}
    judged = [i for i in range(len(fields)) if i % 5 in JUDGED]
    unseen = [fields[i] for i in judged]
    truths = [truth for field in unseen if (truth := drawn[field.name]) is not None]
    rows = [i for i in range(len(fields)) if i not in judged]
    print(f"trained on {len(rows)} fields, judged on {len(judged)}: {', '.join(field.name for field in unseen)}")
    figures: dict[str, Any] = {"otsu": judge([classical_nuclei(f.pixels, f.mpp) for f in unseen], truths)}
    print("Otsu on haematoxylin:", rounded(figures["otsu"]), flush=True)
    found = [best_threshold(field, truth) for field, truth in zip(unseen, truths, strict=True)]
    figures["best_threshold"] = judge(found, truths)
    print("the best threshold by the labels of each field:", rounded(figures["best_threshold"]), flush=True)
    source = SomeTiles(folder, rows)
    seeds = []
    with tempfile.TemporaryDirectory() as runs:
        for seed in range(options.seeds):
            started = time.monotonic()
            out = Path(runs) / str(seed)
            result = train(config.model_copy(update={"seed": seed}), source, out, SilentReporter())
            seconds = time.monotonic() - started
            encoder = load_encoder(str(out))
            collapsed = int(encoder.module.nucleus_channel) < 0
            measured = {} if collapsed else judge([segment_field(encoder, f.pixels, f.mpp) for f in unseen], truths)
            seeds.append({"seed": seed, "seconds": seconds, "kept": result.metrics, **measured})
            said = "collapsed" if collapsed else str(rounded(measured))
            print(f"seed {seed}, {seconds:.0f} s, score {result.metrics['score']:.3f}: {said}", flush=True)
    good = [each for each in seeds if "dice" in each]
    for name in ("dice", "dice_before_cleaning", "aji", "pq") if len(good) > 1 else ():
        values = [each[name] for each in good]
        print(f"{name}: mean {np.mean(values):.3f}, sd {np.std(values, ddof=1):.3f} over {len(good)} seeds")
    if options.supervised and seeds:
        seen = [fields[i] for i in rows]
        labels = [truth for field in seen if (truth := drawn[field.name]) is not None]
        figures["supervised"] = judge(supervised(encoder, seen, labels, unseen, options.supervised), truths)
        print("the same network, trained on labels:", rounded(figures["supervised"]))
    options.out.mkdir(parents=True, exist_ok=True)
    document = {"machine": describe_machine(), "config": config.model_dump(mode="json"), "seeds": seeds, **figures}
    (options.out / f"nuclei-{config.name}.json").write_text(json.dumps(document, indent=2))


def rounded(figures: dict[str, float]) -> dict[str, float]:
    """To three digits."""
    return {name: round(value, 3) for name, value in figures.items()}


if __name__ == "__main__":
    main()
