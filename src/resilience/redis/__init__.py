"""Redis 6 and newer, and Valkey. The names are loaded when first used (PEP 562)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilience.lazily import lazily

if TYPE_CHECKING:
    from .aof.target import RedisAofTarget
    from .aof.validator import RedisAofValidator
    from .cluster.directory import RedisClusterDirectories
    from .cluster.target import RedisClusterTarget
    from .cluster.validator import RedisClusterValidator
    from .content import RedisContentValidator, RedisSample, take_sample
    from .directory import RedisDataDirectory
    from .scratch import RedisScratch
    from .server import RedisServer
    from .target import RedisTarget
    from .validator import RedisBackupValidator

__all__ = [
    "RedisAofTarget",
    "RedisAofValidator",
    "RedisBackupValidator",
    "RedisClusterDirectories",
    "RedisClusterTarget",
    "RedisClusterValidator",
    "RedisContentValidator",
    "RedisDataDirectory",
    "RedisSample",
    "RedisScratch",
    "RedisServer",
    "RedisTarget",
    "take_sample",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "RedisAofTarget": "aof.target",
        "RedisAofValidator": "aof.validator",
        "RedisBackupValidator": "validator",
        "RedisContentValidator": "content",
        "RedisClusterDirectories": "cluster.directory",
        "RedisClusterTarget": "cluster.target",
        "RedisClusterValidator": "cluster.validator",
        "RedisDataDirectory": "directory",
        "RedisSample": "content",
        "RedisScratch": "scratch",
        "RedisServer": "server",
        "RedisTarget": "target",
        "take_sample": "content",
    },
)
