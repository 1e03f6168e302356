"""Which rows `where` lets through: its terms by DuckDB over slide and tile columns."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from functools import cached_property, partial
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encoder.errors import QueryError
from query.comparisons import compared_columns
from query.database import Connection, Database, LimitError, Limits, out_of_time, run, shared_database, told
from query.expression import SHARED, Expression, Term, parse_expression, renamed, texts_of
from query.forms import form_of
from query.parsing import nesting_told

_MASKS, _ANSWERS = 8, 256  # remembered: a bool per tile is much, one per slide is little
_FEW = 4  # one row in so many: picking them costs less than looking at all
# Up to so many tiles one statement that looks at all of them is over sooner than several that look at a part.
_SMALL = 1 << 15
_SMALL_TABLE, _SMALL_BYTES = "tiles_and_slides", 64 << 20  # a slide's texts are there once per tile
# The whole optimizer takes a third of a statement's time there. These steps compute once what is written several times,
# fold constants, make a table of a long list, leave columns unread, know which texts are ASCII, filter before a join.
_SMALL_OPTIMIZERS = frozenset(
    {"common_subexpressions", "expression_rewriter", "in_clause", "unused_columns"}
    | {"statistics_propagation", "filter_pushdown"}
)

V = TypeVar("V")


class RowFilter:
    """Resolves `where` expressions for one set of rows; remembers the last ones.

    Terms that AND joins at the top are resolved apart: those over slide columns on the few slides, those over
    tile columns on the tiles that are left, those over both on tiles that look up their slide. DuckDB may fail
    on a row that another term would have kept from it, so what fails this way is asked again as a whole.

    Of few tiles DuckDB keeps a table of its own in which each has its slide's columns beside it: a statement
    costs more than its rows there, so one answers for all terms.

    Args:
        slides: the cohort's slides, sorted by id.
        tiles: tile columns that an expression may name, `slide_no` among them.
        slide_code: row of each tile's slide in `slides`, [N]; -1 for a tile without one, which never matches.
        limits: what one expression may use.
        small: most tiles that count as few.
    """

    def __init__(
        self,
        slides: pa.Table,
        tiles: pa.Table,
        slide_code: NDArray[np.integer],
        limits: Limits | None = None,
        small: int = _SMALL,
    ) -> None:
        self._slides, self._tiles, self._slide_code = slides, tiles, slide_code
        self._limits = limits or Limits()
        bytes_per_tile = slides.nbytes / max(1, slides.num_rows)
        self._small = 0 < len(slide_code) <= small and len(slide_code) * bytes_per_tile <= _SMALL_BYTES
        if self._small:
            # DuckDB shares out more rows than these among threads, and starts sooner where it has one.
            lay_out = partial(_lay_out_small, slides=slides, tiles=tiles, slide_code=slide_code)
            self._small_database = Database(self._limits, 1, lay_out, optimizers=_SMALL_OPTIMIZERS)
        # Of all rows, and what the small one refuses: the whole optimizer keeps more casts from rows that fail them.
        self._database = shared_database(self._limits)
        self._columns = {"slides": slides.column_names, "tiles": tiles.column_names}
        self._parsed: _Remembered[Expression] = _Remembered(_ANSWERS)
        self._forms: _Remembered[bool] = _Remembered(_ANSWERS)  # of checked texts that may run as they are
        self._answers: _Remembered[NDArray[np.bool_]] = _Remembered(_ANSWERS)
        self._masks: _Remembered[NDArray[np.bool_]] = _Remembered(_MASKS)

    def mask(self, where: str) -> NDArray[np.bool_]:
        """True for the rows that match, bool [N]; an expression that is NULL does not match.

        Raises:
            QueryError: the expression is refused, names an unknown column, or is not true or false.
        """
        known = self._masks.get(where)
        if known is not None:
            return known
        # Resolved without a lock: a slow expression keeps nobody else waiting.
        with nesting_told(where, "where"):
            return self._masks.keep(where, _read_only(self._resolve(where)))

    def slides(self, where: str) -> NDArray[np.bool_] | None:
        """True for the slides that match, bool [slides]; None where the expression reads tile columns.

        Raises:
            QueryError: as for `mask`.
        """
        request = _Request(where, self._limits, self._database.connect())
        with nesting_told(where, "where"), closing(request):
            return self._slides_that(request, where) if "tiles" not in self._parse(where).reads else None

    def _is_plain(self, where: str) -> bool:
        """Whether an expression may run unparsed: it compares columns that are known, and does nothing else."""
        compared = compared_columns(where)
        return compared is not None and compared <= self._unambiguous

    @cached_property
    def _unambiguous(self) -> frozenset[str]:
        """Lower-case names that mean one thing without a relation before them."""
        slides, tiles = ({name.lower() for name in names} for names in self._columns.values())
        return frozenset((slides ^ tiles) | {SHARED})

    @cached_property
    def _homeless(self) -> NDArray[np.bool_] | None:
        """Which tiles have no slide; None where all have one."""
        found = self._slide_code < 0
        return found if found.any() else None

    @cached_property
    def _runs(self) -> tuple[NDArray[np.integer], NDArray[np.intp] | None]:
        """Slide of each run of tiles, and how many tiles it has; of each tile where they are not in runs."""
        # Tiles are written slide by slide: ten times faster to spread than one by one.
        starts = np.flatnonzero(np.diff(self._slide_code)) + 1
        if not len(self._slide_code) or _FEW * starts.size > len(self._slide_code):
            return self._slide_code, None
        edges = np.concatenate([[0], starts, [len(self._slide_code)]])
        return self._slide_code[edges[:-1]], np.diff(edges)

    def _parse(self, where: str) -> Expression:
        known = self._parsed.get(where)
        if known is not None:
            return known
        return self._parsed.keep(where, parse_expression(where, self._columns))

    def _resolve(self, where: str) -> NDArray[np.bool_]:
        if self._small and (found := self._resolve_small(where)) is not None:
            return found
        expression = self._parse(where)
        with closing(_Request(where, self._limits, self._database.connect())) as request:
            mask = request.unless_refused(lambda _: self._in_turn(request, expression))
            return self._as_a_whole(request) if mask is None else mask

    def _resolve_small(self, where: str) -> NDArray[np.bool_] | None:
        """Resolve an expression on the table of few tiles, bool [N]; None where it does not do there.

        Raises:
            QueryError: the expression is refused.
        """
        if not self._is_plain(where):
            form = form_of(where)
            if form is None or not self._forms.get(form):
                if "slides" in self._parse(where).qualifiers:
                    return None
                if form is not None:
                    self._forms.keep(form, True)
        with closing(_Request(where, self._limits, self._small_database.connect())) as request:
            return request.unless_refused(self._at_once)

    def _at_once(self, request: _Request) -> NDArray[np.bool_]:
        """Resolve all terms on the table of few tiles, bool [N]."""
        mask = request.truth(f"({request.where}\n)", f"{_SMALL_TABLE} AS tiles")
        return mask if self._homeless is None else mask & ~self._homeless

    def _in_turn(self, request: _Request, expression: Expression) -> NDArray[np.bool_] | None:
        """Resolve the terms by what they read, bool [N]; None where they cannot be told apart."""
        if "tiles" not in expression.reads:
            return self._of_slides(self._slides_that(request, expression.text))
        slides = expression.reading() + expression.reading("slides")
        tiles, mixed = expression.reading("tiles"), expression.reading("slides", "tiles")
        names = {column: f"c{n}" for n, column in enumerate(sorted(_columns_of(mixed)))}
        groups = {"slides": slides, "tiles": tiles, "mixed": [renamed(term, names) for term in mixed]}
        groups = {kind: terms for kind, terms in groups.items() if terms}
        if list(groups) == ["tiles"]:
            texts = {"tiles": f"({expression.text}\n)"}
        else:
            written = texts_of(expression, list(groups.values()))
            if written is None:
                return None
            # What AND joins is taken for true or false, whatever its type; also where it stands alone here.
            form = "({})" if len(expression.terms) == 1 else "(({}) AND true)"
            texts = {kind: form.format(text) for kind, text in zip(groups, written, strict=True)}
        if slides:
            mask = self._of_slides(self._slides_that(request, texts["slides"]))
        else:
            mask = np.ones(len(self._slide_code), np.bool_) if self._homeless is None else ~self._homeless
        if tiles:
            self._keep_true(request, texts["tiles"], {("tiles", name): name for _, name in _columns_of(tiles)}, mask)
        if mixed:
            self._keep_true(request, texts["mixed"], names, mask)
        return mask

    def _keep_true(
        self, request: _Request, text: str, names: dict[tuple[str, str], str], mask: NDArray[np.bool_]
    ) -> None:
        """Clear the rows of `mask` for which a text over columns of these names is not true."""
        rows = np.flatnonzero(mask) if _FEW * np.count_nonzero(mask) <= mask.size else None
        columns = [
            self._tile_column(name, rows) if relation != "slides" else self._slide_column(name, rows)
            for relation, name in names
        ]
        request.connection.register("tiles", pa.table(columns, list(names.values())))
        answer = request.truth(text, "tiles")
        if rows is None:
            mask &= answer
        else:
            mask[rows] = answer

    def _tile_column(self, name: str, rows: NDArray[np.intp] | None) -> pa.ChunkedArray:
        column = _column(self._tiles, name)
        return column if rows is None else column.take(pa.array(rows))

    def _slide_column(self, name: str, rows: NDArray[np.intp] | None) -> pa.Array:
        """A column of the slides with one entry per tile."""
        values = _column(self._slides, name).combine_chunks()
        codes = self._slide_code if rows is None else self._slide_code[rows]
        if self._homeless is not None:
            codes = np.maximum(codes, 0)
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        # As a dictionary no value is copied, and DuckDB looks at each slide's once per batch.
        few = len(codes) < len(values)
        return values.take(pa.array(codes)) if few else pa.DictionaryArray.from_arrays(pa.array(codes), values)

    def _slides_that(self, request: _Request, text: str) -> NDArray[np.bool_]:
        """Which slides match a text over slide columns, bool [slides]."""
        known = self._answers.get(text)
        if known is not None:
            return known
        try:
            request.connection.register("slides", self._slides)
            answer = request.truth(f"({text}\n)", "slides")
        except (LimitError, _NotBooleanError):
            raise
        except QueryError:
            answer = request.rows_where(text, {"slides": self._slides}, "slides")
        return self._answers.keep(text, _read_only(answer))

    def _of_slides(self, answer: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which tiles belong to slides that match, bool [N]."""
        if not answer.size:
            return np.zeros(len(self._slide_code), np.bool_)
        codes, lengths = self._runs
        mask = np.take(answer, codes, mode="clip")
        if lengths is not None:
            mask = np.repeat(mask, lengths)
        if self._homeless is not None:
            mask &= ~self._homeless
        return mask

    def _as_a_whole(self, request: _Request) -> NDArray[np.bool_]:
        """Resolve an expression on tiles joined to their slides, bool [N]."""
        return request.rows_where(
            request.where, {"tiles": self._tiles, "slides": self._slides}, "tiles JOIN slides USING (slide_no)"
        )


class _NotBooleanError(QueryError):
    """An expression is neither true nor false."""


class _Request:
    """One expression on its way: a connection, and the time that is left.

    Args:
        where: the user's expression, named in errors.
        limits: of each statement; when their time is over, no more is begun.
        connection: closed with the request, and with it what is registered there.
    """

    def __init__(self, where: str, limits: Limits, connection: Connection) -> None:
        self.where, self.connection = where, connection
        self._limits, self._started = limits, time.monotonic()

    def close(self) -> None:
        """Let go of the connection and of what is registered in it."""
        self.connection.close()

    def unless_refused(self, way: Callable[[_Request], NDArray[np.bool_] | None]) -> NDArray[np.bool_] | None:
        """What a way of resolving gives; None where DuckDB refuses it, which says nothing of other ways."""
        try:
            return way(self)
        except (LimitError, _NotBooleanError):
            raise
        except QueryError:
            return None

    def truth(self, text: str, relation: str) -> NDArray[np.bool_]:
        """Whether a text is true for each row of a relation, bool [rows]; every row is looked at.

        Raises:
            QueryError: it is not true or false, or DuckDB refuses it.
        """
        with self._limited():
            # In the order of the rows: without a join DuckDB keeps it. Bound once, unlike by `sql`.
            asked = run(self.connection, f"SELECT {text} AS matches FROM {relation}")
            self._check_type("" if asked.description is None else str(asked.description[0][1]))
            answer = asked.fetchnumpy()["matches"]
            asked.complete()
            return np.asarray(np.ma.filled(answer, False), np.bool_)

    def rows_where(self, text: str, relations: dict[str, pa.Table], source: str) -> NDArray[np.bool_]:
        """Which rows of the first relation a text as the WHERE of a SELECT finds, bool [rows].

        Raises:
            QueryError: it is not true or false, or DuckDB refuses it.
        """
        first = next(iter(relations))
        mask = np.zeros(relations[first].num_rows, np.bool_)
        row = _new_name("__row", [column for table in relations.values() for column in table.column_names])
        numbered = relations[first].append_column(row, pa.array(np.arange(mask.size)))
        with self._limited():
            for name, table in (relations | {first: numbered}).items():
                self.connection.register(name, table)
            self._check_type(str(self.connection.sql(f"SELECT ({text}\n) AS matches FROM {source}").types[0]))
            mask[self.connection.sql(f"SELECT {row} FROM {source} WHERE ({text}\n)").fetchnumpy()[row]] = True
        return mask

    @contextmanager
    def _limited(self) -> Iterator[None]:
        if time.monotonic() - self._started > self._limits.seconds:
            raise out_of_time(self._limits, "where")
        with told(self._limits, "where"):
            yield

    def _check_type(self, kind: str) -> None:
        if kind != "BOOLEAN":
            raise _NotBooleanError(
                f"where must be true or false for a tile, {self.where!r} is {kind.lower()}.",
                "Compare it with something, such as: organ = 'liver'",
            )


class _Remembered(Generic[V]):
    """The last values, by text; safe for several threads.

    Args:
        most: how many to hold.
    """

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._held: dict[str, V] = {}

    def get(self, key: str) -> V | None:
        """The value of a text, if it is remembered."""
        with self._lock:
            return self._held.get(key)

    def keep(self, key: str, value: V) -> V:
        """Remember a value, unless somebody else was faster; returns the one that is held."""
        with self._lock:
            value = self._held.setdefault(key, value)
            if len(self._held) > self._most:
                del self._held[next(iter(self._held))]
            return value


def _lay_out_small(connection: Connection, slides: pa.Table, tiles: pa.Table, slide_code: NDArray[np.integer]) -> None:
    """Put the table of few tiles into a database: their columns, and those of their slides that have other names."""
    taken = {name.lower() for name in tiles.column_names}
    columns = dict(zip(tiles.column_names, tiles.columns, strict=True))
    codes = pa.array(slide_code, pa.int32(), mask=slide_code < 0)
    for name, column in zip(slides.column_names, slides.columns, strict=True):
        if name.lower() not in taken:
            # A column of nothing would become one of numbers; text can be compared with anything.
            values = column.cast(pa.string()) if pa.types.is_null(column.type) else column
            columns[name] = values.combine_chunks().take(codes)
    connection.register("given", pa.table(columns))
    connection.execute(f"CREATE TABLE {_SMALL_TABLE} AS SELECT * FROM given")
    connection.unregister("given")


def _columns_of(terms: list[Term]) -> set[tuple[str, str]]:
    return set().union(*(term.columns for term in terms))


def _column(table: pa.Table, lower_name: str) -> pa.ChunkedArray:
    return table.column(next(n for n, name in enumerate(table.column_names) if name.lower() == lower_name))


def _read_only(array: NDArray[np.bool_]) -> NDArray[np.bool_]:
    array.flags.writeable = False
    return array


def _new_name(name: str, taken: Collection[str]) -> str:
    """A name that no column has: manifests may name theirs as they like."""
    lower = {item.lower() for item in taken}
    while name in lower:
        name = f"{name}_"
    return name
