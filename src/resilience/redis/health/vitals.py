"""What the doctor reads of a Redis server: INFO, and the settings that keep data if it may ask for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

from attrs import field, frozen
from redis.exceptions import NoPermissionError, ResponseError

from resilience.redis.client import Url, ask, commands
from resilience.redis.survey import Info, ask_info
from resilience.reference import REDIS_SETTINGS

ANSWER_SECONDS = 20.0
MORE = ("aof-load-truncated", "stop-writes-on-bgsave-error", "maxmemory-policy")


@frozen(kw_only=True)
class Vitals:
    """A server as it is now; `settings` is None where the user may not ask for them."""

    info: Info
    settings: Mapping[str, str] | None
    tls: bool
    local: bool
    looked_at: datetime

    @property
    def now(self) -> datetime:
        """The server's clock."""
        micros = self.info.number("server_time_usec")
        return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=micros) if micros else self.looked_at

    @property
    def skew(self) -> float:
        """Seconds by which its clock is ahead of ours."""
        return (self.now - self.looked_at).total_seconds()

    @property
    def saved(self) -> datetime | None:
        """When it last saved an RDB to its own disk."""
        seconds = self.info.number("rdb_last_save_time")
        return datetime.fromtimestamp(seconds, UTC) if seconds else None

    def text(self, name: str) -> str:
        """Return a setting, empty if it has none of that name."""
        return (self.settings or {}).get(name, "")


@frozen
class Rules:
    """When a server saves by itself (`save 900 1 300 10`): after so many seconds, if so many keys have changed."""

    rules: tuple[tuple[int, int], ...] = field(factory=tuple)

    @classmethod
    def parse(cls, text: str) -> Rules:
        """Read them as CONFIG GET writes them."""
        numbers = [int(word) for word in text.split() if word.isdecimal()]
        return cls(tuple(zip(numbers[::2], numbers[1::2], strict=False)))

    def at_least(self, wanted: Rules) -> bool:
        """Tell whether it saves at least as often as others would have it."""
        return all(any(s <= seconds and c <= changes for s, c in self.rules) for seconds, changes in wanted.rules)


async def look(url: Url, *, clock: Callable[[], datetime]) -> Vitals:
    """Ask the server. Raises Unreachable, TimedOut, or Refused if it lets nobody in; writes nothing."""
    async with commands(url, operation="diagnose", seconds=ANSWER_SECONDS) as client:
        info = await ask_info(client, "everything")
        looked_at = clock()
        settings: dict[str, str] = {}
        told = True
        try:
            for name in (*REDIS_SETTINGS, *MORE):  # several at once are for Redis 7 and newer only
                words = [word.decode(errors="replace") for word in await ask(client, "CONFIG", "GET", name)]
                settings.update(zip(words[::2], words[1::2], strict=True))
        except (NoPermissionError, ResponseError):
            told = False
    local = url.scheme == "unix" or url.address[0] in ("localhost", "127.0.0.1", "::1")
    return Vitals(
        info=info, settings=settings if told else None, tls=url.scheme == "rediss", local=local, looked_at=looked_at
    )
