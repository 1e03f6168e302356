"""What a browser may ask of a slide: facts, deep-zoom tiles, the overview, a square of it."""

from __future__ import annotations

import io
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Hashable
from typing import Any

import numpy as np
from anyio import CapacityLimiter
from numpy.typing import NDArray
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from encoder.errors import HistoSeekError, SlideError, StoreError, TileError, UsageError
from indexer.zoom import TILE_PX, Zoom, ZoomGeometry
from ui.server.open_slides import OpenSlides
from ui.server.slide_rows import SlideRow, SlideRows
from ui.server.tile_cache import TileCache

MOST_CACHED_BYTES = 64 << 20
MOST_REGION_PX = 512
_QUALITY = 85
_MOST_THREADS = 12
_VERSION_LETTERS = 8  # of the fingerprint that an address must bear at least to be kept without asking again

Handler = Callable[[Request], Response]


class _Refused(Exception):  # noqa: N818 - it is an answer, not an error
    """A request that gets a sentence instead of a picture."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class SlideRoutes:
    """The handlers, with the slides and tiles that they keep. Safe to use from several threads.

    Args:
        uri: of the served store.
    """

    def __init__(self, uri: str) -> None:
        self._rows = SlideRows(uri)
        self._open = OpenSlides(self._rows)
        self._tiles = TileCache(MOST_CACHED_BYTES)
        # More at once would not be faster, and each holds a few dozen megabytes.
        self._decoding = threading.BoundedSemaphore(max(2, os.cpu_count() or 2))
        # Of Streamlit's threads, which serve the pages' own files too; the other requests wait without one.
        self._turns = CapacityLimiter(_MOST_THREADS)
        self._leaving = threading.Event()

    def routes(self) -> list[Route]:
        """The routes below the server's own prefix."""
        return [
            Route("/slides/{slide_no}/info.json", self._answering(self._info)),
            Route("/slides/{slide_no}/overview.jpg", self._answering(self._overview)),
            Route("/slides/{slide_no}/region.jpg", self._answering(self._region)),
            Route("/slides/{slide_no}/tiles/{level}/{column}_{row}.jpg", self._answering(self._tile)),
        ]

    def leave(self) -> None:
        """Refuse all that has not begun to be read, so that the server ends soon."""
        self._leaving.set()

    def close(self) -> None:
        """Close the slides."""
        self._open.close()

    def _answering(self, handle: Handler) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            async with self._turns:
                if await request.is_disconnected():  # the view has moved on
                    return refusal(503, "nobody waits for this any more.")
                return await run_in_threadpool(_answer, handle, request)

        return answer

    def _info(self, request: Request) -> Response:
        row = self._row(request)
        width0, height0, mpp, bounds, reason = row.width0, row.height0, row.mpp, None, None
        try:
            with self._open.use(row) as (slide, _, _):
                info = slide.info
                width0, height0, mpp, bounds = info.width0, info.height0, info.mpp, info.bounds_px0
        except SlideError as error:
            reason = str(error)
        size = None if width0 is None or height0 is None else (width0, height0)
        facts = {
            "slide_id": row.slide_id,
            "width0": width0,
            "height0": height0,
            "mpp": mpp,
            "tile_px": TILE_PX,
            "max_level": None if size is None else ZoomGeometry(*size).max_level,
            "bounds_px0": bounds or (None if size is None else (0, 0, *size)),
            "readable": reason is None,
            "reason": reason,
        }
        return JSONResponse(facts, headers={"Cache-Control": "no-store"})

    def _tile(self, request: Request) -> Response:
        at = [_number(request.path_params[name], name, 404) for name in ("level", "column", "row")]
        return self._picture(request, ("tile", *at), lambda zoom: zoom.read(*at))

    def _region(self, request: Request) -> Response:
        x0, y0, side_px0 = (_asked(request, name) for name in ("x0", "y0", "side_px0"))
        px = _asked(request, "px", 256)
        if not 1 <= px <= MOST_REGION_PX:
            raise _Refused(400, f"px is {px}; it must be 1 to {MOST_REGION_PX}.")
        return self._picture(
            request, ("region", x0, y0, side_px0, px), lambda zoom: zoom.read_square(x0, y0, side_px0, px), 400
        )

    def _overview(self, request: Request) -> Response:
        row = self._row(request)
        headers = _caching(request, row.fingerprint, ("overview",))
        if _is_known(request, headers):
            return Response(status_code=304, headers=headers)
        picture = self._rows.thumbnail(row)
        if picture is None:
            raise _Refused(404, "no overview of this slide is stored: it was never opened.")
        return Response(picture, media_type="image/jpeg", headers=headers)

    def _picture(
        self,
        request: Request,
        what: tuple[Hashable, ...],
        read: Callable[[Zoom], NDArray[np.uint8]],
        status: int = 404,
    ) -> Response:
        row = self._row(request)
        try:
            with self._open.use(row) as (slide, zoom, state):
                headers = _caching(request, slide.info.fingerprint, what)
                if _is_known(request, headers):
                    return Response(status_code=304, headers=headers)
                content = self._encoded((row.path, state, what), zoom, read)
        except UsageError as error:
            raise _Refused(status, str(error)) from error
        except (SlideError, TileError) as error:
            raise _Refused(404, str(error).replace(str(row.path), row.path.name)) from error
        return Response(content, media_type="image/jpeg", headers=headers)

    def _encoded(self, key: Hashable, zoom: Zoom, read: Callable[[Zoom], NDArray[np.uint8]]) -> bytes:
        content = self._tiles.get(key)
        if content is None:
            with self._decoding:
                if self._leaving.is_set():
                    raise _Refused(503, "the server is being stopped.")
                stream = io.BytesIO()
                Image.fromarray(read(zoom)).save(stream, "JPEG", quality=_QUALITY)
            content = stream.getvalue()
            self._tiles.put(key, content)
        return content

    def _row(self, request: Request) -> SlideRow:
        row = self._rows.get(_number(request.path_params["slide_no"], "slide", 404))
        if row is None:
            raise _Refused(404, "the store has no slide of this number.")
        return row


def refusal(status: int, sentence: str) -> JSONResponse:
    """What a client gets instead of what it asked for."""
    return JSONResponse({"error": sentence}, status_code=status, headers={"Cache-Control": "no-store"})


def _answer(handle: Handler, request: Request) -> Response:
    """Turn whatever goes wrong into a sentence: no traceback reaches a client."""
    try:
        return handle(request)
    except _Refused as refused:
        return refusal(refused.status, str(refused))
    except StoreError as error:
        logging.getLogger("histoseek").warning("%s", error)
        return refusal(503, "the store cannot be read now.")
    except HistoSeekError as error:
        return refusal(400, str(error))
    except Exception:
        logging.getLogger("histoseek").exception("a request of the slide view failed")
        return refusal(500, "the server failed here; its log says why.")


def _number(text: str, name: str, status: int) -> int:
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 10):
        raise _Refused(status, f"{name} must be a whole number of at most ten digits.")
    return int(text)


def _asked(request: Request, name: str, default: int | None = None) -> int:
    text = request.query_params.get(name)
    if text is None and default is not None:
        return default
    if text is None:
        raise _Refused(400, f"{name} is missing; x0, y0 and side_px0 are needed, in level-0 pixels.")
    return _number(text, name, 400)


def _caching(request: Request, fingerprint: str | None, what: tuple[Hashable, ...]) -> dict[str, str]:
    """Headers by which a browser keeps a picture: for a day where the address names the file's fingerprint."""
    version = request.query_params.get("v", "")
    named = len(version) >= _VERSION_LETTERS and (fingerprint or "").startswith(version)
    kept = "private, max-age=86400, immutable" if named else "private, no-cache"
    return {"ETag": f'"{(fingerprint or "new")[:16]}-{"-".join(map(str, what))}"', "Cache-Control": kept}


def _is_known(request: Request, headers: dict[str, Any]) -> bool:
    return headers["ETag"] in request.headers.get("if-none-match", "")
