"""PostgreSQL 15 to 18. The names are loaded when first used (PEP 562): a backup does not wait for what restores."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .directory import PostgresDataDirectory
    from .dumps.server import PostgresServer
    from .dumps.target import PostgresDumpTarget
    from .dumps.validator import PostgresDumpValidator
    from .scratch import PostgresScratch
    from .target import PostgresTarget
    from .validator import PostgresBackupValidator
    from .wal.archiver import WalArchiver
    from .wal.status import ArchiverStatus

__all__ = [
    "ArchiverStatus",
    "PostgresBackupValidator",
    "PostgresDataDirectory",
    "PostgresDumpTarget",
    "PostgresDumpValidator",
    "PostgresScratch",
    "PostgresServer",
    "PostgresTarget",
    "WalArchiver",
]

_HOMES = {
    "ArchiverStatus": "wal.status",
    "PostgresBackupValidator": "validator",
    "PostgresDataDirectory": "directory",
    "PostgresDumpTarget": "dumps.target",
    "PostgresDumpValidator": "dumps.validator",
    "PostgresScratch": "scratch",
    "PostgresServer": "dumps.server",
    "PostgresTarget": "target",
    "WalArchiver": "wal.archiver",
}


def __getattr__(name: str) -> object:
    """Load a public name from its file."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    """List what can be loaded."""
    return sorted(__all__)
