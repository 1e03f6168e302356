"""What a link asks: a tile, a point, a region or an uploaded picture, and marked hits like and unlike it."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, replace

import streamlit as st

from encoder.errors import QueryError
from query.queries import ExamplesQuery, ImageQuery, PointQuery, Query, RegionQuery, TileQuery
from ui.views.address import listed, put

MAX_MARKS = 20
_PICTURES, _KEPT_PICTURES = "pictures", 3


@dataclass(frozen=True)
class Asked:
    """A query as a link tells it.

    Attributes:
        text: `tile:KEY`, `at:SLIDE@X,Y`, `region:SLIDE@X,Y,X,Y` or `picture:DIGEST`; empty where marks are all.
        like, unlike: keys of marked tiles.
    """

    text: str = ""
    like: tuple[str, ...] = ()
    unlike: tuple[str, ...] = ()

    @property
    def slide_id(self) -> str | None:
        """The slide that the query lies on; None for a picture or marks alone."""
        kind, _, rest = self.text.partition(":")
        return rest.rpartition("@")[0] if kind in {"tile", "at", "region"} else None

    @property
    def on_slides(self) -> bool:
        """Whether any part of it lies on a slide of the store."""
        return self.slide_id is not None or bool(self.like or self.unlike)

    def marked(self, key: str, like: bool) -> Asked:
        """The same with a tile marked; a mark that was there already is taken away.

        Raises:
            QueryError: there are marks enough.
        """
        was = key in (self.like if like else self.unlike)
        kept = replace(self, like=_without(self.like, key), unlike=_without(self.unlike, key))
        if was:
            return kept
        if len(kept.like) + len(kept.unlike) >= MAX_MARKS:
            raise QueryError(f"At most {MAX_MARKS} tiles can be marked.", "Take a mark away first.")
        return replace(kept, like=(*kept.like, key)) if like else replace(kept, unlike=(*kept.unlike, key))


def asked_of_link() -> Asked | None:
    """Read the link; None where it asks nothing."""
    asked = Asked(st.query_params.get("q", ""), listed("like")[:MAX_MARKS], listed("unlike")[:MAX_MARKS])
    return asked if asked.text or asked.like else None


def put_asked(asked: Asked | None) -> None:
    """Write a query into the link."""
    asked = asked or Asked()
    put(q=asked.text, like=asked.like, unlike=asked.unlike)


def query_of(asked: Asked) -> Query:
    """The query that a link means.

    Raises:
        QueryError: the link is damaged, or its picture was uploaded elsewhere.
    """
    like: list[Query] = [_of_text(asked.text)] if asked.text else []
    if not asked.like and not asked.unlike:
        return like[0]
    like += map(TileQuery, asked.like)
    return ExamplesQuery(tuple(like), tuple(map(TileQuery, asked.unlike)))


def keep_picture(query: ImageQuery) -> str:
    """Keep an uploaded picture for this session; returns the text that asks for it."""
    digest = hashlib.sha256(query.pixels.tobytes() + repr((query.pixels.shape, query.mpp)).encode()).hexdigest()[:16]
    pictures: OrderedDict[str, ImageQuery] = st.session_state.setdefault(_PICTURES, OrderedDict())
    pictures[digest] = query
    pictures.move_to_end(digest)
    while len(pictures) > _KEPT_PICTURES:
        pictures.popitem(last=False)
    return f"picture:{digest}"


def kept_picture(text: str) -> ImageQuery | None:
    """The picture that a text asks for; None where it is none of this session's."""
    kind, _, digest = text.partition(":")
    found: ImageQuery | None = st.session_state.get(_PICTURES, {}).get(digest) if kind == "picture" else None
    return found


def _of_text(text: str) -> Query:
    kind, _, rest = text.partition(":")
    slide_id, _, place = rest.rpartition("@")
    if kind == "picture":
        picture = kept_picture(text)
        if picture is None:
            raise QueryError("The picture of this link is not kept here.", "Upload it again.")
        return picture
    try:
        numbers = [int(part) for part in place.split(",")]
    except ValueError:
        numbers = []
    if slide_id and kind == "tile" and len(numbers) == 2:
        return TileQuery(rest)
    if slide_id and kind == "at" and len(numbers) == 2:
        return PointQuery(slide_id, *numbers)
    if slide_id and kind == "region" and len(numbers) >= 4 and len(numbers) % 2 == 0:
        return RegionQuery(slide_id, tuple(zip(numbers[::2], numbers[1::2], strict=True)))
    raise QueryError("The link asks for something that is no tile, point or region.", "Click on tissue instead.")


def _without(keys: tuple[str, ...], key: str) -> tuple[str, ...]:
    return tuple(item for item in keys if item != key)
