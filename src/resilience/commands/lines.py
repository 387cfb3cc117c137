"""What belongs into postgresql.conf: the two commands, quoted for the shell, for PostgreSQL's `%`, and for the file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from resilience.postgres.wal import ask
from resilience.postgres.wal.spool import config_line, fetching, quoted

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
    by default ours; the server's account must be able to run it.
    """
    loaded, program = load(config), python or sys.executable
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
    loaded, program = load(config), python or sys.executable
    return fetching(
        str(loaded.folder),
        python=program,
        script=str(Path(ask.__file__)),
        seconds=loaded.patience + FETCH_SECONDS,
        fallback=[*_full(loaded, program, "fetch-for-shell"), "%f", "%p"],
    )


def _full(config: WalConfig, python: str, verb: str) -> Sequence[str]:
    return [python, "-I", "-m", MODULE, str(config.path), verb]
