"""What a filter can be built from: the columns that tell slides and tiles apart, and conditions over them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encoder.errors import QueryError

if TYPE_CHECKING:
    from query.cohort import Cohort

Kind = Literal["choice", "range", "flag", "text"]
Relation = Literal["slides", "tiles"]
Value = str | bool | int | float | date
Bound = int | float | date

MOST_CHOICES = 50
_SLIDE_COLUMNS = ("cohort", "patient_id", "site_id", "slide_id")
_TILE_COLUMNS = ("tissue",)
_NAMED = 3  # values of a condition that its description names


@dataclass(frozen=True)
class Choice:
    """One value of a column, and how many slides have it."""

    value: str | bool
    slides: int


@dataclass(frozen=True)
class Facet:
    """A column that tells searchable slides, or tiles, apart.

    Attributes:
        column: its name.
        relation: what it is a column of.
        kind: `choice` of few texts, `range` of numbers or times, `flag`, or `text` of many values.
        choices: of a choice or flag, the most frequent first.
        distinct: different values that are known.
        unknown: slides, or tiles, of which it says nothing.
        low, high: of a range.
        whole: whether all numbers of a range are whole.
    """

    column: str
    relation: Relation
    kind: Kind
    choices: tuple[Choice, ...] = ()
    distinct: int = 0
    unknown: int = 0
    low: Bound | None = None
    high: Bound | None = None
    whole: bool = False


@dataclass(frozen=True)
class Condition:
    """What a slide or tile must be to match; with nothing but its column: known.

    Attributes:
        column: its name.
        values: any of these; None for all.
        low, high: at least and at most so much; None for no bound.
        contains: a text that the value contains, whatever its case; None for any.
        include_unknown: whether what is unknown matches too.
        relation: what it is a column of.
    """

    column: str
    values: tuple[Value, ...] | None = None
    low: Bound | None = None
    high: Bound | None = None
    contains: str | None = None
    include_unknown: bool = False
    relation: Relation = "slides"

    @property
    def is_open(self) -> bool:
        """Whether everything matches."""
        return self.include_unknown and self._asks_nothing

    @property
    def _asks_nothing(self) -> bool:
        return self.values is None and self.low is None and self.high is None and self.contains is None


def facets(cohort: Cohort, encoder: str | None = None, grid: str | None = None) -> tuple[Facet, ...]:
    """Columns that can filter a search: those of the manifest, of the slides' identity, and of the tiles.

    Columns with one value or none are left out. Of two whose names differ only by case, a filter knows the first.

    Args:
        encoder, grid: as in `Cohort.search`; only slides that it would look at are counted.

    Raises:
        QueryError: the choice of vectors is wrong.
    """
    room = cohort.room(cohort.choose(encoder, grid))
    slides = room.slides.take(pa.array(room.rows.slides_present))
    names = [name for name in cohort.store.user_columns() if name in slides.column_names]
    first = {name.lower(): name for name in reversed(slides.column_names)}
    found = [_facet(name, "slides", slides[name]) for name in (*names, *_SLIDE_COLUMNS) if first[name.lower()] == name]
    found += [_facet(name, "tiles", room.rows.tiles[name]) for name in _TILE_COLUMNS]
    return tuple(facet for facet in found if facet is not None)


def to_where(conditions: Iterable[Condition]) -> str | None:
    """An expression that `Cohort.search(where=...)` takes, true where all conditions hold; None for no condition.

    Raises:
        QueryError: a value is of a type that no column has.
    """
    return " AND ".join(_term(condition) for condition in conditions if not condition.is_open) or None


def describe(conditions: Iterable[Condition]) -> str:
    """The conditions in plain words; empty where there is none."""
    return "; ".join(_words(condition) for condition in conditions if not condition.is_open)


def _facet(name: str, relation: Relation, column: pa.ChunkedArray) -> Facet | None:
    """The facet of a column; None where it tells nothing apart, or is of a type that no condition has."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _of_texts(name, relation, column)
    if pa.types.is_boolean(kind):
        return _of_choices(name, relation, "flag", column)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return _of_range(name, relation, column)
    return None


def _of_texts(name: str, relation: Relation, column: pa.ChunkedArray) -> Facet | None:
    column = pc.if_else(pc.equal(column, ""), pa.scalar(None, column.type), column)
    distinct = pc.count_distinct(column).as_py()
    if distinct <= MOST_CHOICES:
        return _of_choices(name, relation, "choice", column)
    return Facet(name, relation, "text", distinct=distinct, unknown=column.null_count)


def _of_choices(name: str, relation: Relation, kind: Kind, column: pa.ChunkedArray) -> Facet | None:
    counted = [(row["values"], row["counts"]) for row in pc.value_counts(column).to_pylist()]
    known = sorted((Choice(value, count) for value, count in counted if value is not None), key=_by_frequency)
    if len(known) + bool(column.null_count) < 2 or not known:
        return None
    return Facet(name, relation, kind, tuple(known), len(known), column.null_count)


def _of_range(name: str, relation: Relation, column: pa.ChunkedArray) -> Facet | None:
    floating = pa.types.is_floating(column.type)
    if floating:
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    unknown = column.null_count
    ends = pc.min_max(column).as_py()
    low, high = ends["min"], ends["max"]
    if low is None or (low == high and not unknown):
        return None
    values = column.drop_null()
    whole = not pa.types.is_temporal(column.type) and (
        not floating or pc.all(pc.equal(pc.trunc(values), values)).as_py()
    )
    return Facet(name, relation, "range", unknown=unknown, low=low, high=high, whole=whole)


def _by_frequency(choice: Choice) -> tuple[int, str]:
    return -choice.slides, str(choice.value)


def _term(condition: Condition) -> str:
    column = f'{condition.relation}."{condition.column.replace(chr(34), 2 * chr(34))}"'
    parts = []
    if condition.values is not None:
        parts.append(f"{column} IN ({', '.join(map(_literal, condition.values))})" if condition.values else "false")
    # DuckDB takes NaN for larger than all numbers.
    number = any(isinstance(bound, int | float) for bound in (condition.low, condition.high))
    parts += [f"{column} <> 'NaN'::DOUBLE"] if number else []
    parts += [f"{column} >= {_literal(condition.low)}"] if condition.low is not None else []
    parts += [f"{column} <= {_literal(condition.high)}"] if condition.high is not None else []
    if condition.contains is not None:
        parts.append(f"contains(lower({column}), lower({_literal(condition.contains)}))")
    # A cell of a manifest that is empty says as little as one that is not there.
    unknown = f"{column} IS NULL OR CAST({column} AS VARCHAR) = ''"
    unknown += f" OR {column} = 'NaN'::DOUBLE" if number else ""
    if not condition.include_unknown:
        return f"({' AND '.join(parts)})" if parts else f"NOT ({unknown})"
    return f"({' AND '.join(parts)} OR {unknown})"


def _literal(value: object) -> str:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return f"'{value!r}'::DOUBLE"
    if isinstance(value, datetime):
        return f"'{value.isoformat(' ')}'::{'TIMESTAMP' if value.tzinfo is None else 'TIMESTAMPTZ'}"
    if isinstance(value, date):
        return f"'{value.isoformat()}'::DATE"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    raise QueryError(
        f"A condition cannot ask for {value!r}.", "Give texts, numbers, dates, true or false; include_unknown for none."
    )


def _words(condition: Condition) -> str:
    parts = []
    if condition.values:
        parts.append(f"is {_list(condition.values)}")
    low, high = condition.low, condition.high
    if low is not None and high is not None:
        parts.append(f"is {_value(low)}" if low == high else f"is from {_value(low)} to {_value(high)}")
    elif low is not None or high is not None:
        parts.append(f"is at least {_value(low)}" if low is not None else f"is at most {_value(high)}")
    if condition.contains is not None:
        parts.append(f"contains “{condition.contains}”")
    if condition.values == ():
        parts = [] if condition.include_unknown else ["is none of its values"]
    said = " and ".join(parts)
    if condition.include_unknown:
        said = f"{said} or is unknown" if said else "is unknown"
    return f"{condition.column} {said or 'is known'}"


def _list(values: Sequence[Value]) -> str:
    if len(values) > _NAMED + 1:
        return f"{', '.join(map(_value, values[:_NAMED]))} or {len(values) - _NAMED} others"
    return " or ".join(part for part in (", ".join(map(_value, values[:-1])), _value(values[-1])) if part)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
