"""Where a standby receives from (primary_conninfo, PostgreSQL 20.6.3): pointed elsewhere, frozen, and back. Pure.

A frozen standby keeps all it needs to connect, and an address that no machine can have: nothing is lost if whoever has
frozen it dies. It also keeps the epoch in which that happened, in a parameter that has no effect beside an
application_name: whoever comes with an older one sees it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

import psycopg
from attrs import frozen
from psycopg import conninfo

NOWHERE = "255.255.255.255"
"""The broadcast address: connecting to it by TCP fails at once, on this machine (RFC 919, connect(2) ENETUNREACH)."""
_PLACE = ("host", "hostaddr", "port")
_EPOCH = re.compile(r"resilience epoch ([0-9]{1,18})")
_FALLBACK = "fallback_application_name"


@frozen
class Upstream:
    """The parameters of a primary_conninfo; passwords among them, so it does not show them."""

    parameters: Mapping[str, str] = MappingProxyType({})

    @classmethod
    def parse(cls, text: str) -> Upstream:
        """Read a primary_conninfo; one that cannot be read is none."""
        try:
            return cls({key: str(value) for key, value in conninfo.conninfo_to_dict(text).items() if value})
        except psycopg.ProgrammingError:
            return cls()

    def __repr__(self) -> str:
        return f"Upstream{self.places}"

    def text(self) -> str:
        """Write it as the setting's value."""
        return conninfo.make_conninfo("", **self.parameters)

    @property
    def places(self) -> tuple[tuple[str, str], ...]:
        """All hosts and ports, by name and by address, also while it is frozen; libpq tries one after the other."""
        ports = self.parameters.get("port", "5432").split(",")
        found: list[tuple[str, str]] = []
        for hosts in (self.parameters.get(key, "").split(",") for key in ("host", "hostaddr")):
            found += zip(hosts, ports * len(hosts) if len(ports) == 1 else ports, strict=False)
        return tuple((host, port or "5432") for host, port in found if host and host != NOWHERE)

    @property
    def frozen(self) -> bool:
        """Whether it leads nowhere."""
        return self.parameters.get("hostaddr", "").startswith(NOWHERE)

    @property
    def epoch(self) -> int:
        """The last epoch that wrote it, 0 if none has."""
        found = _EPOCH.fullmatch(self.parameters.get(_FALLBACK, ""))
        return int(found[1]) if found else 0

    @property
    def credentials(self) -> Upstream:
        """Who connects and how, without a place, a name and an epoch."""
        left_out = {*_PLACE, "application_name", _FALLBACK, "dbname", "replication"}
        return Upstream({key: value for key, value in self.parameters.items() if key not in left_out})

    def to_nowhere(self, *, epoch: int) -> Upstream:
        """Return it frozen."""
        places = self.parameters.get("host", "").count(",") + 1
        host = self.parameters.get("host") or self.parameters.get("hostaddr")
        kept = {**self.parameters, "hostaddr": ",".join([NOWHERE] * places), _FALLBACK: f"resilience epoch {epoch}"}
        return Upstream({**kept, "host": host} if host else kept)

    def to(self, place: tuple[str, str], *, name: str, epoch: int) -> Upstream:
        """Return it pointed at a server, for the standby of that name."""
        kept = {key: value for key, value in self.parameters.items() if key not in _PLACE}
        host, port = place
        return Upstream(
            {**kept, "host": host, "port": port, "application_name": name, _FALLBACK: f"resilience epoch {epoch}"}
        )


def quoted(text: str) -> str:
    """Quote a value for SQL."""
    return (
        "E'" + text.replace("\\", "\\\\").replace("'", "''") + "'"
        if "\\" in text
        else "'" + text.replace("'", "''") + "'"
    )
