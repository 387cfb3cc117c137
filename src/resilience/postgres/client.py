"""The two doors to a PostgreSQL server: SQL through asyncpg, the replication protocol through psycopg's pgconn.

Foreign errors are turned into ours here and nowhere else. A password is kept out of every repr, message and argv.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from urllib.parse import quote, urlencode

import asyncpg
import psycopg
from attrs import field, frozen
from psycopg import conninfo, pq

from resilience.concurrency import finish
from resilience.model.errors import Corrupt, Refused, ResilienceError, TimedOut, Unavailable, Unreachable, Unsupported

CONNECT_SECONDS = 10
_KEEPALIVES = {
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}
_DENIED = ("authentication failed", "pg_hba.conf", "no password supplied")
_SECRET = {"password", "sslpassword", "passfile", "sslkey"}


@frozen
class Dsn:
    """A connection string (libpq's URI or keyword form, PostgreSQL 34.1.1) whose secrets never show."""

    parameters: Mapping[str, str] = field(repr=False)

    @classmethod
    def parse(cls, text: str | Dsn) -> Dsn:
        """Read a connection string. Raises ValueError without repeating it, since it may hold a password."""
        if isinstance(text, Dsn):
            return text
        try:
            return cls({key: str(value) for key, value in conninfo.conninfo_to_dict(text).items() if value is not None})
        except psycopg.ProgrammingError:
            raise ValueError(
                "the dsn is neither a postgresql:// URI nor a list of keyword=value pairs "
                "(it is not shown: it may hold a password)"
            ) from None

    def __str__(self) -> str:
        return conninfo.make_conninfo("", **{k: v for k, v in self.parameters.items() if k not in _SECRET})

    def __repr__(self) -> str:
        return f"Dsn({str(self)!r})"

    def database(self, name: str) -> Dsn:
        """Return the same server, another database."""
        return Dsn({**self.parameters, "dbname": name})

    @property
    def where(self) -> str:
        """Name the server for messages: host and port."""
        host = self.parameters.get("host") or self.parameters.get("hostaddr") or "localhost"
        return f"{host}:{self.parameters.get('port', '5432')}"

    def environment(self) -> dict[str, str]:
        """Return what a client program needs beside `str(dsn)`: the secrets, as libpq's environment variables."""
        if "sslpassword" in self.parameters:
            raise ValueError("a dsn with sslpassword cannot be handed to a program; use a key without a password")
        names = {"password": "PGPASSWORD", "passfile": "PGPASSFILE", "sslkey": "PGSSLKEY"}
        return {names[key]: self.parameters[key] for key in names if key in self.parameters}

    def uri(self) -> str:
        """Return a URI that both asyncpg and libpq understand."""
        rest = {key: value for key, value in self.parameters.items() if key not in ("connect_timeout", "dbname")}
        database = quote(self.parameters.get("dbname", "postgres"), safe="")
        return f"postgresql:///{database}?{urlencode(rest, quote_via=quote)}"


def parse_dsn(text: str | Dsn) -> Dsn:
    """Read a connection string (attrs converter); see `Dsn.parse`."""
    return Dsn.parse(text)


@asynccontextmanager
async def sql(dsn: Dsn, *, operation: str) -> AsyncIterator[asyncpg.Connection]:
    """Open a connection for SQL; closed on leaving. Raises Unreachable, TimedOut or Refused."""
    timeout = float(dsn.parameters.get("connect_timeout", CONNECT_SECONDS))
    connecting = asyncio.create_task(asyncpg.connect(dsn.uri(), timeout=timeout, command_timeout=None))
    with mapped(dsn, operation):
        try:
            # Cancelled in the middle, asyncpg would leave an exception that nobody looks at.
            yield await finish(connecting)
        finally:
            if not connecting.cancelled() and connecting.exception() is None:
                await finish(_close(connecting.result()))


async def _close(connection: asyncpg.Connection) -> None:
    try:
        await connection.close(timeout=2)
    except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        connection.terminate()


@asynccontextmanager
async def replication(dsn: Dsn, *, operation: str) -> AsyncIterator[pq.abc.PGconn]:
    """Open a physical replication connection; closed on leaving. Raises Unreachable, TimedOut or Refused."""
    parameters = {"connect_timeout": str(CONNECT_SECONDS), **_KEEPALIVES, **dsn.parameters, "replication": "true"}
    parameters.pop("dbname", None)
    made = conninfo.make_conninfo("", **parameters)
    connecting = asyncio.create_task(psycopg.AsyncConnection.connect(made, autocommit=True))
    try:
        with mapped(dsn, operation):
            # Cancelled in the middle, psycopg would leave its connection to the garbage collector.
            connection = await finish(connecting)
        yield connection.pgconn
    finally:
        if not connecting.cancelled() and connecting.exception() is None:
            connecting.result().pgconn.finish()


@contextmanager
def mapped(dsn: Dsn, operation: str) -> Iterator[None]:
    """Turn the drivers' errors into ours."""
    try:
        yield
    except (asyncpg.PostgresError, psycopg.Error) as error:
        state = getattr(error, "sqlstate", None) or ""
        message = getattr(error, "message", None) or str(error)
        hint = getattr(error, "hint", None) or ""
        raise from_server(state, message, hint, dsn=dsn, operation=operation) from error
    except asyncpg.InterfaceError as error:
        raise Unreachable(str(error), operation=operation, subject=dsn.where) from error
    except TimeoutError as error:
        raise TimedOut("no answer within the deadline", operation=operation, subject=dsn.where) from error
    except OSError as error:
        text = error.strerror or str(error)
        raise Unreachable(
            f"no connection: {text}", operation=operation, subject=dsn.where, hint="is the server up?"
        ) from error


def from_server(state: str, message: str, hint: str = "", *, dsn: Dsn, operation: str) -> ResilienceError:
    """Choose our error for a server's SQLSTATE (PostgreSQL, appendix A), message and hint."""
    message = " ".join(message.split())
    kind: type[ResilienceError] = Refused
    if state.startswith("28") or any(words in message for words in _DENIED):
        hint = "check the user, the password and pg_hba.conf"
    elif state == "42501":
        hint = hint or "grant the role what it lacks"
    elif state.startswith("XX00"):
        kind = Corrupt
    elif state.startswith(("57P", "08")) or not state:
        kind = Unreachable
    elif state.startswith(("53", "58")) or "was promoted" in message:
        kind = Unavailable
    elif state in ("0A000", "42601"):
        kind = Unsupported
    return kind(message, operation=operation, subject=dsn.where, hint=hint)
