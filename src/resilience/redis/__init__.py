"""Redis 6 and newer, and Valkey. The names are loaded when first used (PEP 562)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilience.lazily import lazily

if TYPE_CHECKING:
    from .directory import RedisDataDirectory
    from .target import RedisTarget

__all__ = [
    "RedisDataDirectory",
    "RedisTarget",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "RedisDataDirectory": "directory",
        "RedisTarget": "target",
    },
)
