"""PgBouncer's admin console (pgbouncer(1), "Admin console"). It speaks the simple query protocol only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from attrs import frozen
from psycopg import pq

from resilience.model.errors import Refused, ResilienceError, TimedOut, Unreachable, Unsupported
from resilience.postgres.client import Dsn, mapped
from resilience.postgres.simple import answered, simply

ANSWER_SECONDS = 5.0
Row = Mapping[str, str]
_SAID = pq.DiagnosticField.MESSAGE_PRIMARY


def quoted(name: str) -> str:
    """Write the name of a database as the console reads it."""
    return '"' + name.replace('"', '""') + '"'


@asynccontextmanager
async def console(dsn: Dsn, *, operation: str) -> AsyncIterator[Console]:
    """Open the console; closed on leaving. Raises Unreachable, TimedOut or Refused."""
    async with simply(dsn.database("pgbouncer"), operation=operation) as pgconn:
        yield Console(pgconn, dsn, operation)


@frozen
class Console:
    """An open console. Commands are answered one after another."""

    pgconn: pq.abc.PGconn
    dsn: Dsn
    operation: str

    async def ask(self, command: str, *, seconds: float | None = ANSWER_SECONDS) -> list[Row]:
        """Send a command and return the rows of its answer, NULL as empty text.

        Raises Refused with what the console said, TimedOut, Unreachable. Cancelled, the command may yet take effect.
        """
        try:
            async with asyncio.timeout(seconds):
                with mapped(self.dsn, self.operation):
                    results = await answered(self.pgconn, command)
        except TimeoutError:
            word = command.partition(" ")[0]
            raise self._error(TimedOut, f"the console did not answer {word} within {seconds} s") from None
        for result in results:
            if result.status not in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
                raise self._refused(command.partition(" ")[0], result)
        return _rows(results[-1]) if results else []

    def _refused(self, word: str, result: pq.abc.PGresult) -> ResilienceError:
        """Choose our error for what the console says; all it has is text, its SQLSTATE is always 08P01."""
        said = (result.error_field(_SAID) or result.error_message).decode(errors="replace").strip()
        if self.pgconn.status != pq.ConnStatus.OK:
            return self._error(Unreachable, f"the console closed: {said}")
        if "invalid command" in said:
            return self._error(Unsupported, f"the console does not know {word}", "PgBouncer 1.18 or newer is needed")
        hint = "add the user to admin_users of PgBouncer" if "admin access needed" in said else ""
        return self._error(Refused, f"{word}: {said}", hint)

    def _error(self, kind: type[ResilienceError], text: str, hint: str = "") -> ResilienceError:
        return kind(text, operation=self.operation, subject=self.dsn.where, hint=hint)


def _rows(result: pq.abc.PGresult) -> list[Row]:
    names = [(result.fname(column) or b"").decode() for column in range(result.nfields)]
    return [
        {name: (result.get_value(row, column) or b"").decode(errors="replace") for column, name in enumerate(names)}
        for row in range(result.ntuples)
    ]
