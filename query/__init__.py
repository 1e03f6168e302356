"""Rows to answers: search, filters, classification, evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from query.cohort import open_cohort

__all__ = ["open_cohort"]


def __getattr__(name: str) -> Any:
    """Import `open_cohort` when it is first asked for, so that importing a module of the folder stays light."""
    if name == "open_cohort":
        from query.cohort import open_cohort

        return open_cohort
    raise AttributeError(f"module 'query' has no attribute {name!r}")
