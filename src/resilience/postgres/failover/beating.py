"""A heartbeat without a table: a transaction that says nothing but when it was (pg_logical_emit_message, 9.28.6).

A commit record carries the primary's clock from before it was written. A standby that shows it
(pg_last_xact_replay_timestamp) therefore has all that was acknowledged before that moment.
"""

from __future__ import annotations

from .links import Link

HEARTBEAT = "resilience.heartbeat"
# Transactional, so that there is a commit record; local, so that it waits for no standby.
_BEAT = f"""
begin;
set local synchronous_commit = local;
select pg_logical_emit_message(true, '{HEARTBEAT}', '');
commit
"""


async def beat(link: Link, *, seconds: float) -> None:
    """Commit a heartbeat. Raises Unreachable, TimedOut, Refused."""
    await link.execute(_BEAT, seconds=seconds, operation="heartbeat")
