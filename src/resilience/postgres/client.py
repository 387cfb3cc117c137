"""The two doors to a PostgreSQL server: SQL through asyncpg, the replication protocol through psycopg's pgconn.

Foreign errors are turned into ours here and nowhere else. A password is kept out of every repr, message and argv.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from configparser import ConfigParser
from configparser import Error as ConfigError
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
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
_PLACE = {"host", "hostaddr", "port", "user", "dbname"}
_SECRET = {"password", "passfile", "sslkey"}
_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
_SESSION = {"options", "application_name", "fallback_application_name"}
# What asyncpg takes from a URI and understands as libpq does; all else in a URI it sends to the server as a setting.
_SHARED = {
    *_FILES,
    "gsslib",
    "krbsrvname",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "sslmode",
    "sslnegotiation",
    "target_session_attrs",
}
# How libpq keeps its connection; nothing is promised by them, so asyncpg may do without.
_TUNING = {
    *_KEEPALIVES,
    "channel_binding",
    "client_encoding",
    "connect_timeout",
    "gssdelegation",
    "gssencmode",
    "keepalives",
    "load_balance_hosts",
    "max_protocol_version",
    "min_protocol_version",
    "sslcompression",
    "sslsni",
}
_KNOWN = _PLACE | _SECRET | _SESSION | _SHARED | _TUNING
# client_encoding would have pg_dump convert what it dumps.
_SHOWN = _KNOWN - _SECRET - {"client_encoding"}
_SESSIONS = {"any", "primary", "standby", "prefer-standby", "read-write", "read-only"}

_DENIED = ("authentication failed", "pg_hba.conf", "no password supplied")
_NO_REPLICATION = ("permission denied to start WAL sender", "replication role to start walsender")
_MISCONFIGURED = ("invalid sslmode value", "certificate file", "certificate verify failed", "does not match host name")
# A query that somebody or a deadline stopped, a lock that was not had in time: nothing is wrong with what was asked.
_STOPPED = {"57014", "55P03", "25P03", "25P04"}
_UNREADABLE = ("could not open file", "could not stat", "permission denied for file")


@frozen
class Dsn:
    """A connection string (libpq's URI or keyword form, PostgreSQL 34.1.1) whose secrets never show.

    A service is looked up when it is read, and a host that is not given is libpq's: PGHOSTADDR or PGHOST.
    """

    parameters: Mapping[str, str] = field(repr=False)

    @classmethod
    def parse(cls, text: str | Dsn) -> Dsn:
        """Read a connection string. Raises ValueError without repeating it, since it may hold a password.

        A parameter that one of the two doors could not honour is refused, rather than ignored.
        """
        if isinstance(text, Dsn):
            return text
        try:
            given = {key: str(value) for key, value in conninfo.conninfo_to_dict(text).items() if value}
        except psycopg.ProgrammingError:
            raise ValueError(
                "the dsn is neither a postgresql:// URI nor a list of keyword=value pairs "
                "(it is not shown: it may hold a password)"
            ) from None
        service = given.pop("service", None) or os.environ.get("PGSERVICE")
        dsn = cls({**(_service(service) if service else {}), **given})
        dsn._check()
        return dsn

    def __str__(self) -> str:
        return conninfo.make_conninfo("", **{k: v for k, v in self.parameters.items() if k in _SHOWN})

    def __repr__(self) -> str:
        return f"Dsn({str(self)!r})"

    def database(self, name: str) -> Dsn:
        """Return the same server, another database."""
        return Dsn({**self.parameters, "dbname": name})

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Return the hosts (or folders of sockets) and ports to try, in order; empty: the drivers know where."""
        named = self.parameters.get("hostaddr") or self.parameters.get("host")
        # The environment must not lead astray who has named a host: a scratch server's folder, for one.
        hosts = (named or self._given("hostaddr") or self._given("host")).split(",")
        ports = [int(port or 5432) for port in (self._given("port") or "5432").split(",")]
        if hosts == [""]:
            return []
        return list(zip(hosts, ports * len(hosts) if len(ports) == 1 else ports, strict=True))

    @property
    def where(self) -> str:
        """Name the server for messages: host and port, or all of them."""
        places = self.addresses or [("localhost", int(self._given("port") or 5432))]
        return ", ".join(f"{_bracketed(host)}:{port}" for host, port in places)

    @property
    def connect_seconds(self) -> float | None:
        """How long connecting may take; None: without a limit."""
        seconds = int(self.parameters.get("connect_timeout", CONNECT_SECONDS))
        return float(seconds) if seconds > 0 else None

    @property
    def settings(self) -> dict[str, str]:
        """Return what the server is to set for the session."""
        settings = {k: v for k, v in self.parameters.items() if k == "options" or k not in _KNOWN}
        name = self.parameters.get("application_name") or self.parameters.get("fallback_application_name")
        return {**settings, "application_name": name} if name else settings

    def environment(self) -> dict[str, str]:
        """Return what a client program needs beside `str(dsn)`: the secrets, as libpq's environment variables."""
        if "sslpassword" in self.parameters:
            raise ValueError("a dsn with sslpassword cannot be handed to a program; use a key without a password")
        names = {"password": "PGPASSWORD", "passfile": "PGPASSFILE", "sslkey": "PGSSLKEY"}
        return {names[key]: self.parameters[key] for key in names if key in self.parameters}

    def uri(self) -> str:
        """Return a URI that both asyncpg and libpq understand."""
        kept = {"user", "password", "passfile"} | _SHARED
        query = {**{k: v for k, v in self.parameters.items() if k in kept}, **self.settings}
        hosts = ",".join(f"{quote(_bracketed(host), safe='[]:')}:{port}" for host, port in self.addresses)
        if not hosts and (port := self._given("port")):
            query["port"] = port
        database = quote(self.parameters.get("dbname", "postgres"), safe="")
        return f"postgresql://{hosts}/{database}" + (f"?{urlencode(query, quote_via=quote)}" if query else "")

    def _given(self, key: str) -> str:
        return self.parameters.get(key) or os.environ.get(f"PG{key.upper()}", "")

    def _check(self) -> None:
        given = self.parameters
        for key in given:
            if key not in _KNOWN:
                raise ValueError(f"the dsn has a parameter {key} that is not supported: remove it")
        for key in ("channel_binding", "gssencmode"):
            if given.get(key) == "require":
                raise ValueError(f"the dsn has a parameter {key} that is not supported as require: remove it")
        if given.get("sslrootcert") == "system":
            raise ValueError("the dsn has a parameter sslrootcert that is not supported as system: name a file")
        if given.get("sslmode") == "verify-full" and "hostaddr" in given:
            raise ValueError("the dsn has a parameter hostaddr that is not supported with verify-full: use host")
        if given.get("target_session_attrs", "any") not in _SESSIONS:
            raise ValueError(f"target_session_attrs of the dsn is not one of {', '.join(sorted(_SESSIONS))}")
        try:
            _ = self.connect_seconds
        except ValueError:
            raise ValueError("connect_timeout of the dsn is not a number of seconds") from None
        self._check_addresses()

    def _check_addresses(self) -> None:
        try:
            addresses = self.addresses
            ports = [port for _, port in addresses] or [int(self._given("port") or 5432)]
        except ValueError:
            raise ValueError("port of the dsn is not one number, or one for each host") from None
        if not all(0 < port < 65536 for port in ports):
            raise ValueError("port of the dsn is not between 1 and 65535")
        for host, _ in addresses:
            try:
                possible = host.startswith("/") or bool(host.encode("idna"))
            except UnicodeError:
                possible = False
            if not possible:
                raise ValueError("host of the dsn is empty or cannot be a name")


def parse_dsn(text: str | Dsn) -> Dsn:
    """Read a connection string (attrs converter); see `Dsn.parse`."""
    return Dsn.parse(text)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("/") else host


def _service(name: str) -> dict[str, str]:
    """Return the parameters of a service (PostgreSQL 34.17); asyncpg would pass over one that does not exist."""
    own = os.environ.get("PGSERVICEFILE") or Path.home() / ".pg_service.conf"
    everybodys = Path(os.environ.get("PGSYSCONFDIR", "/etc/postgresql-common")) / "pg_service.conf"
    for path in (own, everybodys):
        services = ConfigParser(
            interpolation=None, delimiters=("=",), comment_prefixes=("#",), strict=False, default_section=""
        )
        try:
            services.read(path, encoding="utf-8")
        except (ConfigError, OSError, UnicodeDecodeError):
            raise ValueError("the service file of the dsn cannot be read (it is not shown)") from None
        if services.has_section(name):
            return dict(services[name])
    raise ValueError("the dsn has a parameter service that no service file defines: correct or remove it")


@asynccontextmanager
async def sql(dsn: Dsn, *, operation: str, seconds: float | None = None) -> AsyncIterator[asyncpg.Connection]:
    """Open a connection for SQL; closed on leaving. Raises Unreachable, TimedOut or Refused.

    A statement may take `seconds`, or as long as it takes.
    """
    connecting = asyncio.create_task(_connect(dsn, seconds))
    with mapped(dsn, operation):
        try:
            # Cancelled in the middle, asyncpg would leave an exception that nobody looks at.
            yield await finish(connecting)
        finally:
            if not connecting.cancelled() and connecting.exception() is None:
                await finish(_close(connecting.result()))


async def connect(
    dsn: Dsn, *, operation: str, within: float, seconds: float | None = None, pooled: bool = False
) -> asyncpg.Connection:
    """Open a connection for SQL, `within` so many seconds, that the caller closes. Raises what `sql` raises.

    `pooled`: no statement stays prepared, since a pooler may lend each transaction another server's connection.
    """
    connecting = asyncio.create_task(_connect(dsn, seconds, within, pooled))
    try:
        with mapped(dsn, operation):
            return await finish(connecting)
    except asyncio.CancelledError:
        if not connecting.cancelled() and connecting.exception() is None:
            connecting.result().terminate()
        raise


async def _connect(
    dsn: Dsn, seconds: float | None, within: float | None = None, pooled: bool = False
) -> asyncpg.Connection:
    """Connect with arguments rather than a URI: asyncpg reads hosts in a URI its own way, IPv6 for one."""
    given = dsn.parameters
    hosts: list[str] | None = [host for host, _ in dsn.addresses] or None
    ports = [port for _, port in dsn.addresses] or int(given.get("port", 0)) or None
    query = urlencode({k: v for k, v in given.items() if k in _SHARED or k == "passfile"}, quote_via=quote)
    return await asyncpg.connect(  # type: ignore[misc]  # so many optional arguments are too many for mypy
        f"postgresql:///?{query}",
        host=hosts,
        port=ports,
        user=given.get("user"),
        password=given.get("password"),
        database=given.get("dbname", "postgres"),
        server_settings=dsn.settings,
        timeout=dsn.connect_seconds if within is None else within,  # type: ignore[arg-type]  # None is no limit
        command_timeout=seconds,
        statement_cache_size=0 if pooled else 100,
    )


async def _close(connection: asyncpg.Connection) -> None:
    try:
        await connection.close(timeout=2)
    except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
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
    except (asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise _from_asyncpg(error, dsn, operation) from error
    except TimeoutError as error:
        raise TimedOut("no answer within the deadline", operation=operation, subject=dsn.where) from error
    except OSError as error:
        raise _from_system(error, dsn, operation) from error


def _from_asyncpg(error: Exception, dsn: Dsn, operation: str) -> ResilienceError:
    """Choose our error for what asyncpg itself found wrong."""
    kind: type[ResilienceError] = Unreachable
    message = " ".join(str(error).split()) or "the connection failed"
    if isinstance(error, asyncpg.InternalClientError):
        message = "the connection broke"  # asyncpg speaks of its own states
    if isinstance(error, asyncpg.exceptions.ClientConfigurationError):
        kind = Refused
    elif isinstance(error, asyncpg.exceptions.UnsupportedServerFeatureError):
        kind = Unsupported
    return kind(message, operation=operation, subject=dsn.where)


def _from_system(error: OSError, dsn: Dsn, operation: str) -> ResilienceError:
    """Choose our error for what the system or the TLS library said while connecting."""
    where = dsn.where
    if isinstance(error, ssl.SSLCertVerificationError):
        text, hint = f"the server's certificate is not trusted: {error.verify_message}", "check host and sslrootcert"
        return Refused(text, operation=operation, subject=where, hint=hint)
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or "it failed").replace("_", " ").lower()
        if error.library == "SSL":
            return Unreachable(f"no TLS: {reason}", operation=operation, subject=where)
        text, hint = f"a TLS file of the dsn is of no use: {reason}", f"check {', '.join(_FILES)}"
        return Refused(text, operation=operation, subject=where, hint=hint)
    if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)):
        # asyncpg does not say which file; a socket that is missing ends here too.
        for key in _FILES:
            if key in dsn.parameters and not os.access(dsn.parameters[key], os.R_OK):
                text = f"the file that {key} names cannot be read"
                return Refused(text, operation=operation, subject=where, hint="check its path and its mode")
    text = error.strerror or str(error)
    hint = "does the server offer TLS?" if "SSL upgrade" in text else "is the server up?"
    return Unreachable(f"no connection: {text}", operation=operation, subject=where, hint=hint)


def from_server(state: str, message: str, hint: str = "", *, dsn: Dsn, operation: str) -> ResilienceError:
    """Choose our error for a server's SQLSTATE (PostgreSQL, appendix A), message and hint."""
    message = " ".join(message.split())
    kind: type[ResilienceError] = Refused
    if state.startswith("28") or any(words in message for words in _DENIED):
        hint = "check the user, the password and pg_hba.conf"
    elif any(words in message for words in _NO_REPLICATION):
        hint = "run: ALTER ROLE … REPLICATION"
    elif state == "42501" and any(words in message for words in _UNREADABLE):
        hint = hint or "the server itself may not read it: check the file's owner and mode on the server"
    elif state == "42501":
        hint = hint or "grant the role what it lacks"
    elif state in ("XX001", "XX002"):
        kind = Corrupt
    elif not state and any(words in message for words in _MISCONFIGURED):
        hint = hint or "check sslmode, host and sslrootcert"
    elif state.startswith(("57P", "08")) or not state:
        kind = Unreachable
    elif state.startswith(("40", "53", "58", "XX")) or state in _STOPPED or "was promoted" in message:
        kind = Unavailable
    elif state in ("0A000", "42601"):
        kind = Unsupported
    return kind(message, operation=operation, subject=dsn.where, hint=hint)
