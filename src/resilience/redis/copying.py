"""A running server becomes the replica of a scratch server, gets all it has, and is a master again."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from attrs import define, field
from redis.asyncio import Redis
from redis.exceptions import BusyLoadingError, RedisError, ResponseError

from resilience.model.errors import DestinationNotEmpty, Interrupted, Refused, ResilienceError, Unavailable

from .client import Url, ask
from .fitting import holds, lacking, setting
from .isolation import LiveRedis, Login
from .survey import Info, ask_info

OURS = "resilience-restore-"
"""What a password begins with that we gave a server for the time of a restore."""
PATIENCE_SECONDS = 120.0
"""How long a copy may make no progress: twice Redis's own repl-timeout."""
_LOOK_SECONDS = 0.05
_PROGRESS = (
    "master_link_status",
    "master_sync_in_progress",
    "master_sync_read_bytes",
    "slave_repl_offset",
    "loading_loaded_bytes",
)


def free_port(address: str) -> int:
    """Return a port that was free a moment ago. Raises OSError if the address is not this machine's."""
    with _deaf_port(address) as port:
        return port


@contextmanager
def _deaf_port(address: str) -> Iterator[int]:
    """Hold a port at which nobody answers."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as held:
        held.bind((address, 0))
        port: int = held.getsockname()[1]
        yield port


@define
class Copying:
    """One copy into the server behind `client`; `filled` tells whether it has all of it.

    Without `replace` it has to be empty in the moment from which on it takes no writes.

    `login` is what the scratch server has to ask for: what the server offers to masters as it is (`masterauth`), or a
    new password that is taken away again. A killed restore may leave that one behind; it opens nothing, and the next
    restore knows it by its first letters.
    """

    client: Redis
    url: Url
    replace: bool = field(default=False, kw_only=True)
    patience: float = field(default=PATIENCE_SECONDS, kw_only=True)
    login: Login = field(factory=lambda: Login(OURS + secrets.token_urlsafe(24)), init=False)
    tls: bool = field(default=False, init=False)
    filled: bool = field(default=False, init=False)
    _ours: bool = field(default=True, init=False)
    _source: LiveRedis | None = field(default=None, init=False)
    _history: str = field(default="", init=False)

    async def prepare(self) -> None:
        """Read how the server logs in to a master, and whether with TLS."""
        offered = await setting(self.client, "masterauth")
        if offered and not offered.startswith(OURS):
            self._ours = False
            self.login = Login(offered, await setting(self.client, "masteruser"))
        self.tls = await setting(self.client, "tls-replication") == "yes"

    async def copy(self, source: LiveRedis, host: str, port: int) -> None:
        """Attach it and wait until it has everything.

        Raises Refused if it cannot hold that, DestinationNotEmpty, or Unavailable if it does not get on.
        """
        await self._fit(await source.info())
        self._source = source
        if self._ours:
            await ask(self.client, "CONFIG", "SET", "masterauth", self.login.password)
        if not self.replace:
            await self._look_whether_empty(host)
        await ask(self.client, "REPLICAOF", host, port)
        loop = asyncio.get_running_loop()
        moved, seen = loop.time(), ""
        while not await self._complete(info := await ask_info(self.client, "everything")):
            progress = " ".join(info.text(name) for name in _PROGRESS)
            if progress != seen:
                moved, seen = loop.time(), progress
            elif loop.time() - moved > self.patience:
                raise Unavailable(
                    f"it did not copy from {host}:{port}: the link is {info.text('master_link_status') or 'down'}",
                    operation="restore",
                    subject=self.url.where,
                    hint="it has to reach that address (listen=); its log says more",
                )
            await asyncio.sleep(_LOOK_SECONDS)

    async def detach(self) -> None:
        """Make it a master again, and put back how it logs in. Raises Interrupted, saying what is left to do."""
        if self._source is None:
            return
        with suppress(ResilienceError):  # it may have ended
            await self._look_at(self._source)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.patience
        while True:
            try:
                await ask(self.client, "REPLICAOF", "NO", "ONE")
                if self._ours:
                    await ask(self.client, "CONFIG", "SET", "masterauth", "")
                # A server that has copied a history to its end remembers which one.
                now = await ask_info(self.client, "replication")
                self.filled = now.text("master_replid2") == self._history
                return
            except BusyLoadingError:  # it has received everything and cannot be disturbed until that is loaded
                deadline = max(deadline, loop.time() + _LOOK_SECONDS)
            except RedisError as error:
                if loop.time() > deadline:
                    raise Interrupted(
                        f"it may still be a replica: {error}",
                        operation="restore",
                        subject=self.url.where,
                        hint="run REPLICAOF NO ONE and CONFIG SET masterauth '' there",
                    ) from error
            await asyncio.sleep(_LOOK_SECONDS)

    async def _fit(self, there: Info) -> None:
        """Raise Refused if the server cannot hold what the scratch server turned out to hold."""
        here = await ask_info(self.client, "everything")
        needed = max(there.databases, default=-1) + 1
        for text, hint in await lacking(self.client, here, databases=needed, modules=there.modules):
            raise Refused(text, operation="restore", subject=self.url.where, hint=hint)

    async def _look_whether_empty(self, host: str) -> None:
        """Raise DestinationNotEmpty if clients have written by now.

        As a replica it takes no writes; as one of nobody it keeps what it has, and time to look at that.
        """
        with _deaf_port(host) as port:
            await ask(self.client, "REPLICAOF", host, port)
            if what := holds(await ask_info(self.client, "everything")):
                raise DestinationNotEmpty(
                    f"it has {what} by now",
                    operation="restore",
                    subject=self.url.where,
                    hint="replace=True gives up what it holds",
                )

    async def _complete(self, info: Info) -> bool:
        """Tell whether it has all that the scratch server has: on the same history, as far."""
        if info.number("loading") or info.text("master_link_status") != "up" or info.number("master_sync_in_progress"):
            return False
        offset = 0 if self._source is None else await self._look_at(self._source)
        return info.text("master_replid") == self._history and info.number("slave_repl_offset") >= offset

    async def _look_at(self, source: LiveRedis) -> int:
        """Ask the scratch server how far its history goes, and which it is: with its first replica it begins one."""
        there = await source.info()
        self._history = there.text("master_replid")
        return there.number("master_repl_offset")


async def release(client: Redis) -> None:
    """Make a server a master again that a killed restore has left as a replica, known by the password it was given."""
    try:
        offered = await setting(client, "masterauth")
    except ResponseError:
        return  # we may not ask, so we cannot have set it
    if offered.startswith(OURS):
        await ask(client, "REPLICAOF", "NO", "ONE")
        await ask(client, "CONFIG", "SET", "masterauth", "")
