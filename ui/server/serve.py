"""The explorer's server: Streamlit's pages and the slide view as one application on one port."""

from __future__ import annotations

import logging
import os
import pkgutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import FrameType

import streamlit
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from streamlit.web import bootstrap

from encoder.errors import HistoSeekError
from ui.server.host_guard import HostGuard
from ui.server.listening import is_loopback
from ui.server.opened import STORE_VARIABLE, opened_cohort
from ui.server.sign_in import SignInGuard, sign_in_host, sign_in_needed
from ui.server.slide_routes import SlideRoutes, refusal
from ui.server.viewer_files import openseadragon_folder

PREFIX = "/hs"
_PAGE = Path(__file__).resolve().parent.parent / "app.py"
_OPTIONS = {
    "server.headless": True,
    "server.fileWatcherType": "none",
    "server.maxUploadSize": 50,
    "server.maxMessageSize": 64,
    "server.enableXsrfProtection": True,
    "browser.gatherUsageStats": False,
    "client.toolbarMode": "minimal",
    "client.showErrorDetails": "type",  # the traceback is for the server's own log
    "logger.level": "warning",
    "theme.primaryColor": "#0b57d0",
}
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


def make_app(store: str, slides: SlideRoutes | None = None) -> streamlit.App:
    """The application that serves a store's pages, and its slides below `/hs`.

    Args:
        store: folder or URI of the store.
        slides: the handlers of its slides; None for new ones.

    Raises:
        UsageError: a sign-in is configured by which nobody could sign in.
    """
    sign_in_needed()
    shown = slides or SlideRoutes(store)

    @asynccontextmanager
    async def lifespan(_: streamlit.App) -> AsyncIterator[None]:
        yield
        shown.close()

    return streamlit.App(
        _PAGE,
        lifespan=lifespan,
        routes=[Mount(PREFIX, app=slide_view(shown))],
        middleware=[Middleware(HostGuard)],
    )


def serve(store: str, listener: socket.socket) -> None:
    """Serve a store until the process is interrupted.

    Args:
        store: folder or URI of the store.
        listener: see `listen`; closed at the end.

    Raises:
        UsageError: see `make_app`.
    """
    os.environ[STORE_VARIABLE] = store
    bootstrap.load_config_options(_OPTIONS | {"server.port": listener.getsockname()[1]})
    slides = SlideRoutes(store)
    app = make_app(store, slides)
    if is_loopback(listener):
        names = [*_LOCAL_NAMES, *streamlit.get_option("server.allowedHosts"), *sign_in_host()]
        streamlit.config.set_option("server.allowedHosts", names)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        ws="websockets-sansio",
        ws_max_size=streamlit.get_option("server.maxMessageSize") << 20,
        ws_per_message_deflate=False,  # most of what is sent are JPEG pictures
        timeout_graceful_shutdown=2,
    )
    with suppress(KeyboardInterrupt), listener:
        _Server(config, slides).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Ends soon and quietly: requests that wait for their turn are refused, not waited for."""

    def __init__(self, config: uvicorn.Config, slides: SlideRoutes) -> None:
        super().__init__(config)
        self._slides = slides

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take the signal to stop."""
        self._slides.leave()
        # What is logged from here on tells of requests that were cut off, which is what was asked for.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        super().handle_exit(sig, frame)


def slide_view(slides: SlideRoutes) -> Starlette:
    """What is served below `/hs`: the slides, and OpenSeadragon where it is installed."""
    folder = openseadragon_folder()
    assets = [] if folder is None else [Mount("/assets/openseadragon", StaticFiles(directory=folder))]
    return Starlette(
        routes=[*slides.routes(), *assets],
        middleware=[Middleware(SignInGuard)],
        exception_handlers={HTTPException: _not_served},
    )


def _not_served(_: Request, error: Exception) -> JSONResponse:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return refusal(status, "only GET and HEAD are answered." if status == 405 else "there is nothing here.")


def warm_up(store: str) -> None:
    """Do beforehand what the first page would wait for; whatever fails here is said there.

    Args:
        store: folder or URI of the store.
    """
    import ui.views

    for module in pkgutil.iter_modules(ui.views.__path__):
        import_module(f"ui.views.{module.name}")
    with suppress(HistoSeekError):
        cohort = opened_cohort(store)
        for table in cohort.vector_tables[:1]:
            cohort.searchable_slides(table.encoder_id, table.grid_id)
