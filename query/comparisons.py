"""Filters that compare columns with constants and do nothing else: known by their form, without the parser.

Parsing takes longer than a search of a small store. The form is narrow on purpose: what it does not cover is
parsed, so that nothing runs unchecked.
"""

from __future__ import annotations

import re

# Each part is possessive: however long a text is, none of it is looked at over and over.
_NAME = r'(?:[a-z_][a-z_0-9]*+|"(?:[^"\0]|"")++")'
_TEXT = r"'(?:[^'\0]|'')*+'(?!')"
_ATOM = rf"(?:{_NAME}|[0-9]++(?:\.[0-9]++)?+(?:e[-+]?[0-9]++)?+(?![0-9a-z_.])|{_TEXT})"
# A sign stands at the beginning only: two would begin a remark.
_OPERAND = rf"-?{_ATOM}(?:\s*[-+*/%]\s*{_ATOM})*+"
_COMPARISON = (
    rf"{_OPERAND}(?:\s*(?:=|<>|!=|<=?|>=?)\s*{_OPERAND}"
    rf"|\s+IS\s+(?:NOT\s+)?NULL"
    rf"|\s+(?:NOT\s+)?I?LIKE\s*{_TEXT}"
    rf"|\s+(?:NOT\s+)?IN\s*\(\s*{_OPERAND}(?:\s*,\s*{_OPERAND})*+\s*\)"
    rf"|\s+(?:NOT\s+)?BETWEEN\s+{_OPERAND}\s+AND\s+{_OPERAND})"
)
_FLAGS = re.ASCII | re.IGNORECASE
_FORM = re.compile(rf"\s*{_COMPARISON}(?:\s+AND\s+{_COMPARISON})*+\s*", _FLAGS)
_WORD = re.compile(rf"{_TEXT}|[0-9][0-9a-z.]*+|(?P<name>{_NAME})", _FLAGS)
_KEYWORDS = frozenset({"and", "between", "false", "ilike", "in", "is", "like", "not", "null", "true"})


def compared_columns(text: str) -> frozenset[str] | None:
    """Lower-case names of the columns in comparisons that AND joins; None where a text may be anything else.

    Args:
        text: comparisons are `=`, `<>`, `<` and the like, IN, BETWEEN, LIKE, IS NULL; what they compare are columns
            without a relation's name, numbers, texts, true and false, and sums, products and remainders of them.
    """
    if _FORM.fullmatch(text) is None:
        return None
    names = {found["name"].lower() for found in _WORD.finditer(text) if found["name"]}
    return frozenset(name[1:-1].replace('""', '"') if name[0] == '"' else name for name in names - _KEYWORDS)
