"""The mark of a fence on a Redis server of this machine; see `fencers.mark`.

The last line of its configuration file is a directive that no Redis knows, so every start fails and says which line.
"""

from __future__ import annotations

import re

from resilience.fencers.mark import FenceMark

from .server import LocalRedis

GUARD = b"resilience-fenced yes\n"
_REPLICAOF = re.compile(rb"^\s*(replicaof|slaveof)\s.*\n", re.IGNORECASE | re.MULTILINE)


def mark_on(server: LocalRedis) -> FenceMark:
    """Return the mark on a server."""
    return FenceMark(server.data, server.account, server.config, GUARD)


def as_replica(settings: bytes, address: tuple[str, int]) -> bytes:
    """Return a configuration that has a server start as the replica of another."""
    host, port = address
    return _REPLICAOF.sub(b"", settings) + f"replicaof {host} {port}\n".encode()
