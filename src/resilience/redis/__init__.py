"""Redis 6 and newer, and Valkey. The names are loaded when first used (PEP 562)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilience.lazily import lazily

if TYPE_CHECKING:
    from .aof.target import RedisAofTarget
    from .aof.validator import RedisAofValidator
    from .canary import RedisCanary
    from .cluster.directory import RedisClusterDirectories
    from .cluster.target import RedisClusterTarget
    from .cluster.validator import RedisClusterValidator
    from .content import RedisContentValidator, RedisSample, take_sample
    from .directory import RedisDataDirectory
    from .failover.server import LocalRedis
    from .faults import HungRedis, KilledRedis
    from .fencer import LocalFencer, SentinelFencer
    from .master import connect_master
    from .members import RedisMember
    from .promoter import SentinelPromoter
    from .route import SentinelRoute
    from .scratch import RedisScratch
    from .server import RedisServer
    from .target import RedisTarget
    from .validator import RedisBackupValidator

__all__ = [
    "HungRedis",
    "KilledRedis",
    "LocalFencer",
    "LocalRedis",
    "RedisAofTarget",
    "RedisAofValidator",
    "RedisBackupValidator",
    "RedisCanary",
    "RedisClusterDirectories",
    "RedisClusterTarget",
    "RedisClusterValidator",
    "RedisContentValidator",
    "RedisDataDirectory",
    "RedisMember",
    "RedisSample",
    "RedisScratch",
    "RedisServer",
    "RedisTarget",
    "SentinelFencer",
    "SentinelPromoter",
    "SentinelRoute",
    "connect_master",
    "take_sample",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "HungRedis": "faults",
        "KilledRedis": "faults",
        "LocalFencer": "fencer",
        "LocalRedis": "failover.server",
        "RedisAofTarget": "aof.target",
        "RedisAofValidator": "aof.validator",
        "RedisBackupValidator": "validator",
        "RedisCanary": "canary",
        "RedisClusterDirectories": "cluster.directory",
        "RedisClusterTarget": "cluster.target",
        "RedisClusterValidator": "cluster.validator",
        "RedisContentValidator": "content",
        "RedisDataDirectory": "directory",
        "RedisMember": "members",
        "RedisSample": "content",
        "RedisScratch": "scratch",
        "RedisServer": "server",
        "RedisTarget": "target",
        "SentinelFencer": "fencer",
        "SentinelPromoter": "promoter",
        "SentinelRoute": "route",
        "connect_master": "master",
        "take_sample": "content",
    },
)
