"""Faults for drills on Redis servers of this machine: one that is killed, one that hangs. Each is proven.

`heal` finds out by itself what is left to heal, so that it does as well in another process, after the one that injected
the fault has died.
"""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import ClassVar

from attrs import field, frozen

from resilience.arrivals import silence
from resilience.concurrency import finish, in_thread
from resilience.model.drills import FaultProof
from resilience.model.errors import Interrupted, Refused
from resilience.model.moments import utc_now
from resilience.processes import Process, gone, processes, reap, send, until

from .client import commands
from .failover.server import PROGRAMS, LocalRedis
from .members import RedisMember
from .survey import SYSTEM, ask_info

DIES_WITHIN_SECONDS = 10.0
STOPS_WITHIN_SECONDS = 5.0
SILENT_SECONDS = 0.3
ANSWERS_WITHIN_SECONDS = 5.0


@frozen(kw_only=True)
class _Struck:
    """Whom a fault is done to."""

    member: RedisMember
    clock: Callable[[], datetime] = field(default=utc_now, repr=False)
    system: ClassVar[str] = SYSTEM

    @property
    def subject(self) -> str:
        """Whom it is done to."""
        return self.member.name


@frozen(kw_only=True)
class KilledRedis(_Struck):
    """Kills all processes of `member`'s server on this machine with SIGKILL: what it had not written is gone.

    There is nothing to heal: it stays dead until somebody starts it. Takes the server's account, or root.
    """

    @property
    def name(self) -> str:
        """What the drill's record calls it."""
        return f"kill -9 of {self.member.name}"

    @asynccontextmanager
    async def inject(self) -> AsyncIterator[FaultProof]:
        """Kill it; see `Fault.inject`. Cancelled in the middle: it is dead all the same."""
        server = await _served(self.member, self.name)
        yield await finish(self._kill(server))

    async def heal(self) -> None:
        """Do nothing: who kills does not raise from the dead. See `Fault.heal`."""

    async def _kill(self, server: Process) -> FaultProof:
        children = [each for each in await in_thread(_processes, self.member) if each != server]
        at, began = self.clock(), time.monotonic()
        send([server, *children], signal.SIGKILL)
        if not await until(gone(server, *children), DIES_WITHIN_SECONDS):
            raise Interrupted("it does not die, it may wait for a disk", operation="inject", subject=self.name)
        seconds = time.monotonic() - began
        reap([server, *children])
        if not (said := await knock(self.member)):
            raise Interrupted("a server still answers there", operation="inject", subject=self.name)
        evidence = f"process {server.pid} was gone after {seconds * 1000:.0f} ms; a client is told: {said}"
        return FaultProof(fault="kill -9", subject=self.member.name, at=at, evidence=evidence)


@frozen(kw_only=True)
class HungRedis(_Struck):
    """Stops the processes of `member`'s server (SIGSTOP): it answers nobody, and its connections stay open.

    Healing lets go on what still is there (SIGCONT): a master that wakes up and knows nothing of what has happened.
    """

    @property
    def name(self) -> str:
        """What the drill's record calls it."""
        return f"SIGSTOP of {self.member.name}"

    @asynccontextmanager
    async def inject(self) -> AsyncIterator[FaultProof]:
        """Stop it until left; see `Fault.inject`. Cancelled: it goes on."""
        server = await _served(self.member, self.name)
        try:
            yield await finish(self._stop(server))
        finally:
            await finish(self.heal())

    async def heal(self) -> None:
        """Let its processes go on, those that are left; see `Fault.heal`."""
        send(await in_thread(_processes, self.member), signal.SIGCONT)

    async def _stop(self, server: Process) -> FaultProof:
        at = self.clock()
        send([server], signal.SIGSTOP)

        async def stopped() -> bool:
            return server.stopped

        if not await until(stopped, STOPS_WITHIN_SECONDS):
            raise Interrupted("it has not stopped", operation="inject", subject=self.name)
        if not (said := await knock(self.member)):
            raise Interrupted("a server still answers there", operation="inject", subject=self.name)
        evidence = f"process {server.pid} is stopped (state T); a client is told: {said}"
        return FaultProof(fault="SIGSTOP", subject=self.member.name, at=at, evidence=evidence)


async def knock(member: RedisMember, *, seconds: float = SILENT_SECONDS) -> str:
    """Knock as a client does and return what it is told; empty if a server answers, whatever it says."""
    return await silence(*member.url.address, b"PING\r\n", seconds=seconds)


async def _served(member: RedisMember, name: str) -> Process:
    """Return the process of the server that answers at a member's url, if it is the one here. Raises Refused."""
    server = _server(member, name)
    async with commands(member.url, operation="inject", seconds=ANSWERS_WITHIN_SECONDS) as client:
        pid = (await ask_info(client, "server")).number("process_id")
    found = next((each for each in await in_thread(_processes, member) if each.pid == pid), None)
    if found is None:
        text = f"another server answers at {member.url.where} than the one in {server.data}"
        raise Refused(text, operation="inject", subject=name, hint="nothing was touched: name one server")
    return found


def _server(member: RedisMember, name: str) -> LocalRedis:
    if member.server is None:
        text = "its server is not on this machine, as far as was said"
        raise Refused(text, operation="inject", subject=name, hint="nothing was touched: give the member its server")
    return member.server


def _processes(member: RedisMember) -> list[Process]:
    data = _server(member, member.name).data
    return [each for program in PROGRAMS for each in processes(data, program)]
