"""The port that the explorer answers on."""

from __future__ import annotations

import errno
import ipaddress
import socket

from encoder.errors import UsageError


def listen(address: str, port: int) -> socket.socket:
    """Take a port; browsers that come before the server is ready wait.

    Raises:
        UsageError: the port is taken, or the address is none of this machine's.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UsageError(f"--address {address} is no address: {error.strerror}.", "Give 127.0.0.1, say.") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(256)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UsageError(
                f"port {port} is taken, perhaps by another explorer.", "Stop that, or give another --port."
            ) from error
        raise UsageError(
            f"port {port} of {address} cannot be listened on: {error.strerror}.", "Give another --port or --address."
        ) from error
    return listener


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine reaches a listening socket."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback
