"""The door to a Redis server: commands through redis-py's asyncio client, and where the server is.

Nothing is repeated by itself: redis-py's ten retries are for reading, and would run a command that changes something
twice. A password is kept out of every repr, message and argv.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from attrs import field, frozen
from redis import asyncio as aioredis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.credentials import CredentialProvider
from redis.retry import Retry

from resilience.concurrency import finish, stop_tasks
from resilience.model.errors import Refused

from .replies import from_server as from_server
from .replies import mapped as mapped

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
_FILES = {"ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile"}
_KNOWN = _TLS | {"db", "username", "password"}
_KEEPALIVE = {socket.TCP_KEEPIDLE: 30, socket.TCP_KEEPINTVL: 10, socket.TCP_KEEPCNT: 3}


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


def parse_redis_urls(texts: Iterable[str | Url]) -> tuple[Url, ...]:
    """Read several URLs (attrs converter); see `Url.parse`."""
    return tuple(Url.parse(each) for each in texts)


@asynccontextmanager
async def commands(
    url: Url, *, operation: str, seconds: float | None = ANSWER_SECONDS, within: float = CONNECT_SECONDS
) -> AsyncIterator[aioredis.Redis]:
    """Open a client; closed on leaving. Raises Unreachable, TimedOut, Refused, Unavailable or Unsupported.

    It connects with its first command. A command may take `seconds` (None: as long as it takes) and is never repeated;
    connecting may take `within`. What the body raises of redis-py is turned into ours too.
    """
    look_at_files(url, operation)
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


def look_at_files(url: Url, operation: str) -> None:
    """Raise Refused if a file of the URL cannot be read: the TLS library does not say which."""
    for name, value in parse_qsl(urlsplit(url.text).query):
        if name in _FILES and not os.access(value, os.R_OK):
            text = f"what {name} names cannot be read: {value}"
            raise Refused(text, operation=operation, subject=url.where, hint="check its path and its mode")


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
