"""A picture as the query: uploaded here, bounded in bytes and pixels."""

from __future__ import annotations

import streamlit as st

from encoder.errors import HistoSeekError, QueryError
from query.queries import ImageQuery, read_picture
from ui.views.address import put
from ui.views.asked import Asked, asked_of_link, keep_picture, kept_picture, put_asked

MAX_UPLOAD_MB = 50
# Each session keeps a few pictures: 75 MB at most, far more than the tiles that are cut from one.
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
            scale, send = st.columns([3, 2], vertical_alignment="bottom")
            mpp = scale.number_input(
                "Micrometres per pixel",
                min_value=0.05,
                max_value=50.0,
                value=None,
                placeholder="unknown: as in the store",
                key="upload_mpp",
            )
            sent = send.form_submit_button("Search", type="primary", width="stretch")
        if sent and upload is None:
            st.warning("Choose a picture first.")
        if sent and upload is not None:
            try:
                text = keep_picture(check_size(read_picture(upload.getvalue(), mpp)))
            except HistoSeekError as error:
                st.error(str(error))
            else:
                put_asked(Asked(text))
                put(chosen=None)
                st.rerun()
        if current is not None:
            st.image(current.pixels, width=220, caption="Searched with this picture")


def check_size(query: ImageQuery) -> ImageQuery:
    """The same picture, where it is no larger than is kept.

    Raises:
        QueryError: it is larger.
    """
    height, width = query.pixels.shape[:2]
    if height * width > MAX_UPLOAD_PIXELS:
        raise QueryError(
            f"The picture has {width:,} x {height:,} pixels, at most {MAX_UPLOAD_PIXELS // 10**6} million are taken.",
            "Crop it to the tissue that you mean.",
        )
    return query
