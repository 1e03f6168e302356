"""DuckDB as questions use it: locked databases in memory, limits, and errors in one sentence."""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import duckdb
import pyarrow as pa

from encoder.errors import QueryError

Connection = duckdb.DuckDBPyConnection


@dataclass(frozen=True)
class Limits:
    """What one statement may use.

    Attributes:
        seconds: running time.
        memory_mib: DuckDB's memory, and the size of a result.
    """

    seconds: float = 30.0
    memory_mib: int = 1024


class LimitError(QueryError):
    """A statement passed its time or its memory."""


class Database:
    """A locked database in memory that is opened when it is first asked for, and anew in a forked process.

    A database takes some ten milliseconds to open and holds threads; a connection to it takes neither. Relations
    that are registered in a connection are seen by it alone and go when it is closed. Safe for several threads.

    Args:
        limits: of each statement; all connections share one allowance of memory.
        threads: of all connections; None for one per core.
        lay_out: puts into it what every connection shall find.
        prepared: statements of every connection that is lent, by name.
        optimizers: the steps of DuckDB's optimizer to take; None for all.
    """

    def __init__(
        self,
        limits: Limits,
        threads: int | None = None,
        lay_out: Callable[[Connection], None] | None = None,
        prepared: Mapping[str, str] | None = None,
        optimizers: Collection[str] | None = None,
    ) -> None:
        self._limits, self._threads, self._lay_out, self._prepared = limits, threads, lay_out, prepared or {}
        self._optimizers = optimizers
        self._open: Connection | None = None
        self._idle: list[Connection] = []
        _databases.add(self)

    def connect(self) -> Connection:
        """A connection of its own, to be closed by the caller."""
        opened = self._open
        if opened is None:
            opened = locked_connection(self._limits, self._threads, self._optimizers)
            if self._lay_out is not None:
                self._lay_out(opened)
            self._open = opened  # where two threads were here at once, one database goes with its connections
        return opened.cursor()

    @contextmanager
    def lend(self) -> Iterator[Connection]:
        """A connection that is lent again when it comes back: nothing may be left in it."""
        idle = self._idle
        try:
            connection = idle.pop()
        except IndexError:
            connection = self.connect()
            for name, text in self._prepared.items():
                connection.execute(f"PREPARE {name} AS {text}")
        try:
            yield connection
        finally:
            idle.append(connection)

    def forget(self) -> None:
        """Let go of it; connections that are still in use hold it until they are closed."""
        self._open, self._idle = None, []


_databases: weakref.WeakSet[Database] = weakref.WeakSet()


def _forget_databases() -> None:
    for database in list(_databases):
        database.forget()


# Held to the very end, a database writes notices of what it takes for a leak; a forked process has none of its
# threads, and could neither use nor close it.
atexit.register(_forget_databases)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_forget_databases)


@cache
def shared_database(limits: Limits) -> Database:
    """The one empty database that this process keeps for these limits; for checked expressions only."""
    return Database(limits)


def locked_connection(
    limits: Limits, threads: int | None = None, optimizers: Collection[str] | None = None
) -> Connection:
    """Open an empty database in memory that reads no file, no network and no Python variable.

    Relations may still be registered; the configuration can no longer be changed.

    Args:
        limits: of each statement.
        threads: None for one per core.
        optimizers: the steps of DuckDB's optimizer to take; None for all.
    """
    config: dict[str, str | bool | int | float | list[str]] = {
        "enable_external_access": "false",
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "python_enable_replacements": "false",
        "memory_limit": f"{limits.memory_mib}MiB",
        "max_execution_time": str(max(1, round(1e3 * limits.seconds))),
        "temp_directory": "",
    }
    if threads is not None:
        config["threads"] = str(threads)
    connection = duckdb.connect(":memory:", config=config)
    if optimizers is not None:
        every = [name for (name,) in connection.execute("SELECT name FROM duckdb_optimizers()").fetchall()]
        left_out = ",".join(name for name in every if name not in optimizers)
        connection.execute(f"SET disabled_optimizers = '{left_out}'")
    connection.execute("SET lock_configuration = true")
    return connection


def run(connection: Connection, text: str) -> Connection:
    """Run one statement; DuckDB takes a parsed one a third faster than its text."""
    return connection.execute(connection.extract_statements(text)[0])


@contextmanager
def told(limits: Limits, what: str) -> Iterator[None]:
    """Tell DuckDB's errors in one sentence.

    Args:
        limits: of the database that is asked.
        what: the option that the user wrote, named in errors.

    Raises:
        LimitError: a statement passes its time or memory.
        QueryError: DuckDB refuses it.
    """
    try:
        yield
    except duckdb.InterruptException as error:
        raise out_of_time(limits, what) from error
    except duckdb.OutOfMemoryException as error:
        raise LimitError(
            f"{what}: needs more than {limits.memory_mib} MiB of memory.", "Ask for fewer rows or groups."
        ) from error
    except duckdb.Error as error:
        raise QueryError(f"{what}: {first_line(str(error))}") from error


def out_of_time(limits: Limits, what: str) -> LimitError:
    """What to raise where the time of `what` is over."""
    return LimitError(f"{what}: stopped after {limits.seconds:g} s.", "Ask for less: fewer rows, no cross join.")


def fetch(connection: Connection, text: str, limits: Limits, what: str) -> pa.Table:
    """Run one checked statement within its limits.

    Args:
        what: the option that the user wrote, named in errors.

    Raises:
        QueryError: DuckDB refuses it, or it passes its time or memory.
    """
    with told(limits, what):
        reader = connection.sql(text).to_arrow_reader(65_536)
        batches, size = [], 0
        for batch in reader:
            batches.append(batch)
            size += batch.nbytes
            if size > limits.memory_mib << 20:
                raise LimitError(f"{what}: the result is larger than {limits.memory_mib} MiB.", "Add a LIMIT.")
        return pa.Table.from_batches(batches, reader.schema)


def first_line(message: str) -> str:
    """DuckDB's message without the part that shows the statement."""
    return " ".join(message.split("LINE 1:")[0].split())
