"""PgBouncer as a switch: it makes clients wait, leads them to another server, and lets them go (R34)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from attrs import field, frozen

from resilience.concurrency import finish, in_thread, stop_tasks
from resilience.model.errors import Interrupted, Refused, ResilienceError, RouteMoved, Unavailable
from resilience.model.failover import PhaseFloor
from resilience.model.findings import Finding
from resilience.model.groups import RouteFacts
from resilience.model.ids import checked_name
from resilience.model.show import as_span
from resilience.postgres.addresses import Address, read_addresses
from resilience.postgres.arrival import Arrival, answers, arrival, first_arrival
from resilience.postgres.client import Dsn, parse_dsn

from .console import Console, Row, console, quoted
from .files import Replacement, replacement
from .state import State, look

RETRY = "server_login_retry"
LOOK_SECONDS = 0.4
POLL_SECONDS = 0.003
DEAD_SECONDS = 0.25
"""A server that has not answered within this is not waited for: what runs on it will not end."""
GRACE_SECONDS = 0.05
"""What is on its way from a server that has died has arrived after this."""


@frozen
class PgBouncerSwitch:
    """The lines of a group's `databases` in one PgBouncer on this machine.

    `console` leads to its admin console, as a user of `admin_users`; `through` to one of the databases, as a client.
    `members` says where PgBouncer finds each member: `{"a": "10.0.0.4:5432"}`. `config` is the file with the lines, or
    one that includes it; what PgBouncer itself names, if it is not given. Running transactions are let finish for
    `patience` seconds while clients are held; `deadline` seconds are what the arrival may take.

    - Held: PAUSE. Transactions that begin wait, until `query_wait_timeout`. After `patience` those that still run are
      left to run, and told of in the facts.
    - Switched: the file is replaced, RELOAD, and RESUME. A transaction that still hangs at the old server then has
      `patience` once more if that server answers. After that KILL frees its database, whose clients all lose their
      connections: without that, they would take up the pool's places.
    - After a server has died PgBouncer asks for it again only after `server_login_retry`, 15 s unless it is set. While
      it is switched that is 0, and then as the file has it.
    - Cancelled, a switch that has begun finishes.
    """

    name: str = field(converter=checked_name)
    console: Dsn = field(converter=parse_dsn, kw_only=True)
    through: Dsn = field(converter=parse_dsn, kw_only=True)
    databases: Sequence[str] = field(kw_only=True)
    members: Mapping[str, Address] = field(converter=read_addresses, kw_only=True)
    config: str | Path | None = field(default=None, kw_only=True)
    patience: float = field(default=1.0, kw_only=True)
    deadline: float = field(default=10.0, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if not self.databases or "*" in self.databases:
            raise ValueError("databases= must name them; the line of * cannot be switched at once")

    @property
    def system(self) -> str:
        """What it is."""
        return "pgbouncer"

    async def survey(self) -> RouteFacts:
        """Look at the console, the file, and through the route unless clients are held. It writes nothing.

        Raises Unreachable, TimedOut or Refused.
        """
        async with console(self.console, operation="survey") as opened:
            state = await self._look(opened)
        if state.paused:
            return self._facts(state)
        try:
            reached = await arrival(self.through, operation="survey", seconds=LOOK_SECONDS)
        except Unavailable as error:
            text, hint = f"nothing arrives through it: {error.what}", "is all of PgBouncer paused? then RESUME it"
            silent = Finding(severity="warning", subject=self.name, text=text, hint=hint)
            return self._facts(state, findings=(silent,))
        return self._facts(state, reached)

    async def switch(self, to: str | None, *, expected: str) -> RouteFacts:
        """Hold clients (None), or lead them to a member and let them go. See the class, and TrafficSwitch.

        Raises Refused, Unreachable, TimedOut and RouteMoved with everything as it was, Interrupted otherwise.
        """
        if to is None:
            return await finish(self._hold(expected))
        if to not in self.members:
            raise ValueError(f"{self.name} knows no member {to!r}")
        return await finish(self._lead(to, expected))

    async def floor(self) -> tuple[PhaseFloor, ...]:
        """Return what the live settings cost: nothing, as long as clients may wait."""
        async with console(self.console, operation="survey") as opened:
            state = await self._look(opened)
        retry, wait = (as_span(float(state.settings[name])) for name in ("server_login_retry", "query_wait_timeout"))
        why = f"a switch passes over server_login_retry ({retry}); clients wait for up to query_wait_timeout ({wait})"
        return (PhaseFloor(phase="propagation", seconds=0.0, why=f"{self.name}: {why}"),)

    async def _look(self, opened: Console) -> State:
        config = None if self.config is None else Path(self.config)
        return await look(opened, self.databases, config, subject=self.name)

    async def _hold(self, expected: str) -> RouteFacts:
        async with console(self.console, operation="hold") as opened:
            state = await self._look(opened)
            if state.version != expected:
                raise self._moved("hold")
            try:
                if await self._pause(state, opened):
                    return await self._held(opened, expected)
            except Refused:
                if not state.held:
                    await self._resume(opened)
                raise
        async with console(self.console, operation="hold") as opened:
            return await self._held(opened, expected)

    async def _held(self, opened: Console, expected: str) -> RouteFacts:
        """Look once more: whoever stood still before his PAUSE may have come to it long after others went on."""
        state = await self._look(opened)
        if state.version != expected:
            await self._resume(opened)
            raise self._moved("hold")
        return self._facts(state)

    def _moved(self, operation: str) -> RouteMoved:
        text = "it does not lead any more where it did when this was decided"
        return RouteMoved(text, operation=operation, subject=self.name, hint="look at it again")

    async def _pause(self, state: State, opened: Console | None = None) -> bool:
        """Pause every database at once, and wait for what runs; tell whether all of it has ended.

        A console waits for its PAUSE, so each has its own, and `opened` is of no more use if something still runs. The
        database stays paused when its console has gone.
        """
        async with AsyncExitStack() as stack:
            consoles = [opened] if opened else []
            opening = [console(self.console, operation="hold") for _ in self.databases[len(consoles) :]]
            consoles += [await stack.enter_async_context(each) for each in opening]
            pauses = [
                asyncio.create_task(each.ask(f"PAUSE {quoted(name)}", seconds=None))
                for each, name in zip(consoles, self.databases, strict=True)
            ]
            try:
                await self._drained(pauses, state)
                ended = [pause for pause in pauses if pause.done()]
                for pause in ended:
                    pause.result()
                return len(ended) == len(pauses)
            finally:
                await stop_tasks(pauses)

    async def _drained(self, pauses: Sequence[asyncio.Task[list[Row]]], state: State) -> None:
        """Wait for as long as it makes sense to wait."""
        _, left = await asyncio.wait(pauses, timeout=GRACE_SECONDS)
        if left and await self._alive(state):
            await asyncio.wait(left, timeout=self.patience)

    async def _alive(self, state: State) -> bool:
        """Tell whether any of the servers that it leads to answers at all."""
        there = set(state.running.values())
        tried = [answers(place.host, place.port, seconds=DEAD_SECONDS) for place in there if place.host]
        return not tried or any(await asyncio.gather(*tried))

    async def _lead(self, to: str, expected: str) -> RouteFacts:
        wanted = dict.fromkeys(self.databases, self.members[to])
        async with console(self.console, operation="switch") as opened:
            state = await self._look(opened)
            if state.written != wanted and state.version != expected:
                raise self._moved("switch")
            if not state.written == state.running == wanted:
                await self._move(opened, state, wanted)
            elif state.settings[RETRY] == "0":
                await opened.ask("RELOAD")  # somebody died before he put it back
            try:
                reached = await self._let_go(opened)
                state = await self._look(opened)
            except ResilienceError as error:
                text = f"clients are led to {to}, but {error.what}"
                hint = "some may be held still: switch again"
                raise Interrupted(text, operation="switch", subject=self.name, hint=hint) from error
        return self._facts(state, reached)

    async def _move(self, opened: Console, state: State, wanted: Mapping[str, Address]) -> None:
        """Lead held clients elsewhere; everything is as it was if it raises anything but Interrupted."""
        new = await in_thread(replacement, state.file, wanted, subject=self.name)
        try:
            try:
                if not state.held:
                    await self._pause(state)
                if state.written != wanted:
                    await in_thread(new.put)
                await opened.ask("RELOAD")
                if (await self._look(opened)).running != wanted:
                    # RELOAD succeeds whatever is wrong with the file, and takes what comes before that.
                    text, hint = f"PgBouncer does not take what {state.file.path} says", "its log says why"
                    raise Refused(text, operation="switch", subject=self.name, hint=hint)
            except (RouteMoved, Refused):
                await self._go_back(opened, state, new)
                raise
            await self._cut(opened, state)
        except Unavailable as error:
            text, hint = f"half-way, {error.what}", "clients may be held: switch again"
            raise Interrupted(text, operation="switch", subject=self.name, hint=hint) from error
        finally:
            await in_thread(new.close)

    async def _go_back(self, opened: Console, before: State, new: Replacement) -> None:
        """Have everything as it was."""
        if new.there:
            await in_thread(new.undo)
            await opened.ask("RELOAD")
        now = await self._look(opened)
        if now.running != before.running:
            text, hint = f"PgBouncer takes neither what {now.file.path} says nor what it said", "its log says why"
            raise Interrupted(text, operation="switch", subject=self.name, hint=hint)
        if not before.held:
            await self._resume(opened)

    async def _cut(self, opened: Console, before: State) -> None:
        """Wait for the last connections to the old server, then cut them off: they take up places of the pool."""
        loop = asyncio.get_running_loop()
        until, asked = loop.time() + GRACE_SECONDS, False
        while left := await self._left(opened):
            if loop.time() >= until:
                if asked or not await self._alive(before):
                    break
                until, asked = loop.time() + self.patience, True
            await asyncio.sleep(POLL_SECONDS)
        for name in left:
            await opened.ask(f"KILL {quoted(name)}")

    async def _left(self, opened: Console) -> list[str]:
        servers = await opened.ask("SHOW SERVERS")
        return [name for name in self.databases if any(row["database"] == name for row in servers)]

    async def _let_go(self, opened: Console) -> Arrival:
        """Resume, and wait until somebody has arrived."""
        retry = (await self._look(opened)).settings[RETRY]
        await opened.ask(f"SET {RETRY} = 0")
        try:
            await self._resume(opened)
            return await first_arrival(self.through, operation="switch", seconds=self.deadline)
        finally:
            await opened.ask(f"SET {RETRY} = '{retry}'")

    async def _resume(self, opened: Console) -> None:
        for name in (await self._look(opened)).paused:
            await opened.ask(f"RESUME {quoted(name)}")

    def _facts(self, state: State, reached: Arrival | None = None, findings: tuple[Finding, ...] = ()) -> RouteFacts:
        places = set(state.running.values())
        to = next((name for name, place in self.members.items() if places == {place}), None)
        return RouteFacts(
            route=self.name,
            to=to,
            version=state.version,
            held=state.held,
            instance=reached.instance if reached else "",
            writable=reached.writable if reached else None,
            findings=(*state.findings, *findings),
            details={
                "databases": {name: str(place) for name, place in state.running.items()},
                "config": str(state.file.path),
                **({"connections": state.connections} if state.paused else {}),
                RETRY: state.settings[RETRY],
                "query_wait_timeout": state.settings["query_wait_timeout"],
            },
        )
