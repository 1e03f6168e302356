"""A picture as the query: uploaded here, bounded in bytes and pixels."""

from __future__ import annotations

import streamlit as st
from PIL import Image

from encoder.errors import HistoSeekError
from query.queries import read_picture
from ui.views.address import put
from ui.views.asked import Asked, asked_of_link, keep_picture, kept_picture, put_asked
from ui.views.plain import plain

MAX_UPLOAD_MB = 50
# 75 MB, of which a session keeps three: far more than the tiles that are cut from one.
MAX_UPLOAD_PIXELS = 25_000_000


def picture_upload() -> None:
    """Offer to search with a picture; show the one that is searched with."""
    asked = asked_of_link()
    current = kept_picture(asked.text) if asked else None
    with st.expander("Search with a picture of your own", icon=":material/add_photo_alternate:"):
        with st.form("picture", border=False):
            upload = st.file_uploader(
                f"PNG, JPEG or TIFF, at most {MAX_UPLOAD_MB} MB",
                type=["png", "jpg", "jpeg", "tif", "tiff"],
                max_upload_size=MAX_UPLOAD_MB,
                key="upload",
            )
            mpp = st.number_input(
                "Micrometres per pixel",
                min_value=0.05,
                max_value=50.0,
                value=None,
                placeholder="unknown: as in the store",
                key="upload_mpp",
            )
            sent = st.form_submit_button("Search", type="primary", width="stretch")
        if sent and upload is None:
            st.warning("Choose a picture first.")
        if sent and upload is not None:
            try:
                text = keep_picture(read_picture(upload.getvalue(), mpp, MAX_UPLOAD_PIXELS))
            except HistoSeekError as error:
                st.error(plain(error))
            else:
                put_asked(Asked(text))
                put(chosen=None)
                st.rerun()
        if current is not None:
            # A small one: the page would send the whole picture each time.
            shown = Image.fromarray(current.pixels)
            shown.thumbnail((440, 440))
            st.image(shown, width="stretch", caption="Searched with this picture")
