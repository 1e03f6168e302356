"""The few exceptions of HistoSeek: each names what is wrong and what to do about it."""

from __future__ import annotations


class HistoSeekError(Exception):
    """Base of every error that a user may see.

    Args:
        message: what is wrong, with the file or field named.
        fix: what to do about it; joined to the message when shown.
    """

    exit_code = 1

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message} {self.fix}".strip()


class UsageError(HistoSeekError):
    """The request itself is wrong: an argument, a path, a config key."""

    exit_code = 2


class ConfigError(UsageError):
    """A config file or an override does not fit its schema."""


class QueryError(UsageError):
    """A query cannot be answered as asked: filter, key, vector, encoder name."""


class SlideError(HistoSeekError):
    """One slide cannot be used; it goes to quarantine and the cohort goes on."""


class TileError(HistoSeekError):
    """One tile cannot be read or embedded."""


class EncoderError(HistoSeekError):
    """An encoder cannot be loaded, or its output is not finite."""


class StoreError(HistoSeekError):
    """A store is absent, damaged, of another format, or in use."""
