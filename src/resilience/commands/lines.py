"""What belongs into postgresql.conf: the two commands, quoted for the shell, for PostgreSQL's `%`, and for the file."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from resilience.model.errors import Refused
from resilience.postgres.tools import Account
from resilience.postgres.wal import ask
from resilience.postgres.wal.spool import config_line, fetching, quoted, reachable

from .config import WalConfig, load
from .ready import SAME, SINCE

MODULE = "resilience.commands.wal"
PUSH_SECONDS = 300.0
FETCH_SECONDS = 60.0


def postgresql_conf(config: str | Path, *, python: str | None = None) -> str:
    """Return the lines that set both commands, quoted for the shell and for the file; see `archive_command`."""
    commands = {"archive_command": archive_command, "restore_command": restore_command}
    return "\n".join(config_line(name, command(config, python=python)) for name, command in commands.items())


def archive_command(config: str | Path, *, python: str | None = None) -> str:
    """Return the archive_command for a configuration file, quoted for the shell. Raises Refused if it is unusable.

    What is durable already costs PostgreSQL a shell. For the rest it asks the resident process; where there is none,
    the file is archived at once and a resident process left behind. `python` is the interpreter that has this package,
    by default ours; the server's account must be able to run it. Raises Refused if it cannot: that is seen only by
    root, and only where the file names the data directory.
    """
    loaded = load(config)
    program = python or _ours(loaded)
    folder = quoted(str(loaded.folder))
    asking = " ".join(map(quoted, [program, "-I", "-S", str(Path(ask.__file__)), str(loaded.folder)]))
    return (
        f'[ {folder}/%f{SAME} -ef "%p" ] && [ {folder}/%f{SINCE} -nt "%p" ] || '
        f'exec {asking} {PUSH_SECONDS:g} push "%p" {" ".join(map(quoted, _full(loaded, program, "push")))} "%p"'
    )


def restore_command(config: str | Path, *, python: str | None = None) -> str:
    """Return the restore_command, quoted for the shell; see `archive_command`.

    It ends with 1 only if the archive is proven not to have a file, and above 125 whenever that cannot be told.
    """
    loaded = load(config)
    program = python or _ours(loaded)
    return fetching(
        str(loaded.folder),
        python=program,
        script=str(Path(ask.__file__)),
        seconds=loaded.patience + FETCH_SECONDS,
        fallback=[*_full(loaded, program, "fetch-for-shell"), "%f", "%p"],
    )


def _ours(config: WalConfig) -> str:
    """Return our Python. Raises Refused if the account that owns the data directory can not run it, or not reach us."""
    uid = config.data.stat().st_uid if config.data is not None and config.data.exists() else 0
    if uid == 0 or os.geteuid() != 0:
        return sys.executable
    for needed in (Path(sys.executable), Path(ask.__file__).parent):
        if not reachable(needed):
            raise Refused(
                f"{needed} is closed to the account {Account.numbered(uid).name}, which the server runs as",
                operation="write the commands of",
                subject=str(config.path),
                hint="install this package into a Python that everybody may run, and name that with python=",
            )
    return sys.executable


def _full(config: WalConfig, python: str, verb: str) -> Sequence[str]:
    return [python, "-I", "-m", MODULE, str(config.path), verb]
