"""What a Redis server says about itself, to a user that may do no more than ask for INFO."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Literal

from attrs import frozen
from redis.asyncio import Redis

from resilience.model.facts import TargetFacts
from resilience.model.findings import Finding, blocker
from resilience.model.json import Json

from .client import Url, ask, commands

OLDEST = 6
SYSTEM = "redis"


@frozen
class Info:
    """The answer to INFO, as it is written there."""

    lines: Mapping[str, str]
    modules: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: bytes) -> Info:
        """Read `name:value` lines; there is one for each module."""
        pairs = [line.partition(":") for line in text.decode(errors="replace").splitlines() if ":" in line]
        modules = (value.partition("name=")[2].partition(",")[0] for name, _, value in pairs if name == "module")
        return cls({name: value for name, _, value in pairs}, tuple(modules))

    def text(self, name: str) -> str:
        """Return a value, empty if the server does not say it."""
        return self.lines.get(name, "")

    def number(self, name: str) -> int:
        """Return a whole number, 0 if the server does not say it."""
        value = self.lines.get(name, "")
        return int(value) if value.lstrip("-").isdecimal() else 0

    @property
    def product(self) -> Literal["redis", "valkey"]:
        """Which of the two it is."""
        return "valkey" if self.text("valkey_version") or self.text("server_name") == "valkey" else "redis"

    @property
    def version(self) -> str:
        """Its own version."""
        return self.text("valkey_version") or self.text("redis_version")

    @property
    def major(self) -> int:
        """The version of Redis that it is, or says it is like."""
        head = self.text("redis_version").partition(".")[0]
        return int(head) if head.isdecimal() else 0

    @property
    def mode(self) -> str:
        """How it runs: `standalone`, `cluster` or `sentinel`."""
        return self.text("server_mode") or self.text("redis_mode")

    @property
    def master(self) -> bool:
        """Whether it takes writes."""
        return self.text("role") == "master"

    @property
    def time(self) -> datetime | None:
        """What the server's clock says; None if it does not say (6.0)."""
        micros = self.number("server_time_usec")
        return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=micros) if micros else None

    @property
    def databases(self) -> dict[int, dict[str, int]]:
        """The keys of each database that has some, and how many of them expire."""
        found = {}
        for name, value in self.lines.items():
            if name.startswith("db") and name[2:].isdecimal():
                pairs = (each.partition("=") for each in value.split(","))
                numbers = {key: int(count) for key, _, count in pairs if count.isdecimal()}
                found[int(name[2:])] = {"keys": numbers.get("keys", 0), "expires": numbers.get("expires", 0)}
        return found

    @property
    def keys(self) -> int:
        """How many keys it holds, in all databases."""
        return sum(each["keys"] for each in self.databases.values())


async def survey(url: Url, *, target: str, kind: str, lineage: str) -> TargetFacts:
    """Survey a server for a backup of its memory; every obstacle becomes a finding."""
    async with commands(url, operation="survey") as client:
        info = await ask_info(client, "everything")
    databases: dict[str, Json] = {str(number): dict(each) for number, each in info.databases.items()}
    return TargetFacts(
        target=target,
        system=SYSTEM,
        kind=kind,
        lineage=lineage,
        branch=info.text("master_replid"),
        findings=tuple(obstacles(info, url.where)),
        details={
            "product": info.product,
            "version": info.version,
            "major": info.major,
            "role": info.text("role"),
            "mode": info.mode,
            "run_id": info.text("run_id"),
            "databases": databases,
            "used_memory": info.number("used_memory"),
            "modules": list(info.modules),
        },
    )


async def ask_info(client: Redis, section: str) -> Info:
    """Ask a server for a section of INFO; Redis 6 knows no list of them."""
    return Info.parse(await ask(client, "INFO", section))


def timeless(where: str) -> Finding:
    """Say why a replica's backup has a place in the history and no time."""
    text = "it is a replica: nobody knows until when it has what its master acknowledged, so the backup has no time"
    return Finding(severity="warning", subject=where, text=text, hint="back up the master where the time matters")


def obstacles(info: Info, where: str) -> list[Finding]:
    """Find what stands in the way of a backup through replication."""
    version, mode = info.version or "(unknown)", info.mode
    old = info.major < OLDEST and info.product == "redis"
    blockers = [
        (old, f"Redis {version} is not supported, {OLDEST} and newer are", "upgrade the server"),
        (mode == "sentinel", "it is a Sentinel, which holds no data", "name one of the servers that it watches"),
        (info.number("loading") > 0, "it is loading its data", "try again when it has finished"),
        (
            not info.master and info.text("master_link_status") != "up",
            "it is a replica that has lost its master, and gives nobody a snapshot until it has found it",
            "back up the master, or look why the link is down",
        ),
    ]
    findings = [blocker(where, text, hint) for wrong, text, hint in blockers if wrong]
    if mode == "cluster":
        text = "it is one shard of a cluster: this backup holds its slots only"
        findings.append(Finding(severity="warning", subject=where, text=text, hint="back up every master"))
    return findings
