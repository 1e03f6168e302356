"""Requests under a foreign name are refused: a page elsewhere could have its name resolve to this machine."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose
from streamlit.web.server.starlette.starlette_websocket import is_host_allowed

from ui.server.slide_routes import refusal


class HostGuard:
    """Middleware: only the names of Streamlit's option `server.allowedHosts` are answered to, where it has any.

    Streamlit itself applies the option to its websocket alone.

    Args:
        app: to protect.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] in ("http", "websocket") and not is_host_allowed(Headers(scope=scope).get("host")):
            if scope["type"] == "websocket":
                await WebSocketClose(1008)(scope, receive, send)
                return
            await refusal(400, "this name is not served here; see docs/sharing.md.")(scope, receive, send)
            return
        await self._app(scope, receive, send)
