"""The doors to a Redis server: commands through redis-py's asyncio client, the replication stream through a socket.

Foreign errors are turned into ours here and nowhere else. A password is kept out of every repr, message and argv.
Nothing is repeated by itself: redis-py's ten retries are for reading, and would run a command that changes something
twice.

The stream takes its socket from redis-py's own connection, so that TLS, ACL users, credential providers and Unix
sockets mean the same at both doors. It is the blocking one, read in a thread of its own: asyncio's streams would pass
every byte through the event loop several times.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import redis
from attrs import define, field, frozen
from redis import asyncio as aioredis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.credentials import CredentialProvider
from redis.retry import Retry

from resilience.concurrency import finish, stop_tasks
from resilience.model.errors import Refused, ResilienceError, TimedOut, Unavailable, Unreachable, Unsupported

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 60.0
"""How long a server may take to answer a command, or be silent in a stream: Redis's own repl-timeout."""

PORT = 6379
_SCHEMES = ("redis", "rediss", "unix")
_TLS = {
    "ssl_ca_certs",
    "ssl_ca_path",
    "ssl_cert_reqs",
    "ssl_certfile",
    "ssl_check_hostname",
    "ssl_ciphers",
    "ssl_keyfile",
    "ssl_password",
}
_KNOWN = _TLS | {"db", "username", "password"}
_KEEPALIVE = {socket.TCP_KEEPIDLE: 30, socket.TCP_KEEPINTVL: 10, socket.TCP_KEEPCNT: 3}
_LATER = ("LOADING", "MASTERDOWN", "NOMASTERLINK", "BUSY", "TRYAGAIN", "CLUSTERDOWN", "MISCONF", "OOM", "NOREPLICAS")


@frozen
class Url:
    """Where a server is, as redis-py writes it (`redis://`, `rediss://`, `unix://`); its secrets never show.

    `credentials` takes the place of a user and a password in the URL: a token of Microsoft Entra ID, for one.
    """

    text: str = field(repr=False)
    credentials: CredentialProvider | None = field(default=None, repr=False, kw_only=True)

    @classmethod
    def parse(cls, text: str | Url, *, credentials: CredentialProvider | None = None) -> Url:
        """Read a URL. Raises ValueError without repeating it, since it may hold a password."""
        if isinstance(text, Url):
            return text
        url = cls(text, credentials=credentials)
        url._check()
        return url

    def __str__(self) -> str:
        parts = urlsplit(self.text)
        user = parts.username or dict(parse_qsl(parts.query)).get("username", "")
        shown = f"{user}@" if user else ""
        return f"{parts.scheme}://{shown}{self.where}"

    def __repr__(self) -> str:
        return f"Url({str(self)!r})"

    @property
    def where(self) -> str:
        """Name the server for messages: host and port, or the path of its socket."""
        parts = urlsplit(self.text)
        if parts.scheme == "unix":
            return unquote(parts.path)
        host = parts.hostname or "localhost"
        return f"[{host}]:{parts.port or PORT}" if ":" in host else f"{host}:{parts.port or PORT}"

    @property
    def address(self) -> tuple[str, int]:
        """Return the host and the port. Raises ValueError for a Unix socket, which has none."""
        parts = urlsplit(self.text)
        if parts.scheme == "unix":
            raise ValueError(f"{self} is a Unix socket: other hosts cannot reach it")
        return parts.hostname or "localhost", parts.port or PORT

    @property
    def scheme(self) -> str:
        """How it is reached: `redis`, `rediss` (with TLS) or `unix`."""
        return urlsplit(self.text).scheme

    def at(self, host: str, port: int) -> Url:
        """Return another server, reached in the same way with the same secrets."""
        parts = urlsplit(self.text)
        if parts.scheme == "unix":
            raise ValueError(f"{self} is a Unix socket: it says nothing about how to reach {host}")
        secrets = parts.netloc.rpartition("@")[0]
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return Url(
            parts._replace(netloc=f"{secrets}@{place}" if secrets else place).geturl(), credentials=self.credentials
        )

    def options(self) -> dict[str, Any]:
        """Return what both kinds of redis-py's connections are made with. `Any`: arguments of many types."""
        given: dict[str, Any] = _parsed(self.text)
        given.pop("connection_class", None)
        given["protocol"] = 2  # RESP3's handshake is more than a role for backups may do, and brings nothing here
        given["retry"] = Retry(NoBackoff(), 0)
        given["socket_connect_timeout"] = CONNECT_SECONDS
        given["driver_info"] = None  # CLIENT SETINFO is not for every role
        if self.credentials is not None:
            given["credential_provider"] = self.credentials
        if self.scheme != "unix":
            given.update(socket_keepalive=True, socket_keepalive_options=_KEEPALIVE)
        if self.scheme == "rediss":
            given["ssl_min_version"] = ssl.TLSVersion.TLSv1_2
        return given

    def _check(self) -> None:
        try:
            parts = urlsplit(self.text)
            _ = parts.port
            known = dict(parse_qsl(parts.query, keep_blank_values=True))
            _parsed(self.text)
        except ValueError:
            parts, known = urlsplit(""), {}
        if parts.scheme not in _SCHEMES or (parts.scheme == "unix" and not parts.path):
            raise ValueError(
                "the url is not of redis://, rediss:// or unix:// (it is not shown: it may hold a password)"
            ) from None
        for key in known:
            if key not in _KNOWN:
                raise ValueError(f"the url has a parameter {key} that is not supported: remove it")
        if self.credentials is not None and (parts.username or parts.password or {"username", "password"} & set(known)):
            raise ValueError("credentials take the place of the user and the password in the url: leave those out")


def _parsed(text: str) -> dict[str, Any]:
    return dict(parse_url(text))  # type: ignore[no-untyped-call]


def parse_redis_url(text: str | Url) -> Url:
    """Read a URL (attrs converter); see `Url.parse`."""
    return Url.parse(text)


@asynccontextmanager
async def commands(
    url: Url, *, operation: str, seconds: float | None = ANSWER_SECONDS, within: float = CONNECT_SECONDS
) -> AsyncIterator[aioredis.Redis]:
    """Open a client; closed on leaving. Raises Unreachable, TimedOut, Refused, Unavailable or Unsupported.

    It connects with its first command. A command may take `seconds` (None: as long as it takes) and is never repeated;
    connecting may take `within`. What the body raises of redis-py is turned into ours too.
    """
    client = connect(url, seconds=seconds, within=within)
    try:
        with mapped(url.where, operation):
            yield client
    finally:
        await finish(client.aclose())


def connect(url: Url, *, seconds: float | None = ANSWER_SECONDS, within: float = CONNECT_SECONDS) -> aioredis.Redis:
    """Return a client that the caller closes; it connects when it is first used, and repeats nothing.

    Answers are as the server sends them, whatever redis-py would make of them: bytes, numbers, and lists of these.
    """
    options = {**url.options(), "socket_timeout": seconds, "socket_connect_timeout": within}
    kinds = {
        "unix": aioredis.UnixDomainSocketConnection,
        "rediss": aioredis.SSLConnection,
        "redis": aioredis.Connection,
    }
    client = aioredis.Redis.from_pool(aioredis.ConnectionPool(connection_class=kinds[url.scheme], **options))
    client.response_callbacks.clear()
    return client


async def ask(client: aioredis.Redis, *words: str | bytes | int) -> Any:  # noqa: ANN401  # what a command answers
    """Run one command. Raises redis.RedisError, which `commands` turns into ours.

    Cancelled, it may have been run. It has a task of its own, since redis-py sends with `asyncio.wait_for`, which on
    Python 3.11 forgets a cancellation that comes too late.
    """
    running = asyncio.ensure_future(client.execute_command(*words))  # type: ignore[no-untyped-call]
    try:
        await asyncio.wait([running])
    finally:
        await stop_tasks([running])
    return running.result()


class _Kept:
    """Keeps the socket that a connection opens: redis-py itself has no way to read from it in bulk."""

    opened: socket.socket

    def _connect(self) -> socket.socket:
        self.opened = super()._connect()  # type: ignore[misc]  # of the connection that it is mixed into
        return self.opened


class _KeptTcp(_Kept, redis.Connection):
    pass


class _KeptTls(_Kept, redis.SSLConnection):
    pass


class _KeptUnix(_Kept, redis.UnixDomainSocketConnection):
    pass


@define
class Link:
    """A connection of its own whose bytes are read as they come, in a thread; nothing is buffered behind our back."""

    url: Url
    operation: str
    _connection: _KeptTcp | _KeptTls | _KeptUnix | None = field(default=None, init=False)
    _stopped: bool = field(default=False, init=False)

    def open(self) -> None:
        """Connect and log in. Raises Unreachable, TimedOut or Refused."""
        kinds = {"unix": _KeptUnix, "rediss": _KeptTls, "redis": _KeptTcp}
        with mapped(self.url.where, self.operation):
            self._connection = kinds[self.url.scheme](**self.url.options(), socket_timeout=ANSWER_SECONDS)
            self._connection.connect()
        if self._stopped:
            self.stop()

    def send(self, *words: str) -> None:
        """Send one command."""
        with mapped(self.url.where, self.operation):
            packed = [f"${len(word.encode())}\r\n{word}\r\n" for word in words]
            self._socket.sendall(f"*{len(words)}\r\n{''.join(packed)}".encode())

    def read_into(self, buffer: memoryview) -> int:
        """Read what there is, at least one byte. Raises Unreachable at the end, TimedOut after a minute of silence."""
        with mapped(self.url.where, self.operation):
            count = self._socket.recv_into(buffer)
        if not count:
            raise Unreachable(
                "the server closed the connection", operation=self.operation, subject=self.url.where, hint=_CLOSED
            )
        return count

    def read_line(self) -> bytes:
        """Read one line, byte for byte so that nothing of what follows is taken; without its end."""
        line, one = bytearray(), memoryview(bytearray(1))
        while not line.endswith(b"\n"):
            self.read_into(one)
            line += one
            if len(line) > _LINE:
                raise Unsupported("it does not answer as Redis does", operation=self.operation, subject=self.url.where)
        return bytes(line).rstrip(b"\r\n")

    def stop(self) -> None:
        """Have a read that waits return; from any thread."""
        self._stopped = True
        if self._connection is not None and hasattr(self._connection, "opened"):
            with suppress(OSError):
                socket.socket.shutdown(self._connection.opened, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it; once no other thread uses it."""
        if self._connection is not None:
            self._connection.disconnect()  # type: ignore[no-untyped-call]

    @property
    def _socket(self) -> socket.socket:
        if self._connection is None:
            raise ValueError("it is not open")
        return self._connection.opened


_LINE = 1 << 16
_CLOSED = "its log says why; a backup can be repeated"


@contextmanager
def mapped(where: str, operation: str) -> Iterator[None]:
    """Turn the driver's errors into ours."""
    try:
        yield
    except redis.RedisError as error:
        raise _from_driver(error, where, operation) from error
    except TimeoutError as error:
        raise TimedOut("no answer within the deadline", operation=operation, subject=where) from error
    except OSError as error:
        raise _from_system(error, where, operation) from error


def _from_driver(error: redis.RedisError, where: str, operation: str) -> ResilienceError:
    under = error.__cause__ or error.__context__
    if isinstance(error, redis.ResponseError | redis.AuthenticationError | redis.BusyLoadingError):
        return from_server(_said(error), where=where, operation=operation)
    if isinstance(error, redis.TimeoutError):
        return TimedOut("no answer within the deadline", operation=operation, subject=where)
    if isinstance(under, OSError):
        return _from_system(under, where, operation)
    kind = Unreachable if isinstance(error, redis.ConnectionError) else Refused
    return kind(_one_line(error), operation=operation, subject=where)


def _said(error: redis.RedisError) -> str:
    """Return what the server said: redis-py takes its first word away where it has a class for it."""
    words = {
        redis.exceptions.BusyLoadingError: "LOADING",
        redis.exceptions.ReadOnlyError: "READONLY",
        redis.exceptions.NoPermissionError: "NOPERM",
        redis.exceptions.MasterDownError: "MASTERDOWN",
        redis.exceptions.ClusterDownError: "CLUSTERDOWN",
        redis.exceptions.OutOfMemoryError: "OOM",
        redis.AuthenticationError: "WRONGPASS",
    }
    word, text = words.get(type(error), ""), _one_line(error)
    return text if text.startswith(word) else f"{word} {text}"


def _from_system(error: OSError, where: str, operation: str) -> ResilienceError:
    """Choose our error for what the system or the TLS library said."""
    if isinstance(error, ssl.SSLCertVerificationError):
        text, hint = f"the server's certificate is not trusted: {error.verify_message}", "check host and ssl_ca_certs"
        return Refused(text, operation=operation, subject=where, hint=hint)
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or "it failed").replace("_", " ").lower()
        return Unreachable(f"no TLS: {reason}", operation=operation, subject=where, hint="does the port speak TLS?")
    if isinstance(error, TimeoutError):
        return TimedOut("no answer within the deadline", operation=operation, subject=where)
    if error.filename is not None:
        text = f"a file of the url cannot be read: {error.strerror}: {error.filename}"
        return Refused(text, operation=operation, subject=where)
    text = f"no connection: {error.strerror or _one_line(error)}"
    return Unreachable(text, operation=operation, subject=where, hint="is the server up?")


def from_server(said: str, *, where: str, operation: str) -> ResilienceError:
    """Choose our error for an error reply, by its first word."""
    word, _, rest = said.partition(" ")
    kind: type[ResilienceError] = Refused
    hint = ""
    if word in ("NOAUTH", "WRONGPASS", "DENIED") or "AUTH" in rest[:40]:
        hint = "check the user and the password in the url"
    elif word == "NOPERM":
        hint = "grant the user what it lacks with ACL SETUSER"
    elif word in _LATER:
        kind = Unavailable
    elif "BGSAVE failed" in said:
        kind, hint = Unavailable, "its log says why; where memory is short, set vm.overcommit_memory = 1 on the host"
    elif "unknown command" in said or "nknown subcommand" in said or "unknown option" in said.lower():
        kind = Unsupported
    return kind(_one_line(said), operation=operation, subject=where, hint=hint)


def _one_line(text: object) -> str:
    return " ".join(str(text).split()) or type(text).__name__
