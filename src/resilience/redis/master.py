"""connect_master(): a redis.asyncio client that writes to the master, whoever it is, and to nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from time import monotonic
from typing import Any

import redis
from redis import asyncio as aioredis
from redis.asyncio.sentinel import MasterNotFoundError

from resilience.concurrency import finish
from resilience.model.errors import Unreachable

from .client import Url
from .failover.finding import Finder
from .failover.sentinels import Address, Sentinels

AGAIN_SECONDS = 0.005
"""How long it takes until a master is looked for again that did not answer."""


def connect_master(
    sentinels: Sequence[str | Url],
    watched: str,
    *,
    url: str | Url = "redis://localhost",
    members: Sequence[tuple[str, int]] = (),
    seconds: float = 1.0,
    patience: float = 30.0,
    answers_within: float | None = 5.0,
    decode_responses: bool = False,
    max_connections: int | None = None,
) -> aioredis.Redis:
    """Return a client of the master of the group that the Sentinels call `watched`; the caller closes it (`aclose()`).

    - All Sentinels are asked, a majority has to answer, the newest configuration counts, and the server that it names
      must say itself that it is the master (ROLE), on each connection. Who does not answer is waited for `seconds`.
    - It listens to all of them. Once another is master, connections to the old one are dropped, also those in use: what
      was sent there and not answered raises redis.ConnectionError, and nobody knows whether it was done.
    - READONLY raises redis.ReadOnlyError: it was not done; the next command goes to the master that is then.
    - No command is repeated, ever: only its author knows whether that is right. What is repeated is looking for the
      master, before anything is sent, for `patience` seconds; then MasterNotFoundError (a redis.ConnectionError).

    `url` says how servers are reached (scheme, user, password, database); its host does not matter. `members` are asked
    where no majority of Sentinels answers: then it is the one that a majority of them follows. A command is waited for
    `answers_within` seconds; None: for as long as it takes, which is for commands that block.
    """
    login = Url.parse(url)
    if login.scheme == "unix":
        raise ValueError("a master is reached over the network: url is of redis:// or rediss://")
    known = Sentinels(tuple(Url.parse(each) for each in sentinels), watched, seconds)
    options: dict[str, Any] = login.options()
    options.update(socket_timeout=answers_within, decode_responses=decode_responses, socket_connect_timeout=seconds)
    kind = {"redis": _Connection, "rediss": _TlsConnection}[login.scheme]
    pool = MasterPool(
        Finder(known, login, tuple(members)),
        patience=patience,
        connection_class=kind,
        max_connections=max_connections,
        **options,
    )
    return aioredis.Redis.from_pool(pool)


class MasterPool(aioredis.ConnectionPool):
    """Connections to the master, all of the same generation; `finder` knows who that is."""

    def __init__(self, finder: Finder, *, patience: float, **options: Any) -> None:  # noqa: ANN401  # redis-py's own
        super().__init__(**options)
        self.finder = finder
        self.patience = patience
        finder.moved = self._dropped
        self.connection_kwargs["pool"] = self

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Close all connections, and with them what is heard from the Sentinels; it begins anew with the next use."""
        if inuse_connections:
            await finish(self.finder.aclose())
        await super().disconnect(inuse_connections)

    def _dropped(self) -> None:
        """Drop all connections to whoever was master before, also those that somebody waits on."""
        for connection in (*self._available_connections, *self._in_use_connections):
            if isinstance(connection, _ToMaster):
                connection.drop_stale()


class _ToMaster(aioredis.Connection):
    """A connection that looks for the master before it connects, and takes no answer of one that is none any more."""

    def __init__(self, *, pool: MasterPool, **options: Any) -> None:  # noqa: ANN401  # redis-py's own
        super().__init__(**options)
        self._pool = pool
        self._generation = 0

    @property
    def stale(self) -> bool:
        """Whether another has become master since it was connected."""
        return self._generation != self._pool.finder.generation

    def drop_stale(self) -> None:
        """End it at once if it is of another master: whoever waits for an answer gets an error."""
        if self.stale and self._writer is not None:
            self._writer.transport.abort()

    async def connect(self) -> None:
        """Connect to whoever is master now, unless it is. Raises MasterNotFoundError."""
        if self.is_connected and not self.stale:
            return
        await self.disconnect(nowait=True)
        deadline = monotonic() + self._pool.patience
        problem = ""
        while (left := deadline - monotonic()) > 0:
            try:
                address = await self._pool.finder.find(seconds=left)
            except Unreachable as error:
                raise MasterNotFoundError(str(error)) from error
            try:
                if await self._reached(address):
                    return
                problem = "it is no master"
            except (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError, OSError) as error:
                problem = str(error)
            self._pool.finder.doubt(address)
            await asyncio.sleep(AGAIN_SECONDS)
        text = f"no master was reached within {self._pool.patience:.3g} s"
        raise MasterNotFoundError(f"{text}: {problem}" if problem else text)

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:  # noqa: ARG002
        """Send a command, to nobody who has not just said that he is the master. Raises redis.ConnectionError.

        redis-py's own would connect again to where it was connected before; and it sends with `asyncio.wait_for`, which
        on Python 3.11 forgets a cancellation that comes too late.
        """
        if self._generation and self.stale:
            await self.disconnect(nowait=True)
            raise redis.ConnectionError(f"{self.host}:{self.port} is not the master any more: this was not sent")
        if not self.is_connected:
            await self.connect()
        packed = command.encode() if isinstance(command, str) else command
        try:
            async with asyncio.timeout(self.socket_timeout):
                await self._send_packed_command([packed] if isinstance(packed, bytes) else packed)
        except TimeoutError:
            await self.disconnect(nowait=True)
            raise redis.TimeoutError("Timeout writing to socket") from None
        except OSError as error:
            await self.disconnect(nowait=True)
            raise redis.ConnectionError(f"Error while writing to socket. {error}") from error
        except BaseException:
            await self.disconnect(nowait=True)
            raise

    async def read_response(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401  # whatever is answered
        """Read an answer. Raises redis.ConnectionError instead if another has become master meanwhile."""
        try:
            answer = await super().read_response(*args, **options)
        except redis.ReadOnlyError:
            self._pool.finder.doubt((self.host, self.port))
            await self.disconnect(nowait=True)
            raise
        if self._generation and self.stale:
            await self.disconnect(nowait=True)
            text = f"{self.host}:{self.port} is not the master any more: nobody knows whether this was done"
            raise redis.ConnectionError(text)
        return answer

    async def _reached(self, address: Address) -> bool:
        """Connect to a server, and ask it what it is; on False it is closed again."""
        self.host, self.port = address
        self._generation = 0
        generation = self._pool.finder.generation
        await self.connect_check_health(check_health=False, retry_socket_connect=False)
        try:
            await self.send_command("ROLE", check_health=False)
            role = await super().read_response()
        except BaseException:
            await self.disconnect(nowait=True)
            raise
        if role[0] not in (b"master", "master") or generation != self._pool.finder.generation:
            await self.disconnect(nowait=True)
            return False
        self._generation = generation
        return True


class _Connection(_ToMaster):
    pass


class _TlsConnection(_ToMaster, aioredis.SSLConnection):
    pass
