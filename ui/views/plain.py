"""Text of the store, of a link or of an error, shown as it is: Markdown would draw it, and fetch what it names."""

from __future__ import annotations

_MOST_LETTERS = 600
_MEANT = frozenset("\\`*_[]<>$~|:#")  # wherever they stand
_MEANT_FIRST = frozenset("-+=")  # a list or a line, where they begin one


def plain(text: object) -> str:
    """Text that Markdown leaves as it is; cut where it is longer than anybody reads."""
    words = str(text)
    if len(words) > _MOST_LETTERS:
        words = words[:_MOST_LETTERS] + " …"
    escaped = "".join(f"\\{letter}" if letter in _MEANT else letter for letter in words)
    return f"\\{escaped}" if escaped[:1] in _MEANT_FIRST else escaped
