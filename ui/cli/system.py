"""Commands about the machine: is everything there, open the explorer."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ui.cli import options


def doctor(json_output: options.Json = False) -> None:
    """Check this machine: packages, slide readers, devices, memory, disk; exit code 1 where something fails."""
    from ui.cli.console import say, say_json
    from ui.doctor import examine

    findings = examine()
    if json_output:
        say_json({"findings": [finding.to_dict() for finding in findings]})
    else:
        for finding in findings:
            say(f"{finding.verdict:4}  {finding.subject}: {finding.text}{'  ' + finding.fix if finding.fix else ''}")
    if any(finding.verdict == "FAIL" for finding in findings):
        raise typer.Exit(1)


def ui(
    store: options.Store,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the page.")] = 8501,
    address: Annotated[str, typer.Option(help="Address to listen on; this machine alone by default.")] = "127.0.0.1",
) -> None:
    """Open the explorer: a page where a click on tissue finds similar tissue."""
    from indexer.store import open_store
    from ui.cli.console import say
    from ui.server.listening import is_loopback, listen

    open_store(store, read_only=True)  # a wrong path is said here, not on a page
    with listen(address, port) as listener:
        # Streamlit takes seconds to import: the address is said when a page behind it opens at once.
        from ui.server.serve import serve, warm_up
        from ui.server.viewer_files import HOW_TO_INSTALL, openseadragon_folder

        warm_up(store)
        shown = f"[{address}]" if ":" in address else address
        say(f"explorer: http://{shown}:{port}")
        if not is_loopback(listener):
            say("note: anybody who reaches this address can see the slides; docs/sharing.md says how to share them")
        sys.stdout.flush()
        if openseadragon_folder() is None:
            note = f"note: OpenSeadragon is not installed, so slides are shown as overviews only. {HOW_TO_INSTALL}"
            sys.stderr.write(note + "\n")
        serve(store, listener)
