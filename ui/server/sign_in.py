"""Where Streamlit's sign-in is configured, slides are shown only to those who are signed in."""

from __future__ import annotations

import json
from functools import cache
from urllib.parse import urlparse

import streamlit
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send
from streamlit.auth_util import (
    get_cookie_with_chunks,
    get_origin_from_redirect_uri,
    get_secrets_auth_section,
    is_authlib_installed,
)
from streamlit.errors import StreamlitSecretNotFoundError
from streamlit.web.server.server_util import AUTH_COOKIE_NAME, get_cookie_secret
from streamlit.web.server.starlette.starlette_app_utils import decode_signed_value

from encoder.errors import UsageError
from ui.server.slide_routes import refusal


class SignInGuard:
    """Middleware: asks for the cookie that Streamlit signs at sign-in, where `sign_in_needed`.

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


@cache
def sign_in_needed() -> bool:
    """Whether Streamlit's secrets configure a sign-in; once asked, it stays so until the process ends.

    Secrets that are edited while the server runs, and are damaged for a moment, must not open the door.

    Raises:
        UsageError: the secrets cannot be read, or nobody could sign in by them.
    """
    try:
        secrets = streamlit.secrets.to_dict()
    except StreamlitSecretNotFoundError as error:
        if error.error_id == "no-secrets-found":
            return False
        raise UsageError(f"Streamlit's secrets cannot be read: {error}", "Mend or remove the file.") from error
    except OSError as error:
        raise UsageError(f"Streamlit's secrets cannot be read: {error}.", "Check the file's permissions.") from error
    if "auth" not in secrets:
        return False
    section = secrets["auth"] if isinstance(secrets["auth"], dict) else {}
    missing = [name for name in ("redirect_uri", "cookie_secret") if not section.get(name)]
    if missing:
        raise UsageError(f"[auth] in Streamlit's secrets has no {missing[0]}.", "docs/sharing.md shows an example.")
    if not is_authlib_installed():
        raise UsageError(
            "[auth] in Streamlit's secrets asks for a sign-in, which needs Authlib.", "Install it: pip install Authlib."
        )
    return True


def sign_in_host() -> list[str]:
    """The host name that people sign in under; none without a sign-in."""
    name = urlparse(get_origin_from_redirect_uri() or "").hostname if sign_in_needed() else None
    return [] if name is None else [name]


def is_signed_in(cookies: dict[str, str]) -> bool:
    """Whether cookies hold an identity that this server signed, for the address that its secrets name."""
    if not get_secrets_auth_section():
        return False
    secret = get_cookie_secret()

    def signed(name: str) -> bytes | None:
        value = cookies.get(name)
        return None if value is None else decode_signed_value(secret, name, value.encode("latin-1", "replace"))

    try:
        identity = json.loads(get_cookie_with_chunks(signed, AUTH_COOKIE_NAME) or b"{}")
    except ValueError:
        return False
    return identity.get("is_logged_in") is True and identity.get("origin") == get_origin_from_redirect_uri()
