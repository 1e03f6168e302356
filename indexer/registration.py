"""Slides enter the store here: their numbers, what the manifest says of them, and the manifest's own columns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from encoder.errors import StoreError, UsageError
from indexer import schema
from indexer.manifest import SlideEntry, resolved
from indexer.slide_files import fingerprint
from indexer.store import Store

_UNFIT = ".`'\""  # in a column's name


@dataclass(frozen=True)
class RegisteredSlide:
    """A slide with its number, described by all that manifests have said of it so far.

    Attributes:
        fingerprint: of the file that was last opened; None where it never was.
        mpp: that was settled then.
        mpp_source: where it came from.
    """

    entry: SlideEntry
    slide_no: int
    fingerprint: str | None
    mpp: float | None
    mpp_source: str | None

    @property
    def slide_id(self) -> str:
        """Id of the slide."""
        return self.entry.slide_id


def in_shard(slide_id: str, shard: tuple[int, int] | None) -> bool:
    """Whether a slide belongs to part i of n; the same on every machine."""
    if shard is None:
        return True
    digest = hashlib.sha256(slide_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") % shard[1] == shard[0] - 1


def check_entries(store: Store | None, entries: Sequence[SlideEntry] | None) -> None:
    """Refuse slides that cannot enter the store, before anything is written.

    Args:
        store: None where there is none yet.

    Raises:
        UsageError: a manifest column bears a name of the store's own, an id is taken by another file,
            or there is no slide at all.
        StoreError: a column of numbers meets text.
    """
    if entries is None:
        if store is None or not store.count("slides"):
            raise UsageError("No slides are named, and the store knows none.", fix="Name slide files or folders.")
        return
    if not entries:
        raise UsageError("No slides are named.", fix="Name slide files or folders.")
    known = store.slides() if store is not None else schema.SLIDES.empty_table()
    _column_types(entries, known.schema)
    rows = {row["slide_id"]: row for row in known.select(["slide_id", "path", "fingerprint"]).to_pylist()}
    for entry in entries:
        row = rows.get(entry.slide_id)
        if row is not None:
            _refuse_other_file(resolved(entry), Path(row["path"]), row["fingerprint"])


def register(
    store: Store, entries: Sequence[SlideEntry] | None, shard: tuple[int, int] | None
) -> list[RegisteredSlide]:
    """Write new slides and changed manifest values into `slides`, and return the asked slides.

    What the manifest does not say, or no longer says, stays as it was: a value is changed by another value.
    Where nothing is new the table is not touched.

    Args:
        entries: None for all slides of the store.
        shard: part of the slides to keep.

    Raises:
        StoreError: a column of numbers meets text.
    """
    if entries is not None:
        ours = [resolved(entry) for entry in entries if in_shard(entry.slide_id, shard)]
        _add_columns(store, ours)
        table = store.slides()
        known = {row["slide_id"]: row for row in table.to_pylist()}
        _insert(store, table.schema, [e for e in ours if e.slide_id not in known], known, shard)
        _update(store, table.schema, [e for e in ours if e.slide_id in known], known)
        wanted = [entry.slide_id for entry in ours]
    rows = {row["slide_id"]: row for row in store.slides().to_pylist()}
    if entries is None:
        wanted = [slide_id for slide_id in rows if in_shard(slide_id, shard)]
    user_columns = store.user_columns()
    return [_registered(rows[slide_id], user_columns) for slide_id in wanted]


def _registered(row: dict[str, Any], user_columns: Sequence[str]) -> RegisteredSlide:
    entry = SlideEntry(
        slide_id=row["slide_id"],
        path=Path(row["path"]),
        mpp=row["manifest_mpp"],
        patient_id=row["patient_id"],
        site_id=row["site_id"],
        cohort=row["cohort"],
        mask=None if row["mask"] is None else Path(row["mask"]),
        extra={name: row[name] for name in user_columns},
    )
    return RegisteredSlide(entry, row["slide_no"], row["fingerprint"], row["mpp"], row["mpp_source"])


def _insert(
    store: Store,
    table_schema: pa.Schema,
    entries: Sequence[SlideEntry],
    known: dict[str, dict[str, Any]],
    shard: tuple[int, int] | None,
) -> None:
    if not entries:
        return
    # Drivers with disjoint shards may register at the same moment: each takes the numbers of its own residue.
    part, parts = (shard[0] - 1, shard[1]) if shard is not None else (0, 1)
    first = 1 + max((row["slide_no"] for row in known.values()), default=-1)
    first += (part - first) % parts
    now = datetime.now(UTC)
    rows = []
    for n, entry in enumerate(entries):
        row: dict[str, Any] = dict.fromkeys(table_schema.names)
        row |= {"slide_id": entry.slide_id, "slide_no": first + n * parts, "registered_at": now}
        rows.append(row | _manifest_values(entry, table_schema))
    full = store.table_schema("slides")  # with the thumbnail, which `slides()` leaves out
    store.lance.append("registered", "slides", pa.Table.from_pylist(rows, schema=full))


def _update(
    store: Store, table_schema: pa.Schema, entries: Sequence[SlideEntry], known: dict[str, dict[str, Any]]
) -> None:
    changed = []
    names: set[str] = set()
    for entry in entries:
        row = known[entry.slide_id]
        values = _manifest_values(entry, table_schema)
        different = {name for name, value in values.items() if value != row[name]}
        if different:
            changed.append(row | values)
            names |= different
    if changed:
        fields = [table_schema.field(name) for name in ["slide_id", *sorted(names)]]
        rows = pa.Table.from_pylist(changed, schema=pa.schema(fields))
        store.lance.update_columns("registered", "slides", "slide_id", rows)


def _manifest_values(entry: SlideEntry, table_schema: pa.Schema) -> dict[str, Any]:
    """What an entry says, without what it leaves open."""
    values: dict[str, Any] = {
        "path": entry.path.as_posix(),
        "manifest_mpp": entry.mpp,
        "mask": None if entry.mask is None else entry.mask.as_posix(),
        "cohort": entry.cohort,
        "patient_id": entry.patient_id,
        "site_id": entry.site_id,
    }
    for name, value in entry.extra.items():
        if value is not None:
            is_text = pa.types.is_string(table_schema.field(name).type)
            values[name] = _text(value) if is_text else float(value)
    return {name: value for name, value in values.items() if value is not None}


def _add_columns(store: Store, entries: Sequence[SlideEntry]) -> None:
    have = store.table_schema("slides")
    missing = {name: kind for name, kind in _column_types(entries, have).items() if name not in have.names}
    for name, kind in missing.items():
        try:
            store.lance.add_columns("columns", "slides", [pa.field(name, kind)])
        except StoreError:
            if name not in store.table_schema("slides").names:
                raise
            # The driver of another shard was quicker; what it made must fit.
            _column_types(entries, store.table_schema("slides"))


def _column_types(entries: Sequence[SlideEntry], have: pa.Schema) -> dict[str, pa.DataType]:
    types: dict[str, pa.DataType] = {}
    _check_names({name: None for entry in entries for name in entry.extra}, have.names)
    for entry in entries:
        for name, value in entry.extra.items():
            if value is None:
                continue
            existing = have.field(name).type if name in have.names else None
            if isinstance(value, str) and existing == pa.float64():
                raise StoreError(
                    f"The column {name} holds numbers, but slide {entry.slide_id} gives the text {value!r}.",
                    fix="Correct the manifest, or give the text a column of its own.",
                )
            kind = existing or (pa.string() if isinstance(value, str) else pa.float64())
            if types.get(name) != pa.string():
                types[name] = kind
    return types


def _check_names(names: Iterable[str], have: Sequence[str]) -> None:
    """Refuse column names that would make the table unreadable or its queries ambiguous.

    Raises:
        UsageError: names the column.
    """
    known = {name.lower(): name for name in have}
    for name in names:
        other = known.setdefault(name.lower(), name)
        if name.lower() in schema.RESERVED_SLIDE_COLUMNS or name.lower().startswith("_row"):
            why = "the store has its own of that name"
        elif not name.isprintable() or any(character in _UNFIT for character in name):
            why = "leave out dots, quotes and what cannot be printed"
        elif other != name:
            why = f"{other!r} differs from it by upper and lower case only"
        else:
            continue
        raise UsageError(f"The manifest column {name!r} bears a name that the store cannot take.", f"Rename it: {why}.")


def _refuse_other_file(entry: SlideEntry, stored: Path, stored_fingerprint: str | None) -> None:
    if entry.path == stored or stored_fingerprint is None or not stored.exists() or not entry.path.exists():
        return
    try:
        is_other = fingerprint(entry.path) != stored_fingerprint
    except OSError:
        return  # the plan stage says so, and the other slides go on
    if is_other:
        raise UsageError(
            f"The slide id {entry.slide_id} belongs to {stored}, and {entry.path} is another file.",
            fix="Give one of them an id of its own in the manifest's slide_id column.",
        )


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.15g}"
