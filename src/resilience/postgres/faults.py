"""Faults for drills on PostgreSQL servers of this machine: a killed postmaster, a hung server, a cut network.

Each proves what it did by asking the kernel and the server, not by having done it. `heal` finds out by itself what is
left to heal, so that it does as well in another process, after the one that injected the fault has died.
"""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import ClassVar, Protocol

from attrs import field, frozen

from resilience.arrivals import silence
from resilience.concurrency import finish, in_thread
from resilience.model.drills import FaultProof
from resilience.model.errors import Interrupted, Refused
from resilience.model.moments import utc_now
from resilience.processes import gone, until

from .arrival import SSL_REQUEST, doorway
from .client import Dsn, parse_dsn, sql
from .processes import Process, look, postmaster, processes, reap, send

LOOK_AGAIN_SECONDS = 0.002
DIES_WITHIN_SECONDS = 10.0
STOPS_WITHIN_SECONDS = 5.0
LEAVE_WITHIN_SECONDS = 1.0
SILENT_SECONDS = 0.3
ANSWERS_WITHIN_SECONDS = 5.0


@frozen(kw_only=True)
class _Struck:
    """Whom a fault is done to: `member` is its name in the group, `dsn` reaches the server itself, not a route."""

    member: str
    dsn: Dsn = field(converter=parse_dsn)
    clock: Callable[[], datetime] = field(default=utc_now, repr=False)
    system: ClassVar[str] = "postgresql"

    @property
    def subject(self) -> str:
        """Whom it is done to."""
        return self.member


@frozen(kw_only=True)
class KilledPostmaster(_Struck):
    """Kills the postmaster of the server on `data` with SIGKILL; its processes notice and leave by themselves.

    `member` is its name in the group, `dsn` reaches the server itself, not through a route. There is nothing to
    heal: it stays dead until somebody starts it. Takes the server's account, or root.
    """

    data: Path = field(converter=Path)

    @property
    def name(self) -> str:
        """What the drill's record calls it."""
        return f"kill -9 of {self.member}"

    @asynccontextmanager
    async def inject(self) -> AsyncIterator[FaultProof]:
        """Kill it; see `Fault.inject`. Cancelled in the middle: it is dead all the same."""
        server = await _served(self.dsn, self.data, self.name)
        yield await finish(self._kill(server))

    async def heal(self) -> None:
        """Do nothing: who kills does not raise from the dead. See `Fault.heal`."""

    async def _kill(self, server: Process) -> FaultProof:
        children = [each for each in await in_thread(processes, self.data) if each != server]
        at, began = self.clock(), time.monotonic()
        server.send(signal.SIGKILL)
        if not await until(gone(server), DIES_WITHIN_SECONDS):
            text = f"process {server.pid} was sent SIGKILL and still runs"
            raise Interrupted(text, operation="inject", subject=self.name)
        reap([server, *children])
        died = (time.monotonic() - began) * 1000
        await until(gone(*children), LEAVE_WITHIN_SECONDS)
        left = [each.pid for each in children if each.alive]
        rest = f"processes {left} of it still run" if left else f"its {len(children)} processes have left by themselves"
        if not (said := await knock(self.dsn)):
            raise Interrupted("a server still answers there", operation="inject", subject=self.name)
        evidence = f"process {server.pid} was gone {died:.0f} ms after SIGKILL, {rest}; a client is told: {said}"
        return FaultProof(fault="kill -9", subject=self.member, at=at, evidence=evidence)


@frozen(kw_only=True)
class HungServer(_Struck):
    """Stops every process of the server on `data` with SIGSTOP: it is there, and answers nobody.

    Healing lets go on what still is there (SIGCONT): a primary that wakes up and knows nothing of what has happened.
    """

    data: Path = field(converter=Path)

    @property
    def name(self) -> str:
        """What the drill's record calls it."""
        return f"SIGSTOP of {self.member}"

    @asynccontextmanager
    async def inject(self) -> AsyncIterator[FaultProof]:
        """Stop it until left; see `Fault.inject`. Cancelled: it goes on."""
        server = await _served(self.dsn, self.data, self.name)
        try:
            yield await finish(self._stop(server))
        finally:
            await finish(self.heal())

    async def heal(self) -> None:
        """Let its processes go on, those that are left; see `Fault.heal`."""
        # The postmaster last: it shall find its processes at work.
        there = await in_thread(processes, self.data)
        send(sorted(there, key=lambda each: -each.started), signal.SIGCONT)

    async def _stop(self, server: Process) -> FaultProof:
        at = self.clock()
        server.send(signal.SIGSTOP)
        stopped: list[Process] = []

        async def all_stopped() -> bool:
            # One that was being made when we looked is found the next time; a stopped postmaster makes no others.
            stopped[:] = await in_thread(processes, self.data)
            send((each for each in stopped if each.state != "T"), signal.SIGSTOP)
            return all(each.state == "T" for each in stopped)

        if not await until(all_stopped, STOPS_WITHIN_SECONDS) or server.pid not in [each.pid for each in stopped]:
            raise Interrupted("not all of its processes stopped", operation="inject", subject=self.name)
        if not (said := await knock(self.dsn)):
            raise Interrupted("a server still answers there", operation="inject", subject=self.name)
        evidence = f"all {len(stopped)} processes of {server.pid} are stopped (state T); a client is told: {said}"
        return FaultProof(fault="SIGSTOP", subject=self.member, at=at, evidence=evidence)


class Cuttable(Protocol):
    """A network that can be cut before a server, and mended; both may be repeated. See `DroppingProxy`."""

    async def cut(self) -> int:
        """Drop everything from now on; return how many connections hang by that."""
        ...

    async def mend(self) -> None:
        """Forward again."""
        ...


@frozen(kw_only=True)
class CutNetwork(_Struck):
    """Cuts the network before a server: what is sent to it, or by it, arrives nowhere, and nobody is told.

    `dsn` reaches the server the way that is cut. The server itself goes on, and believes that it is the primary.
    """

    network: Cuttable = field(repr=False)

    @property
    def name(self) -> str:
        """What the drill's record calls it."""
        return f"cut network of {self.member}"

    @asynccontextmanager
    async def inject(self) -> AsyncIterator[FaultProof]:
        """Cut it until left; see `Fault.inject`. Cancelled: it is mended."""
        if said := await knock(self.dsn, seconds=ANSWERS_WITHIN_SECONDS):
            hint = "nothing was touched: is the server up, does this lead to it?"
            raise Refused(f"nobody answers: {said}", operation="inject", subject=self.name, hint=hint)
        try:
            yield await finish(self._cut())
        finally:
            await finish(self.heal())

    async def heal(self) -> None:
        """Mend it; see `Fault.heal`."""
        await self.network.mend()

    async def _cut(self) -> FaultProof:
        at = self.clock()
        connections = await self.network.cut()
        if not (said := await knock(self.dsn)):
            raise Interrupted("somebody still answers that way", operation="inject", subject=self.name)
        evidence = f"{connections} connections and all new ones lead nowhere; a client is told: {said}"
        return FaultProof(fault="cut network", subject=self.member, at=at, evidence=evidence)


async def _served(dsn: Dsn, data: Path, name: str) -> Process:
    """Return the postmaster on `data` if it is the one that answers at `dsn`. Raises Refused, Unavailable."""
    server = await in_thread(postmaster, data)
    if server is None:
        text = f"no server runs on {data}"
        raise Refused(text, operation="inject", subject=name, hint="nothing was touched: name its data directory")
    async with sql(dsn, operation="inject", seconds=ANSWERS_WITHIN_SECONDS) as connection:
        answering = look(await connection.fetchval("select pg_backend_pid()"))
        if answering is None or answering.parent != server.pid:
            text = f"another server answers at {dsn.where} than the one on {data}"
            raise Refused(text, operation="inject", subject=name, hint="nothing was touched: name one server")
    return server


async def knock(dsn: Dsn, *, seconds: float = SILENT_SECONDS) -> str:
    """Knock as a client does and return what it is told; empty if a server answers."""
    host, port = (dsn.addresses or [("localhost", 5432)])[0]
    return await silence(*doorway(host, port), SSL_REQUEST, seconds=seconds)
