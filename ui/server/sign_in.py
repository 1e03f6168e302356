"""Where Streamlit's sign-in is configured, slides are shown only to those who are signed in."""

from __future__ import annotations

import json

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send
from streamlit.auth_util import (
    get_cookie_with_chunks,
    get_origin_from_redirect_uri,
    get_secrets_auth_section,
)
from streamlit.web.server.server_util import AUTH_COOKIE_NAME, get_cookie_secret
from streamlit.web.server.starlette.starlette_app_utils import decode_signed_value

from ui.server.slide_routes import refusal


class SignInGuard:
    """Middleware: asks for the cookie that Streamlit signs at sign-in, where its secrets have an `[auth]` section.

    Args:
        app: to protect.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and sign_in_needed() and not is_signed_in(HTTPConnection(scope).cookies):
            await refusal(401, "sign in on the explorer's page first.")(scope, receive, send)
            return
        await self._app(scope, receive, send)


def sign_in_needed() -> bool:
    """Whether Streamlit's secrets configure a sign-in."""
    return bool(get_secrets_auth_section())


def is_signed_in(cookies: dict[str, str]) -> bool:
    """Whether cookies hold an identity that this server signed, for the address that its secrets name."""
    section = get_secrets_auth_section()
    secret = get_cookie_secret()
    if not section or not secret:
        return False

    def signed(name: str) -> bytes | None:
        value = cookies.get(name)
        return None if value is None else decode_signed_value(secret, name, value.encode("latin-1"))

    try:
        identity = json.loads(get_cookie_with_chunks(signed, AUTH_COOKIE_NAME) or b"{}")
    except ValueError:
        return False
    return bool(identity.get("is_logged_in")) and identity.get("origin") == get_origin_from_redirect_uri()
