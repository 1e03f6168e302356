"""A user's `where`: checked, and taken apart into the terms that AND joins."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from encoder.errors import QueryError
from query.guard import nearest_name
from query.parsing import LOCATIONS, check_statement, dicts, parse_statement, short, write_statements
from query.sql_functions import ROW_FUNCTIONS, ROW_TYPES

# The parser's classes of an expression that looks at one row only.
_ROW_CLASSES = frozenset(
    {"BETWEEN", "CASE", "CAST", "COLLATE", "COLUMN_REF", "COMPARISON", "CONJUNCTION"}
    | {"CONSTANT", "FUNCTION", "OPERATOR", "TYPE"}
)
SHARED = "slide_no"  # a column of slides and of tiles, with the same values
_FIX = "Give one expression such as: organ = 'liver' AND tissue > 0.5"


@dataclass(frozen=True)
class Term:
    """One of the expressions that AND joins.

    Attributes:
        tree: the parser's tree.
        columns: relation and lower-case name of each column that it reads; the relation is empty for
            `slide_no` where every relation has it.
    """

    tree: dict[str, Any]
    columns: frozenset[tuple[str, str]]

    @property
    def reads(self) -> frozenset[str]:
        """Relations that the term needs."""
        return frozenset(relation for relation, _ in self.columns if relation)


@dataclass(frozen=True)
class Expression:
    """A checked expression.

    Attributes:
        text: as the user wrote it.
        terms: what AND joins at the top; all of them must be true for a row to match.
        statement: the parser's tree of `SELECT 1 WHERE text`.
        qualifiers: relations that stand before a column's name, lower case.
    """

    text: str
    terms: tuple[Term, ...]
    statement: dict[str, Any]
    qualifiers: frozenset[str]

    @property
    def reads(self) -> frozenset[str]:
        """Relations that the expression needs."""
        return frozenset().union(*(term.reads for term in self.terms))

    def reading(self, *relations: str) -> list[Term]:
        """The terms that need exactly these relations."""
        return [term for term in self.terms if term.reads == frozenset(relations)]


def parse_expression(text: str, columns: Mapping[str, Sequence[str]]) -> Expression:
    """Check that `text` is one expression over known columns and take it apart.

    Args:
        text: the expression.
        columns: names of the columns of each relation.

    Raises:
        QueryError: a syntax error, several statements, anything but an expression over single rows, a
            function or type that is not among the allowed ones, an unknown column, or one that two relations
            have.
    """
    statement = _bare_where(text)
    known = {relation: {name.lower() for name in names} for relation, names in columns.items()}
    terms: list[Term] = []
    qualifiers: set[str] = set()
    for tree in _conjuncts(statement["node"]["where_clause"]):
        read = set()
        for item in _expressions(tree):
            if item["class"] not in _ROW_CLASSES:
                kind = item["class"].lower().replace("_", " ")
                raise QueryError(f"where may not hold a {kind}: {text!r}.", "Compare columns of slides and tiles only.")
            _check_item(item)
            if item["class"] == "COLUMN_REF":
                read.add(_column(item["column_names"], known, columns, text))
                qualifiers.update(part.lower() for part in item["column_names"][:-1])
        terms.append(Term(tree, frozenset(read)))
    return Expression(text, tuple(terms), statement, frozenset(qualifiers))


def renamed(term: Term, names: Mapping[tuple[str, str], str]) -> Term:
    """The term with other names for its columns.

    Args:
        names: the new name of each of `term.columns`.
    """
    tree = copy.deepcopy(term.tree)
    # A bare name is a column of one relation only, or of all with the same values.
    bare = {name: new for (_, name), new in names.items()}
    for item in _expressions(tree):
        if item["class"] == "COLUMN_REF":
            path = tuple(part.lower() for part in item["column_names"])
            item["column_names"] = [names[path[0], path[1]] if len(path) == 2 else bare[path[0]]]
    return Term(tree, term.columns)


def texts_of(expression: Expression, groups: Sequence[Sequence[Term]]) -> list[str] | None:
    """Write each group of terms, joined by AND, as SQL again.

    Args:
        expression: where the terms are from.
        groups: terms of each text, at least one.

    Returns:
        one text per group; None where what was written does not read back as the same tree.
    """
    trees = []
    for group in groups:
        joined = {"class": "CONJUNCTION", "type": "CONJUNCTION_AND", "alias": "", **dict.fromkeys(LOCATIONS, 0)}
        trees.append(group[0].tree if len(group) == 1 else joined | {"children": [term.tree for term in group]})
    texts = write_statements([_with_where(expression.statement, tree) for tree in trees])
    return None if texts is None else [text.removeprefix("SELECT 1 WHERE ") for text in texts]


def _bare_where(text: str) -> dict[str, Any]:
    if not text.strip():
        raise QueryError("where is empty.", "Leave it out to search every tile.")
    # Parsed once as it stands, where nothing may follow it, and once in the brackets it will be run in.
    statement = parse_statement(f"SELECT 1 WHERE {text}", "where", _FIX)
    check_statement(f"SELECT 1 WHERE ({text}\n)", "where", _FIX)
    node = statement["node"]
    bare = (
        node.get("type") == "SELECT_NODE"
        and node["from_table"]["type"] == "EMPTY"
        and node["where_clause"] is not None
        and not any(node.get(part) for part in ("modifiers", "group_expressions", "having", "qualify", "sample"))
    )
    if not bare:
        raise QueryError(f"where is more than one expression: {short(text)!r}.", _FIX)
    return statement


def _conjuncts(tree: dict[str, Any]) -> list[dict[str, Any]]:
    if tree.get("type") != "CONJUNCTION_AND":
        return [tree]
    return [part for child in tree["children"] for part in _conjuncts(child)]


def _expressions(tree: dict[str, Any]) -> list[dict[str, Any]]:
    return [item for item in dicts(tree) if "class" in item and "query_location" in item]


def _column(
    path: list[str], known: Mapping[str, set[str]], columns: Mapping[str, Sequence[str]], text: str
) -> tuple[str, str]:
    """Relation and lower-case name of a column; no relation for the one that all share."""
    name = path[-1].lower()
    if len(path) == 2 and path[0].lower() in known and name in known[path[0].lower()]:
        return path[0].lower(), name
    if len(path) == 1:
        holders = [relation for relation, names in known.items() if name in names]
        if len(holders) == 1:
            return holders[0], name
        if holders and name == SHARED:
            return "", name
        if holders:
            choice = " or ".join(f"{relation}.{path[0]}" for relation in holders)
            raise QueryError(f"where: {path[0]!r} is a column of {' and '.join(holders)}.", f"Write {choice}.")
    every = list(dict.fromkeys(column for names in columns.values() for column in names))
    raise QueryError(f"where: there is no column {'.'.join(path)!r} in {text!r}.", nearest_name(path[-1], every))


def _check_item(item: dict[str, Any]) -> None:
    """Refuse a function or type that `where` may not use."""
    if item["class"] == "FUNCTION":
        name = item["function_name"].lower()
        if name not in ROW_FUNCTIONS:
            close = get_close_matches(name, ROW_FUNCTIONS, n=1, cutoff=0.7)
            hint = (
                f"Did you mean {close[0]!r}?" if close else "Use comparisons and plain functions of text and numbers."
            )
            raise QueryError(f"where may not use the function {name!r}.", hint)
    if item["class"] == "TYPE" and item["type_name"].lower() not in ROW_TYPES:
        raise QueryError(f"where may not use the type {item['type_name']!r}.", "Cast to numbers, text or dates only.")


def _with_where(statement: dict[str, Any], tree: dict[str, Any]) -> dict[str, Any]:
    return statement | {"node": statement["node"] | {"where_clause": tree}}
