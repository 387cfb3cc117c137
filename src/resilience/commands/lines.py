"""The lines for postgresql.conf: quoted for the shell, for PostgreSQL's `%`, and for the file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from resilience.postgres import ask
from resilience.postgres.spool import config_line, fetching, quoted

from .config import WalConfig, load
from .ready import SAME, SINCE
from .resident import MODULE

PUSH_SECONDS = 300.0
FETCH_SECONDS = 60.0


def archive_command(config: str | Path, *, python: str | None = None) -> str:
    """Return the line that sets archive_command, for the configuration in a file. Raises Refused if it is unusable.

    What is durable already costs PostgreSQL a shell. For the rest it asks the resident process; where there is none,
    the file is archived at once and a resident process left behind. `python` is the interpreter that has this package,
    by default ours; the server's account must be able to run it.
    """
    return config_line("archive_command", archiving(load(config), python=python))


def restore_command(config: str | Path, *, python: str | None = None) -> str:
    """Return the line that sets restore_command; see `archive_command`.

    It ends with 1 only if the archive is proven not to have a file, and above 125 whenever that cannot be told.
    """
    return config_line("restore_command", restoring(load(config), python=python))


def archiving(config: WalConfig, *, python: str | None = None) -> str:
    """Return the archive_command itself."""
    program, folder = python or sys.executable, quoted(str(config.folder))
    asking = " ".join(map(quoted, [program, "-I", "-S", str(Path(ask.__file__)), str(config.folder)]))
    return (
        f'[ {folder}/%f{SAME} -ef "%p" ] && [ {folder}/%f{SINCE} -nt "%p" ] || '
        f'exec {asking} {PUSH_SECONDS:g} push "%p" {" ".join(map(quoted, _full(config, program, "push")))} "%p"'
    )


def restoring(config: WalConfig, *, python: str | None = None) -> str:
    """Return the restore_command itself."""
    program = python or sys.executable
    return fetching(
        str(config.folder),
        python=program,
        script=str(Path(ask.__file__)),
        seconds=config.patience + FETCH_SECONDS,
        fallback=[*_full(config, program, "fetch-for-shell"), "%f", "%p"],
    )


def _full(config: WalConfig, python: str, verb: str) -> Sequence[str]:
    return [python, "-I", "-m", MODULE, str(config.path), verb]
