"""What one server of a group says about itself, in one round trip: read-only."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

from attrs import frozen

from resilience.redis.survey import Info

NOWHERE = ("127.0.0.1", 1)
"""Where a frozen replica is told to receive from: the loopback refuses it at once, and it stays a replica."""
SETTINGS = ("min-replicas-to-write", "min-replicas-max-lag", "proc-title-template")
TITLE = "{title} {listen-addr} {server-mode}"
"""proc-title-template as it is where nobody has set it (redis.conf, from 7.0 on)."""
UNNOTED = "it takes no note (proc-title-template: Redis 7.0 and newer, and CONFIG must be allowed)"
_STAMP = re.compile(r" resilience-(epoch|priority)=([0-9]+)")
_NONE = re.compile("0*")


@frozen(kw_only=True)
class Stamp:
    """What we leave on a server in the template of its process's title, where it changes nothing and anybody sees it.

    `epoch` is the newest that it has heard of. `priority` is its replica-priority as it was before we made it 0.
    """

    epoch: int = 0
    priority: int | None = None
    title: str = TITLE

    @classmethod
    def parse(cls, template: str) -> Stamp:
        """Read it from a template."""
        found = {name: int(number) for name, number in _STAMP.findall(template)}
        return cls(epoch=found.get("epoch", 0), priority=found.get("priority"), title=_STAMP.sub("", template) or TITLE)

    def __str__(self) -> str:
        kept = "" if self.priority is None else f" resilience-priority={self.priority}"
        return f"{self.title} resilience-epoch={self.epoch}{kept}"


@frozen(kw_only=True)
class Look:
    """One server as it was seen. `offset` is how far it has applied the history `replid`."""

    instance: str
    version: str
    master: bool
    now: datetime
    replid: str
    parent: str
    forked_at: int
    offset: int
    upstream: tuple[str, int] | None
    link: str
    silent: int | None
    priority: int
    loading: bool
    mode: str
    needed: int
    lag: int
    stamp: Stamp
    stampable: bool
    replicas: int

    @property
    def frozen(self) -> bool:
        """Whether it was told to receive from nobody."""
        return self.upstream == NOWHERE

    @property
    def receiving(self) -> bool:
        """Whether it receives now."""
        return not self.master and self.link == "up"


COMMANDS = (("INFO", "everything"), ("TIME",), *(("CONFIG", "GET", name) for name in SETTINGS))
"""What a server is asked; of these the last ones may be refused."""


def parsed(info: bytes, time: list[bytes], *settings: Any) -> Look:  # noqa: ANN401  # what CONFIG answers
    """Read the answers to `COMMANDS`."""
    said = Info.parse(info)
    known = [_setting(each) for each in settings]
    seconds, micros = (int(each) for each in time)
    host = said.text("master_host")
    master = said.master
    return Look(
        instance=said.text("run_id"),
        version=said.version,
        master=master,
        now=datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=micros),
        replid=said.text("master_replid"),
        parent="" if _NONE.fullmatch(said.text("master_replid2")) else said.text("master_replid2"),
        forked_at=said.number("second_repl_offset") - 1,
        offset=said.number("master_repl_offset" if master else "slave_repl_offset"),
        upstream=(host, said.number("master_port")) if host else None,
        link=said.text("master_link_status"),
        silent=_silent(said),
        priority=said.number("slave_priority") if said.text("slave_priority") else 100,
        loading=said.number("loading") > 0,
        mode=said.text("redis_mode"),
        needed=int(known[0] or 0),
        lag=int(known[1] or 0),
        stamp=Stamp.parse(known[2] or ""),
        stampable=known[2] is not None,
        replicas=said.number("connected_slaves"),
    )


def _silent(said: Info) -> int | None:
    """Return for how many seconds its link has been down, or has carried nothing."""
    if said.text("master_link_status") == "up":
        return said.number("master_last_io_seconds_ago")
    return said.number("master_link_down_since_seconds") if said.text("master_link_down_since_seconds") else None


def _setting(answer: Any) -> str | None:  # noqa: ANN401
    return bytes(answer[1]).decode() if isinstance(answer, list) and len(answer) > 1 else None
