"""The kNN task of a labelled tile folder, by the best rule that its table allows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from encoder.tiles import TileFolder
from query.knn import KnnTask, all_left_out, check_classes, evenly, group_codes, lone_classes

_UNIT = {"patient groups": "patient group", "slides": "slide", "tiles": "tile"}


def folder_task(source: TileFolder, kept: NDArray[np.int64], max_queries: int | None) -> KnnTask:
    """Make the task: a marked split, else patients or groups left out, else slides, else single tiles.

    Args:
        source: a tile folder with labels.
        kept: tiles that could be read, int64 [N]; the task's rows are theirs.
        max_queries: tiles classified, evenly spaced; None for all.

    Raises:
        QueryError: fewer than two classes.
    """
    labels, groups, slides, splits = (
        [values[i] for i in kept] if values is not None else [""] * kept.size
        for values in (source.labels, source.groups, source.slide_ids, source.splits)
    )
    classes = check_classes(sorted({text for text in labels if text}), "The column label")
    number = {name: code for code, name in enumerate(classes)}
    truth = np.array([number.get(text, -1) for text in labels], np.int64)
    labelled = np.flatnonzero(truth >= 0)
    units = group_codes(groups, [slide or source.names[i] for slide, i in zip(slides, kept, strict=True)])
    unit_name = "patient groups" if any(groups) else "slides" if any(slides) else "tiles"
    notes = _gap_notes(labels, groups)
    warnings = _broken_warnings(source, kept)
    left_out = lone_classes(classes, truth, units, _UNIT[unit_name])
    train, test = (labelled[np.array([splits[i] == part for i in labelled], np.bool_)] for part in ("train", "test"))
    if train.size and test.size:
        rule, reference, candidates, own = "rows marked train vote for rows marked test", train, test, None
        left_out = (left_out if unit_name != "tiles" else {}) | _split_gaps(classes, truth, train, test)
        unused = labelled.size - train.size - test.size
        if unused:
            notes += (f"{unused:,} labelled tiles are marked neither train nor test and take no part.",)
        shared = np.intersect1d(units[train], units[test]).size
        if unit_name != "tiles" and shared:
            warnings += (f"{shared} {unit_name} have tiles in both train and test: the score may be too high.",)
    else:
        reference, candidates, own = labelled, labelled, units
        rule = "every other tile votes for a tile" if unit_name == "tiles" else f"tiles of other {unit_name} vote"
        if any(splits):
            warnings += ("The column split does not mark both train and test rows and was not used.",)
        if unit_name == "tiles":
            warnings += (
                "Neither split, patient, group nor slide is known: tiles of one patient may vote for each other, "
                "and the score may be far too high.",
            )
    queries, sampled = evenly(candidates, max_queries)
    return KnnTask(
        classes=classes,
        truth=truth,
        queries=queries,
        reference=reference,
        groups=own,
        units=units,
        unit_name=unit_name,
        rule=rule,
        left_out=left_out,
        notes=notes + sampled,
        warnings=warnings + all_left_out(classes, left_out),
    )


def _gap_notes(labels: list[str], groups: list[str]) -> tuple[str, ...]:
    notes: tuple[str, ...] = ()
    if unlabelled := labels.count(""):
        notes += (f"{unlabelled:,} tiles have no label and take no part.",)
    unknown = groups.count("")
    if 0 < unknown < len(groups):
        notes += (f"{unknown:,} tiles have no known patient or group: their slide, or the tile, stands for it.",)
    return notes


def _broken_warnings(source: TileFolder, kept: NDArray[np.int64]) -> tuple[str, ...]:
    if kept.size == len(source):
        return ()
    named = ", ".join(name for name, _ in source.broken[:3])
    return (f"{len(source) - kept.size:,} pictures could not be read and were left out: {named}.",)


def _split_gaps(
    classes: tuple[str, ...], truth: NDArray[np.int64], train: NDArray[np.int64], test: NDArray[np.int64]
) -> dict[str, str]:
    """Classes that are not on both sides of the split."""
    gaps = {}
    for number, name in enumerate(classes):
        for part, rows in (("train", train), ("test", test)):
            if not (truth[rows] == number).any():
                gaps[name] = f"no tile of it is marked {part}"
    return gaps
