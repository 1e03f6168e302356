"""What SQL a user may write: one expression or one SELECT, without reach beyond the store."""

from __future__ import annotations

import atexit
import json
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import duckdb
import pyarrow as pa

from encoder.errors import QueryError
from query.sql_functions import REFUSED_FUNCTIONS, REFUSED_TYPES, TABLE_FUNCTIONS

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


_shared: dict[int, Connection] = {}  # by memory limit
# Held to the very end, a database writes notices of what it takes for a leak; a forked process has none of its
# threads, and could neither use nor close it.
atexit.register(_shared.clear)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_shared.clear)


def locked_connection(limits: Limits) -> Connection:
    """Open an empty database in memory that reads no file, no network and no Python variable.

    Relations may still be registered; the configuration can no longer be changed.
    """
    connection = duckdb.connect(
        ":memory:",
        config={
            "enable_external_access": "false",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "python_enable_replacements": "false",
            "memory_limit": f"{limits.memory_mib}MiB",
            "temp_directory": "",
        },
    )
    connection.execute("SET lock_configuration = true")
    return connection


def shared_cursor(limits: Limits) -> Connection:
    """Open a connection of its own to the one locked database that this process keeps.

    A database takes tens of milliseconds to open and holds threads; a connection takes neither. Relations
    that are registered in it are seen by it alone and go when it is closed. For checked expressions only:
    all connections share one allowance of memory.
    """
    database = _shared.get(limits.memory_mib)
    if database is None:
        database = _shared.setdefault(limits.memory_mib, locked_connection(limits))
    return database.cursor()


def check_select(connection: Connection, text: str) -> set[str]:
    """Check that `text` is one SELECT (WITH allowed) and name the tables that it reads, lower case.

    Raises:
        QueryError: a syntax error, several statements, another kind of statement, or a function whose use
            of memory or time DuckDB does not limit.
    """
    fix = "Give one SELECT; WITH is allowed, PRAGMA, ATTACH, COPY, INSTALL, SHOW and the like are not."
    statement = parse_statement(connection, text, "sql", fix)
    names: set[str] = set()
    _check_functions(statement)
    for item in dicts(statement):
        kind = item.get("type")
        if isinstance(kind, str) and kind.endswith(("INSERT", "UPDATE", "DELETE", "_QUERY_NODE")):
            raise QueryError(f"sql reads and never writes: {short(text)!r}.", fix)
        if kind == "SHOW_REF":
            raise QueryError(f"sql is not a SELECT: {short(text)!r}.", fix)
        if kind == "BASE_TABLE":
            names.add(str(item["table_name"]).lower())
    return names


@contextmanager
def limited(connection: Connection, limits: Limits, what: str, spent: float = 0.0) -> Iterator[None]:
    """Stop what runs on a connection at its time, and tell DuckDB's errors in one sentence.

    Args:
        what: the option that the user wrote, named in errors.
        spent: seconds that the same request has used already.

    Raises:
        LimitError: it passes its time or memory.
        QueryError: DuckDB refuses it.
    """
    timer = threading.Timer(max(limits.seconds - spent, 0.001), connection.interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    except duckdb.InterruptException as error:
        raise LimitError(
            f"{what}: stopped after {limits.seconds:g} s.", "Ask for less: fewer rows, no cross join."
        ) from error
    except duckdb.OutOfMemoryException as error:
        raise LimitError(
            f"{what}: needs more than {limits.memory_mib} MiB of memory.", "Ask for fewer rows or groups."
        ) from error
    except duckdb.Error as error:
        raise QueryError(f"{what}: {_first_line(str(error))}") from error
    finally:
        timer.cancel()


def fetch(connection: Connection, text: str, limits: Limits, what: str) -> pa.Table:
    """Run one checked statement within its limits.

    Args:
        what: the option that the user wrote, named in errors.

    Raises:
        QueryError: DuckDB refuses it, or it passes its time or memory.
    """
    with limited(connection, limits, what):
        reader = connection.sql(text).to_arrow_reader(65_536)
        batches, size = [], 0
        for batch in reader:
            batches.append(batch)
            size += batch.nbytes
            if size > limits.memory_mib << 20:
                raise LimitError(f"{what}: the result is larger than {limits.memory_mib} MiB.", "Add a LIMIT.")
        return pa.Table.from_batches(batches, reader.schema)


def parse_statement(connection: Connection, text: str, what: str, fix: str, tree: bool = True) -> dict[str, Any]:
    """Parse one SELECT; without `tree` only whether it is one is found out, and the answer is empty.

    Args:
        connection: parses the text; runs nothing of it.
        what: the option that the user wrote, named in errors.
        fix: how to write it, said in errors.

    Raises:
        QueryError: a syntax error, several statements, or another kind of statement.
    """
    try:
        statements = connection.extract_statements(text)
        if len(statements) == 1 and statements[0].type == duckdb.StatementType.SELECT:
            if not tree:
                return {}
            rows = connection.execute("SELECT json_serialize_sql(?)", [text]).fetchall()
            parsed = json.loads(rows[0][0])
            if not parsed["error"]:
                return dict(parsed["statements"][0])
    except duckdb.Error as error:
        raise QueryError(f"{what}: {_first_line(str(error))} in {short(text)!r}.", fix) from error
    raise QueryError(f"{what} is not a single SELECT or expression: {short(text)!r}.", fix)


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Say which known name is nearest to a wrong one, or list them: the end of an error's sentence."""
    names = list(known)
    close = get_close_matches(name.lower(), [item.lower() for item in names], n=1, cutoff=0.5)
    if close:
        match = next(item for item in names if item.lower() == close[0])
        return f"Did you mean {match!r}?"
    return f"Known are: {', '.join(names)}." if names else "There is none."


def _check_functions(statement: dict[str, Any]) -> None:
    """Refuse functions and types of a SELECT that pass by its limits."""
    nodes = list(dicts(statement))
    after_from = {id(node["function"]) for node in nodes if node.get("type") == "TABLE_FUNCTION"}
    for item in nodes:
        if item.get("class") == "FUNCTION":
            name = item["function_name"].lower()
            if id(item) in after_from:
                if name not in TABLE_FUNCTIONS:
                    raise QueryError(
                        f"sql may not read from {name}(): what is not in the store is disabled by configuration.",
                        f"Read the store's relations; after FROM may stand {', '.join(sorted(TABLE_FUNCTIONS))}.",
                    )
            elif name in REFUSED_FUNCTIONS or name.startswith("__"):
                raise QueryError(
                    f"sql may not use the function {name!r} here: its time and memory cannot be limited.",
                    "Compute it on the result.",
                )
        if item.get("class") == "TYPE" and item["type_name"].lower() in REFUSED_TYPES:
            raise QueryError("sql may not use arrays of a fixed length.", "Cast to a list, such as INTEGER[].")


def dicts(node: Any) -> Iterator[dict[str, Any]]:
    """Every object in a parsed tree, outer ones first."""
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from dicts(value)
    elif isinstance(node, list):
        for value in node:
            yield from dicts(value)


def _first_line(message: str) -> str:
    return " ".join(message.split("LINE 1:")[0].split())


def short(text: str) -> str:
    """A user's text on one line, as errors show it."""
    text = " ".join(text.removeprefix("SELECT 1 WHERE ").split())
    if text.startswith("(") and text.endswith(" )"):
        text = text[1:-2]
    return text if len(text) <= 120 else text[:117] + "..."
