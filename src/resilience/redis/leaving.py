"""The server that takes over after a restore: started on the data, to ready, and left running as nobody's child."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from attrs import field, frozen

from resilience.concurrency import finish, in_thread
from resilience.folders import write_durably
from resilience.model.errors import Interrupted, Unavailable
from resilience.programs import Account, started

from .client import Url, ask, commands
from .conf import conf
from .isolation import READY_SECONDS
from .survey import ask_info

CONF, LOG = "startup.conf", "startup.log"
_LOOK_SECONDS = 0.05


@frozen(kw_only=True)
class Left:
    """How the server is started: on which folder, with which configuration file and which settings over it."""

    data: Path
    config: str | None
    settings: Mapping[str, str] = field(factory=dict, repr=False)

    @property
    def conf(self) -> Path:
        """The configuration file that it is started with."""
        return self.data / CONF

    @property
    def lines(self) -> str:
        """What stands in that."""
        own = {} if self.config is None else {"include": str(Path(self.config).absolute())}
        settings = {"logfile": str(self.data / LOG), **self.settings, "dir": str(self.data), "daemonize": "yes"}
        return conf(own) + conf(settings)


async def start(left: Left, program: str, account: Account | None, url: Url) -> None:
    """Start it and wait until it answers at `url`, with this folder. Raises Interrupted with what it said.

    Cancelled while waiting, it is stopped again.
    """
    await in_thread(write_durably, left.conf, left.lines.encode(), account)
    async with started([program, str(left.conf)], account=account, cwd=left.data) as running:
        await running.succeed(Interrupted)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + READY_SECONDS
    try:
        while not await _is_there(left.data, url, ready=True):
            if loop.time() > deadline:
                raise Interrupted("it does not answer", operation="start", subject=url.where, hint=f"see {LOG} there")
            await asyncio.sleep(_LOOK_SECONDS)
    except BaseException:
        await finish(stop(left.data, url))
        raise


async def stop(data: Path, url: Url) -> None:
    """Stop the server at `url` without saving, if it is the one on this folder."""
    with suppress(Unavailable):  # it closes the connection, or has gone already
        if await _is_there(data, url):
            async with commands(url, operation="discard") as client:
                await ask(client, "SHUTDOWN", "NOSAVE")


async def _is_there(data: Path, url: Url, *, ready: bool = False) -> bool:
    """Tell whether the server at `url` is the one on this folder, and `ready` with loading its data."""
    with suppress(Unavailable):
        async with commands(url, operation="start") as client:
            there = str(data).encode() in await ask(client, "CONFIG", "GET", "dir")
            return there and not (ready and (await ask_info(client, "persistence")).number("loading"))
    return False
