"""Redis 6 and newer, and Valkey. The names are loaded when first used (PEP 562)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilience.lazily import lazily

if TYPE_CHECKING:
    from .aof.target import RedisAofTarget
    from .aof.validator import RedisAofValidator
    from .directory import RedisDataDirectory
    from .scratch import RedisScratch
    from .server import RedisServer
    from .target import RedisTarget
    from .validator import RedisBackupValidator

__all__ = [
    "RedisAofTarget",
    "RedisAofValidator",
    "RedisBackupValidator",
    "RedisDataDirectory",
    "RedisScratch",
    "RedisServer",
    "RedisTarget",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "RedisAofTarget": "aof.target",
        "RedisAofValidator": "aof.validator",
        "RedisBackupValidator": "validator",
        "RedisDataDirectory": "directory",
        "RedisScratch": "scratch",
        "RedisServer": "server",
        "RedisTarget": "target",
    },
)
