"""The form of a filter: what is left of its text when plain constants are struck out.

What the parser makes of two texts of one form differs in these constants alone, as far as it is checked: where one was,
the other needs no parsing, which takes longer than a search of a small store.
"""

from __future__ import annotations

import re

from query.parsing import tokens

# Narrow on purpose. Whole numbers and others are different words to the parser, and very long ones change their type;
# texts hold nothing that could end a text or a remark, whatever stands around them.
_PLAIN = {
    "i": re.compile(r"[0-9]{1,9}"),
    "f": re.compile(r"[0-9]{1,9}\.[0-9]{1,18}|[0-9]{1,9}(?:\.[0-9]{1,18})?e-?[0-9]{1,2}"),
    "t": re.compile(r"'(?:[a-zA-Z0-9_ %.,:()+/=<>]|-(?!-))*'"),
}
_SPACE = " \t\n\r\f\v"
_AFTER = re.compile(r"""[^\w.'"$#]|\Z""")  # or it might be a part of something longer
_CLOSED = re.compile(rf"[{_SPACE}]*,?[{_SPACE}]*\)")


def form_of(text: str) -> str | None:
    """The form of an expression; None where it cannot be told safely.

    Args:
        text: the expression. Constants that are written in an unusual way stay in its form, and so do whole numbers
            that stand alone in brackets: behind a type's name they may name another type, TIMESTAMP(3) say.
    """
    if not text.isascii() or "\0" in text:
        return None
    words = tokens(text)
    if not words or any(kind == "remark" for _, kind in words):
        return None
    ends = [*(start for start, _ in words[1:]), len(text)]
    parts = [text[: words[0][0]]]
    for (start, kind), end in zip(words, ends, strict=True):
        part = text[start:end]
        word = part.rstrip(_SPACE)
        alone = parts[-1].rstrip(_SPACE).endswith("(") and _CLOSED.match(text, end) is not None
        sort = _sort_of(word) if kind == "constant" else None
        if sort is not None and not (sort == "i" and alone) and _AFTER.match(text, start + len(word)):
            part = f"\0{sort}{part[len(word) :]}"
        parts.append(part)
    return "".join(parts)


def _sort_of(word: str) -> str | None:
    """Of which sort a plain constant is; None for any other."""
    return next((sort for sort, plain in _PLAIN.items() if plain.fullmatch(word)), None)
