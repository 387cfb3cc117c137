"""The way of clients that know all servers of a group and look for the one that takes writes themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from attrs import field, frozen

from resilience.arrivals import arrive
from resilience.model.errors import RouteMoved, Unavailable
from resilience.model.failover import PhaseFloor
from resilience.model.findings import Finding, Severity
from resilience.model.groups import RouteFacts
from resilience.model.ids import checked_name
from resilience.model.show import as_span

from .addresses import Address, read_addresses
from .arrival import RETRY_SECONDS, Arrival, arrival
from .client import Dsn, parse_dsn

LOOK_SECONDS = 0.4
WRITERS = ("primary", "read-write")
SILENT_SECONDS = 127.0
"""How long Linux asks for a connection before it gives up (tcp_syn_retries 6), where nothing else is set."""


@frozen
class MultiHostRoute:
    """Clients whose connection string, `dsn`, names every member and has target_session_attrs (PostgreSQL 34.1.2).

    `members` says which of its hosts is which member: `{"a": "10.0.0.4:5432"}`. There is nothing to hold and nothing
    to change: a switch waits, `deadline` seconds at the most, until who connects like a client arrives at the member
    and has taken a write there. That clients which are connected already leave the old server is not its doing: a
    fence ends their connections, and `PrimaryGuard` keeps them from coming back to it.
    """

    name: str = field(converter=checked_name)
    dsn: Dsn = field(converter=parse_dsn, kw_only=True)
    members: Mapping[str, Address] = field(converter=read_addresses, kw_only=True)
    deadline: float = field(default=10.0, kw_only=True)

    @property
    def system(self) -> str:
        """What it is."""
        return "postgresql"

    async def survey(self) -> RouteFacts:
        """Connect as a client does. It writes nothing. Raises Refused; that nobody answers is a finding."""
        try:
            return self._facts(await arrival(self.dsn, operation="survey", seconds=LOOK_SECONDS))
        except Unavailable as error:
            silent = Finding(severity="warning", subject=self.name, text=f"nobody answers: {error.what}")
            return self._facts(None, silent)

    async def switch(self, to: str | None, *, expected: str) -> RouteFacts:
        """Wait until clients arrive at a member; holding them (None) does nothing.

        Raises RouteMoved, Refused, and TimedOut if they still arrive elsewhere, or nowhere, after `deadline`.
        """
        if to is None:
            return self._facts(None)
        if to not in self.members:
            raise ValueError(f"{self.name} knows no member {to!r}")
        if expected != self._version:
            text = "the connection string is not the one that this was decided with"
            raise RouteMoved(text, operation="switch", subject=self.name, hint="look at it again")

        async def reached() -> RouteFacts:
            return self._facts(await arrival(self.dsn, operation="switch", seconds=self.deadline, write=True))

        return await arrive(reached, to, route=self.name, deadline=self.deadline, pause=RETRY_SECONDS)

    async def floor(self) -> tuple[PhaseFloor, ...]:
        """Return how long clients ask hosts that do not answer any more, one after another."""
        given = self.dsn.parameters.get("connect_timeout", "")
        each = float(given) if given.isdecimal() and int(given) > 0 else SILENT_SECONDS
        others = len(self.dsn.addresses) - 1
        source = "connect_timeout" if each != SILENT_SECONDS else "as Linux does, there is no connect_timeout"
        why = f"{self.name}: a host that does not answer is asked for {as_span(each)} ({source}); one of {others + 1}"
        return (PhaseFloor(phase="reconnect", seconds=each if others else 0.0, why=why),)

    @property
    def _version(self) -> str:
        text = ",".join(f"{host}:{port}" for host, port in self.dsn.addresses)
        return hashlib.sha256(f"{text} {self._sessions}".encode()).hexdigest()[:16]

    @property
    def _sessions(self) -> str:
        return self.dsn.parameters.get("target_session_attrs", "any")

    def _member(self, reached: Arrival) -> str | None:
        at = Address(reached.host, reached.port)
        return next((name for name, address in self.members.items() if address == at), None)

    def _facts(self, reached: Arrival | None, *findings: Finding) -> RouteFacts:
        return RouteFacts(
            route=self.name,
            to=self._member(reached) if reached else None,
            version=self._version,
            follows=True,
            instance=reached.instance if reached else "",
            writable=reached.writable if reached else None,
            findings=(*self._remarks(), *findings),
            details={"hosts": [f"{host}:{port}" for host, port in self.dsn.addresses]},
        )

    def _remarks(self) -> list[Finding]:
        """Find what keeps clients from finding the new primary."""
        found: list[tuple[Severity, str, str]] = []
        if self._sessions not in WRITERS:
            text = f"clients take any server: target_session_attrs is {self._sessions}"
            found.append(("blocker", text, "set target_session_attrs=read-write in the clients' connection string"))
        hosts = {Address(host, port) for host, port in self.dsn.addresses}
        if absent := [name for name, address in self.members.items() if address not in hosts]:
            text = f"clients do not know {', '.join(absent)}"
            found.append(("blocker", text, "name every member's host in the clients' connection string"))
        if "connect_timeout" not in self.dsn.parameters:
            text = "clients wait for minutes for a host that is gone: there is no connect_timeout"
            found.append(("warning", text, "set connect_timeout=2 in the clients' connection string"))
        return [Finding(severity=how, subject=self.name, text=text, hint=hint) for how, text, hint in found]
