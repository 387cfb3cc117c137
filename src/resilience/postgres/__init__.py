"""PostgreSQL 15 to 18."""

from .directory import PostgresDataDirectory
from .dump import PostgresDumpTarget
from .dump_validator import PostgresDumpValidator
from .scratch import PostgresScratch
from .server import PostgresServer
from .target import PostgresTarget
from .validator import PostgresBackupValidator

__all__ = [
    "PostgresBackupValidator",
    "PostgresDataDirectory",
    "PostgresDumpTarget",
    "PostgresDumpValidator",
    "PostgresScratch",
    "PostgresServer",
    "PostgresTarget",
]
