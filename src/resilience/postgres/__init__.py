"""PostgreSQL 15 to 18."""

from .directory import PostgresDataDirectory
from .scratch import PostgresScratch
from .target import PostgresTarget
from .validator import PostgresBackupValidator

__all__ = ["PostgresBackupValidator", "PostgresDataDirectory", "PostgresScratch", "PostgresTarget"]
