"""What servers for tests need of the machine: a port, an account that is not root, a folder of its, a process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from resilience.programs import Account, tied

UNPRIVILEGED = "nobody"
LOOK_AGAIN_SECONDS = 0.01
_LAST_WORDS = 2000


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


def serving(
    command: Sequence[str],
    *,
    log: Path,
    cwd: Path | str,
    answers: Callable[[], bool],
    seconds: float,
    account: Account | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program and wait until it answers; it dies with this process. Raises RuntimeError with its last words."""
    with log.open("ab") as said:
        process = subprocess.Popen(
            tied(command, account), stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment, cwd=cwd
        )
    deadline = time.monotonic() + seconds
    while not answers():
        if process.poll() is not None or time.monotonic() > deadline:
            end(process, signal.SIGKILL)
            words = log.read_text(errors="replace")[-_LAST_WORDS:]
            raise RuntimeError(f"{Path(command[0]).name} did not start:\n{words}")
        time.sleep(LOOK_AGAIN_SECONDS)
    return process


def end(process: subprocess.Popen[bytes] | None, number: int) -> None:
    """End a process by a signal, also one that is stopped, and wait for it; nothing happens if there is none."""
    if process is None:
        return
    with suppress(ProcessLookupError):
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
    process.wait()
