"""One server of a group, as somebody names it who wants it to be failed over."""

from __future__ import annotations

import re

from attrs import field, frozen

from resilience.model.ids import checked_name

from .client import Dsn, parse_dsn
from .failover.server import LocalServer


def _parsed(text: str | Dsn | None) -> Dsn | None:
    return None if text is None else parse_dsn(text)


@frozen
class PostgresMember:
    """One server of a group. `name` is its application_name as a standby, so synchronous_standby_names knows it.

    `dsn` reaches this very server (one host) as a superuser. Standbys connect to it at the same host and port, as who
    they were before; `replication` is a connection string that says otherwise. With `server` it runs on this machine
    and can be stopped, started, rewound and rebuilt from here.
    """

    name: str = field(converter=checked_name)
    dsn: Dsn = field(converter=parse_dsn, kw_only=True)
    replication: Dsn | None = field(default=None, converter=_parsed, kw_only=True)
    server: LocalServer | None = field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if len(self.dsn.addresses) > 1:
            raise ValueError(f"the dsn of member {self.name} names several hosts: name the one that it is")

    @property
    def address(self) -> tuple[str, str]:
        """Host and port that standbys receive from."""
        host, port = ((self.replication or self.dsn).addresses or [("localhost", 5432)])[0]
        return host, str(port)

    @property
    def slot(self) -> str:
        """The replication slot that a primary keeps for it; slots have fewer letters than names (PostgreSQL 26.2.6)."""
        return re.sub("[^a-z0-9_]", "_", self.name)
