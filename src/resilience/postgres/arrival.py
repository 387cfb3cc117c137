"""Where a connection through a route arrives: which server it is, and whether that takes writes.

The simple query protocol, everything in one message: a pooler between us may hand the next message to another server.
"""

from __future__ import annotations

import asyncio

from attrs import frozen
from psycopg import pq

from resilience.arrivals import silence
from resilience.model.errors import TimedOut, Unavailable

from .client import Dsn, from_server, mapped
from .instance import INSTANCE
from .simple import answered, simply

READ_ONLY = "25006"
RETRY_SECONDS = 0.003
SSL_REQUEST = bytes.fromhex("0000000804d2162f")
"""The message SSLRequest (PostgreSQL 55.7): every server answers it with one byte, whoever asks."""

_LOOK = f"SELECT {INSTANCE}, NOT pg_is_in_recovery() AND current_setting('transaction_read_only') = 'off'"
# A message in the WAL needs no table and no right. It does not wait for standbys: when the route is switched they may
# not follow yet. Asking for a transaction id first has a standby answer with 25006.
_WRITE = (
    "BEGIN; SET LOCAL synchronous_commit = local; SELECT pg_current_xact_id(); "
    "SELECT pg_logical_emit_message(true, 'resilience.arrival', ''); COMMIT; "
)


@frozen(kw_only=True)
class Arrival:
    """What a connection has reached: the instance, its address as far as the driver knows it, whether it writes."""

    instance: str
    writable: bool
    host: str = ""
    port: int = 0


async def arrival(dsn: Dsn, *, operation: str, seconds: float, write: bool = False) -> Arrival:
    """Connect once, look (and with `write` commit a message in the WAL), and leave.

    Raises TimedOut after `seconds`, Unreachable, or Refused.
    """
    try:
        async with asyncio.timeout(seconds):
            return await _arrival(dsn, operation, write=write)
    except TimeoutError:
        text = f"no answer through the route within {seconds:.3g} s"
        raise TimedOut(text, operation=operation, subject=dsn.where) from None


async def first_arrival(dsn: Dsn, *, operation: str, seconds: float) -> Arrival:
    """Connect again and again until a server has answered, and taken a write if it takes any.

    Raises TimedOut with what came last, or Refused.
    """
    why = "no answer"
    try:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    return await _arrival(dsn, operation, write=True)
                except Unavailable as error:
                    why = error.what
                await asyncio.sleep(RETRY_SECONDS)
    except TimeoutError:
        text = f"nothing arrives through the route within {seconds:.3g} s: {why}"
        raise TimedOut(text, operation=operation, subject=dsn.where) from None


async def answers(host: str, port: int, *, seconds: float) -> bool:
    """Tell whether a server of PostgreSQL's protocol answers at an address at all. It needs no account."""
    return not await silence(*doorway(host, port), SSL_REQUEST, seconds=seconds)


def doorway(host: str, port: int) -> tuple[str, int]:
    """Return where a host is met: a directory by the path of the socket in it (libpq's `host`)."""
    return (f"{host}/.s.PGSQL.{port}" if host.startswith("/") else host), port


async def _arrival(dsn: Dsn, operation: str, *, write: bool) -> Arrival:
    async with simply(dsn, operation=operation) as pgconn:
        with mapped(dsn, operation):
            results = await answered(pgconn, _WRITE + _LOOK if write else _LOOK)
        last = results[-1]
        if last.status != pq.ExecStatus.TUPLES_OK:
            state = (last.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
            if state != READ_ONLY:
                said = (last.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or last.error_message).decode()
                raise from_server(state, said, dsn=dsn, operation=operation)
            with mapped(dsn, operation):
                last = (await answered(pgconn, f"ROLLBACK; {_LOOK}"))[-1]
        instance, writable = last.get_value(0, 0) or b"", last.get_value(0, 1) == b"t"
        return Arrival(
            instance=instance.decode(), writable=writable, host=pgconn.host.decode(), port=int(pgconn.port or 0)
        )
