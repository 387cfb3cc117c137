"""PostgreSQL 15 to 18. The names are loaded when first used (PEP 562): a backup does not wait for what restores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilience.lazily import lazily

if TYPE_CHECKING:
    from .canary import PostgresCanary
    from .directory import PostgresDataDirectory
    from .dropping import DroppingProxy
    from .dumps.server import PostgresServer
    from .dumps.target import PostgresDumpTarget
    from .dumps.validator import PostgresDumpValidator
    from .failover.server import LocalServer
    from .faults import CutNetwork, HungServer, KilledPostmaster
    from .fencer import LocalFencer
    from .guard import PrimaryGuard
    from .members import PostgresMember
    from .promoter import PostgresPromoter
    from .route import MultiHostRoute
    from .scratch import PostgresScratch
    from .target import PostgresTarget
    from .validator import PostgresBackupValidator
    from .wal.archiver import WalArchiver
    from .wal.status import ArchiverStatus

__all__ = [
    "ArchiverStatus",
    "CutNetwork",
    "DroppingProxy",
    "HungServer",
    "KilledPostmaster",
    "LocalFencer",
    "LocalServer",
    "MultiHostRoute",
    "PostgresBackupValidator",
    "PostgresCanary",
    "PostgresDataDirectory",
    "PostgresDumpTarget",
    "PostgresDumpValidator",
    "PostgresMember",
    "PostgresPromoter",
    "PostgresScratch",
    "PostgresServer",
    "PostgresTarget",
    "PrimaryGuard",
    "WalArchiver",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "ArchiverStatus": "wal.status",
        "CutNetwork": "faults",
        "DroppingProxy": "dropping",
        "HungServer": "faults",
        "KilledPostmaster": "faults",
        "LocalFencer": "fencer",
        "LocalServer": "failover.server",
        "MultiHostRoute": "route",
        "PostgresBackupValidator": "validator",
        "PostgresCanary": "canary",
        "PostgresDataDirectory": "directory",
        "PostgresDumpTarget": "dumps.target",
        "PostgresDumpValidator": "dumps.validator",
        "PostgresMember": "members",
        "PostgresPromoter": "promoter",
        "PostgresScratch": "scratch",
        "PostgresServer": "dumps.server",
        "PostgresTarget": "target",
        "PrimaryGuard": "guard",
        "WalArchiver": "wal.archiver",
    },
)
