"""One server of a group, as somebody names it who wants it to be failed over."""

from __future__ import annotations

from attrs import field, frozen

from resilience.model.ids import checked_name

from .client import Url, parse_redis_url
from .failover.server import LocalRedis


def _place(address: tuple[str, int] | None) -> tuple[str, int] | None:
    return None if address is None else (address[0], int(address[1]))


@frozen
class RedisMember:
    """One server of a group, which is called `name`.

    `url` reaches this very server as a user that may use INFO, ROLE, CONFIG, REPLICAOF, CLIENT and its own mark. Its
    replicas, its clients and the Sentinels reach it at the same host and port; `address` says otherwise (the server's
    replica-announce-ip and -port, for one). With `server` it runs on this machine and can be stopped and started from
    here.
    """

    name: str = field(converter=checked_name)
    url: Url = field(converter=parse_redis_url, kw_only=True)
    announced: tuple[str, int] | None = field(default=None, alias="address", converter=_place, kw_only=True)
    server: LocalRedis | None = field(default=None, kw_only=True)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that the others know it by."""
        return self.announced or self.url.address
