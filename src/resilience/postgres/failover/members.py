"""The members of a group with their links, and what all steps of a failover do to them: look, stamp, configure."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from time import monotonic

from attrs import define, evolve, field

from resilience.concurrency import stop_tasks
from resilience.model.errors import FencedOff, Refused, ResilienceError, TimedOut
from resilience.postgres.members import PostgresMember

from .conninfo import Upstream, quoted
from .group import PROBE_SECONDS, Seen
from .identity import last_noted, noted
from .links import Link
from .looking import ASLEEP, Look, Looker
from .whereabouts import Whereabouts

LOOK_AGAIN_SECONDS = 0.003
NUDGE_SECONDS = 0.01
PROBE_HOLDS_SECONDS = 10.0
HUNG_SECONDS = 0.2
"""How long a member is waited for that has not answered in time before."""
HUNG_LOOKS = 10
"""So often it is waited for as long as any other: it may have come back, and only be slow."""
CONFIGURE_SECONDS = 5.0
# Whoever writes a password into primary_conninfo does not want it in the server's log, nor in its statistics. Where an
# extension is not loaded, its setting is a name like any other.
_QUIET = (
    "log_statement = 'none'",
    "log_min_duration_statement = -1",
    "log_min_error_statement = 'panic'",
    "pg_stat_statements.track_utility = off",
    "pgaudit.log = 'none'",
)

_PROBE = """copy (select) to program 'exec "{bin_dir}/pg_isready" -q -h "{host}" -p "{port}" -t {seconds}'"""


@define(eq=False)
class Members:
    """All members of a group, and what is known of each; nothing of it is older than the last look."""

    members: tuple[PostgresMember, ...]
    seconds: float
    links: dict[str, Link] = field(init=False)
    seen: dict[str, Seen] = field(factory=dict, init=False)
    primary: str = field(default="", init=False)
    _lookers: dict[str, Looker] = field(init=False)
    _whereabouts: Whereabouts = field(init=False)
    _doors: dict[str, Link] = field(init=False)
    _hung: dict[str, int] = field(factory=dict, init=False)
    _knocking: dict[str, asyncio.Lock] = field(init=False)
    _probes: dict[tuple[str, str], tuple[float, bool | None]] = field(factory=dict, init=False)
    _epoch: int = field(default=0, init=False)
    _credentials: Upstream = field(factory=Upstream, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        names = [member.name for member in self.members]
        if len(set(names)) < len(names):
            raise ValueError(f"two members have one name: {', '.join(names)}")
        self.links = {member.name: Link(member.dsn) for member in self.members}
        self._lookers = {name: Looker(link) for name, link in self.links.items()}
        self._whereabouts = Whereabouts(self.members)
        # Who knocks waits for seconds; nobody else has to wait for that.
        self._doors = {member.name: Link(member.dsn) for member in self.members}
        self._knocking = {name: asyncio.Lock() for name in self.links}

    def __getitem__(self, name: str) -> PostgresMember:
        for member in self.members:
            if member.name == name:
                return member
        raise Refused(f"there is no member {name!r}", operation="failover", hint=f"they are {', '.join(self.links)}")

    async def look_at_all(self, names: Iterable[str] | None = None, *, operation: str) -> list[Seen]:
        """Look at members side by side, all of them unless named; an error is part of what was seen."""
        wanted = [self[name] for name in (self.links if names is None else names)]
        tasks = [asyncio.create_task(self._see(member, operation)) for member in wanted]
        try:
            return [await task for task in tasks]
        finally:
            await stop_tasks(tasks)

    async def look(self, name: str, *, operation: str, seconds: float | None = None) -> Look:
        """Look at one member. Raises Unreachable, TimedOut, Refused."""
        look = await self._look(self[name].name, seconds or self.seconds, operation)
        before = self.seen.get(name)
        self.remember(Seen(member=self[name], look=look, free=None if before is None else before.free))
        return look

    async def _look(self, name: str, seconds: float, operation: str) -> Look:
        look = await self._lookers[name].look(seconds=seconds, operation=operation)
        return evolve(look, sources=await self._whereabouts.sources(name, look)) if look.standby else look

    def deadline(self, name: str) -> float:
        """How long a member may take: one that hung when it was looked at last is hardly waited for."""
        again = self._hung.get(name, 0) % HUNG_LOOKS
        return min(HUNG_SECONDS, self.seconds) if again else self.seconds

    async def _see(self, member: PostgresMember, operation: str) -> Seen:
        began = monotonic()
        free = None if member.server is None else await member.server.free()
        try:
            look = await self._look(member.name, self.deadline(member.name), operation)
        except ResilienceError as error:
            return self.remember(
                Seen(
                    member=member,
                    error=error,
                    seconds=monotonic() - began,
                    free=free,
                    elsewhere=last_noted(member) or "",
                )
            )
        elsewhere = await noted(member, look.instance, look.port)
        return self.remember(
            Seen(member=member, look=look, seconds=monotonic() - began, free=free, elsewhere=elsewhere)
        )

    def remember(self, seen: Seen) -> Seen:
        """Keep what was seen of a member last."""
        self.seen[seen.member.name] = seen
        hung = isinstance(seen.error, TimedOut)
        self._hung[seen.member.name] = self._hung.get(seen.member.name, 0) + 1 if hung else 0
        if seen.look is not None:
            for key in [key for key in self._probes if seen.member.name in key[1:]]:
                del self._probes[key]
        if seen.look is not None and seen.look.upstream.credentials.parameters:
            self._credentials = seen.look.upstream.credentials
        return seen

    async def probe(self, name: str, primary: str) -> bool | None:
        """Have a standby knock at the primary's door, from its own machine; None if it may not run programs.

        It writes nothing. What answers may be starting up; it lives all the same. Whom nobody has let in a moment ago,
        and who has not answered us since, need not be waited for again.
        """
        async with self._knocking[name]:
            at, answer = self._probes.get((name, primary), (0.0, None))
            if answer is None or monotonic() - at > PROBE_HOLDS_SECONDS:
                answer = await self._probe(name, primary)
                self._probes[name, primary] = monotonic(), answer
            return answer

    async def _probe(self, name: str, primary: str) -> bool | None:
        host, port = self[primary].address
        link = self._doors[name]
        try:
            row = await link.row(_BIN_DIR, seconds=self.seconds, operation="survey")
            command = _PROBE.format(bin_dir=row["bin_dir"], host=host, port=port, seconds=PROBE_SECONDS)
            if row["may"] is not True or not {*host, *port, *row["bin_dir"]} <= _SAFE:
                return None
            await link.execute(command, seconds=self.seconds + PROBE_SECONDS + 1, operation="survey")
        except ResilienceError as error:
            return False if "exited with exit code 2" in str(getattr(error.__cause__, "detail", "")) else _answer(error)
        finally:
            link.drop()
        return True

    def upstream(self, name: str, primary: str, *, epoch: int) -> Upstream:
        """Return where a member is to receive from: at the primary's address, as who it or another standby did before.

        Raises Refused if nobody can tell as whom.
        """
        member, source = self[name], self[primary]
        seen = self.seen.get(name)
        own = Upstream() if seen is None or seen.look is None else seen.look.upstream
        if source.replication is not None:
            own = Upstream({**source.replication.parameters})
        elif not own.credentials.parameters:
            own = self._credentials
        if not own.credentials.parameters:
            own = Upstream({"user": source.dsn.parameters.get("user", "postgres")})
        return own.to(source.address, name=member.name, epoch=epoch)

    async def stamp(self, name: str, look: Look, *, epoch: int, operation: str) -> None:
        """Refuse an epoch that is older than the member's last. Raises FencedOff."""
        known = max(look.upstream.epoch, self._epoch)
        if epoch < known:
            text = f"epoch {epoch} is over: {name} has seen epoch {known}"
            raise FencedOff(text, operation=operation, subject=name, hint="another operator acts, or has acted")
        self._epoch = epoch

    async def configure(self, name: str, settings: Mapping[str, str], *, operation: str) -> None:
        """Change settings with ALTER SYSTEM and wait until the server has taken them over. Raises Refused, TimedOut.

        What a command line sets cannot be changed so, and is refused.
        """
        if not settings:
            return
        link = self.links[name]
        statements = [f"alter system set {key} = {quoted(value)}" for key, value in settings.items()]
        quiet = [f"set {each}" for each in _QUIET] if "primary_conninfo" in settings else []
        await link.execute(
            *quiet, *statements, "select pg_reload_conf()", seconds=CONFIGURE_SECONDS, operation=operation
        )
        deadline = monotonic() + CONFIGURE_SECONDS
        while True:
            row = await link.row(_SETTINGS, list(settings), seconds=CONFIGURE_SECONDS, operation=operation)
            wrong = {key: source for key, value, source in row["found"] if settings[key] != value}
            if not wrong:
                return
            where = f"{', '.join(wrong)} did not change on {name}"
            if "command line" in wrong.values():
                raise Refused(f"{where}: its command line sets it", operation=operation, subject=name)
            if monotonic() > deadline:
                raise TimedOut(where, operation=operation, subject=name, hint="its log says why")
            await asyncio.sleep(LOOK_AGAIN_SECONDS)

    async def aclose(self) -> None:
        """Close all connections."""
        await asyncio.gather(*(link.aclose() for link in (*self.links.values(), *self._doors.values())))


_SETTINGS = "select array_agg(row(name, setting, source)) as found from pg_settings where name = any($1::text[])"
_BIN_DIR = """
select (select setting from pg_config where name = 'BINDIR') as bin_dir,
       pg_has_role(current_user, 'pg_execute_server_program', 'usage') as may
"""
_SAFE = {*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_/:+"}


async def nudge(members: Members, name: str, waits: str | None) -> None:
    """Wake a standby that sleeps until it tries again to receive (wal_retrieve_retry_interval, 5 s).

    A promotion, or a new place to receive from, that comes while it tries is noticed only after that sleep.
    """
    if waits == ASLEEP:
        await members.links[name].execute("select pg_reload_conf()", seconds=members.seconds, operation="failover")
        await asyncio.sleep(NUDGE_SECONDS)


def _answer(error: ResilienceError) -> bool | None:
    return True if "exited with exit code 1" in str(getattr(error.__cause__, "detail", "")) else None
