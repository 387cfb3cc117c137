"""What servers for tests need of the machine: a free port, an account that is not root, a folder that belongs to it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from resilience.programs import Account

UNPRIVILEGED = "nobody"


def free_port() -> int:
    """Return a port of the loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def unprivileged() -> Account | None:
    """Return the account that servers run as when we are root, else None."""
    return Account.named(UNPRIVILEGED) if os.geteuid() == 0 else None


def owned_folder(path: Path) -> Path:
    """Make a folder that belongs to the account servers run as."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if account := unprivileged():
        os.chown(path, account.uid, account.gid)
    return path
