"""Whatever goes wrong on a page is one sentence on it; what nobody foresaw is in the server's log as well."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import streamlit as st

from encoder.errors import HistoSeekError
from ui.views.plain import plain


@contextmanager
def sentences() -> Iterator[None]:
    """Show errors of the block as a sentence."""
    try:
        yield
    except HistoSeekError as error:
        st.error(plain(error))
    except Exception:
        logging.getLogger("histoseek").exception("a page failed")
        st.error("Something went wrong here that should not have. The server's log says what; reloading may help.")
