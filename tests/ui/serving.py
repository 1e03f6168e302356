"""The explorer's server in a process of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextmanager
def served(store: Path) -> Iterator[str]:
    """Serve a store; gives the address of its pages once the server has said it."""
    command = [sys.executable, "-c", "from ui.cli.main import run; run()", "ui", "--store", str(store)]
    running = subprocess.Popen([*command, "--port", str(free_port())], stdout=subprocess.PIPE, text=True)
    try:
        assert running.stdout is not None
        yield f"{running.stdout.readline().split()[-1]}/"
    finally:
        running.terminate()
        running.wait(20)
