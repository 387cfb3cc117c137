"""The reference platform's policy, ready-made: what every number in the documents refers to."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, time, timedelta
from types import MappingProxyType

from .model.drills import Criterion, DrillSchedule, Window
from .model.loads import BackupLoad, Load
from .model.objectives import Objective, ReferenceSetting
from .model.prices import GB, MINIMUM_DAYS, Prices, TierPrice
from .model.retention import Keep, RetentionPolicy, RetentionRule, TierAt

POSTGRESQL = Objective(
    data="PostgreSQL (production)",
    rpo=timedelta(minutes=15),
    rto=timedelta(hours=2),
    overhead=timedelta(minutes=45),  # 15 detection, 15 decision, 15 validation
    every=timedelta(hours=1),
    full_every=timedelta(days=1),
    continuous=True,
    kept=timedelta(days=30),
    archived=timedelta(days=90),
    priority="critical",
)
"""The platform allots 15 + 15 + 90 + 15 minutes, which is more than its two hours: the recovery has 75 of them."""

WORKFLOWS = Objective(
    data="user workflow configuration (in PostgreSQL)",
    rpo=timedelta(minutes=15),
    rto=timedelta(hours=2),
    overhead=timedelta(minutes=45),
    continuous=True,
    kept=timedelta(days=30),
    archived=timedelta(days=90),
    priority="critical",
)

REDIS = Objective(
    data="Redis cache",
    rpo=timedelta(hours=1),
    rto=timedelta(minutes=30),
    every=timedelta(hours=1),  # an RDB, and the append-only file with it: each is whole, none is a log of the other
    kept=timedelta(days=7),
    priority="high",
)

MONGODB = Objective(
    data="MongoDB logs",
    rpo=timedelta(days=1),
    rto=timedelta(hours=4),
    every=timedelta(days=1),
    kept=timedelta(days=90),
    priority="medium",
)

BLOBS = Objective(
    data="Blob storage (files)",
    rpo=timedelta(hours=1),
    rto=timedelta(hours=1),
    continuous=True,  # geo-redundant storage; what is deleted can be had back for 30 days
    priority="critical",
)

ETCD = Objective(
    data="Kubernetes etcd",
    rpo=timedelta(hours=12),
    rto=timedelta(hours=4),
    every=timedelta(hours=6),
    kept=timedelta(days=7),
    priority="high",
)

APP_CONFIGURATION = Objective(
    data="App Configuration",
    rpo=timedelta(days=1),
    rto=timedelta(hours=1),
    every=timedelta(days=1),
    kept=timedelta(days=30),
    priority="medium",
)

OBJECTIVES: Mapping[str, Objective] = MappingProxyType(
    {
        "postgresql": POSTGRESQL,
        "workflows": WORKFLOWS,
        "redis": REDIS,
        "mongodb": MONGODB,
        "blobs": BLOBS,
        "etcd": ETCD,
        "app-configuration": APP_CONFIGURATION,
    }
)
"""Every kind of data of the platform; a system's own name is the key of what it holds."""

POSTGRESQL_SETTINGS: Mapping[str, ReferenceSetting] = MappingProxyType(
    {
        setting.name: setting
        for setting in (
            ReferenceSetting(
                name="wal_level", value="replica", why="with less there is no physical backup and no WAL to keep"
            ),
            ReferenceSetting(
                name="archive_timeout",
                value="900",
                why="how long a commit waits until archive_command gets its segment; streaming does not wait",
            ),
            ReferenceSetting(
                name="max_wal_senders", value="5", why="each standby, each archiver and each running backup needs one"
            ),
            ReferenceSetting(
                name="wal_keep_size", value="1GB", why="how far a reader of WAL without a slot may fall behind"
            ),
        )
    }
)
"""PostgreSQL's settings on the platform; what the platform does not set is PostgreSQL's own default."""

REDIS_SETTINGS: Mapping[str, ReferenceSetting] = MappingProxyType(
    {
        setting.name: setting
        for setting in (
            ReferenceSetting(name="save", value="900 1 300 10 60 10000", why="how often it saves, by what has changed"),
            ReferenceSetting(name="rdbchecksum", value="yes", why="without it damage of a saved file goes unnoticed"),
            ReferenceSetting(name="rdbcompression", value="yes", why="files and streams are several times smaller"),
            ReferenceSetting(name="appendonly", value="yes", why="what was written since the last save is kept"),
            ReferenceSetting(name="appendfsync", value="everysec", why="a crash of the machine loses a second or two"),
            ReferenceSetting(
                name="auto-aof-rewrite-percentage", value="100", why="the append-only file is at most twice as large"
            ),
            ReferenceSetting(
                name="auto-aof-rewrite-min-size", value="64mb", why="a small one is not rewritten over and over"
            ),
        )
    }
)
"""Redis's settings on the platform: what keeps its data over a restart."""

_DAY = timedelta(days=1)

TIERS = (TierAt(tier="hot"), TierAt(tier="cool", after=7 * _DAY), TierAt(tier="archive", after=30 * _DAY))
"""The platform's tiers by age: a week in Hot, to the end of the month in Cool, then in Archive until it goes."""

COLD = (TierAt(tier="cold"),)
"""The cheaper alternative for what is kept for 90 days: written to Cold at once, read back without waiting."""

LOAD = Load(
    backups=(
        BackupLoad(system="postgresql", kind="base", size=50 * GB, every=_DAY),
        BackupLoad(system="postgresql", kind="incremental", size=5 * GB, every=timedelta(hours=1)),
        BackupLoad(system="redis", kind="rdb", size=2 * GB, every=timedelta(hours=1)),
        BackupLoad(system="mongodb", kind="dump", size=10 * GB, every=_DAY),
    ),
)
"""What the platform writes, as it was counted: no log, nothing read, and no increment that needs its full backup."""

NINETY_DAYS = RetentionPolicy(
    rules=tuple(
        RetentionRule(system=each.system, kind=each.kind, keep=(Keep(lasting=90 * _DAY),), tiers=TIERS)
        for each in LOAD.backups
    )
)
"""What the platform's rules would do if they covered everything: all of it goes through TIERS and is kept 90 days."""


def _as_promised(system: str, kind: str, tiers: tuple[TierAt, ...]) -> RetentionRule:
    promised = OBJECTIVES[system]
    keep = () if promised.kept is None else (Keep(lasting=promised.kept + promised.archived),)
    return RetentionRule(system=system, kind=kind, keep=keep, tiers=tiers)


RETENTION = RetentionPolicy(
    rules=(
        *(_as_promised("postgresql", kind, TIERS) for kind in ("base", "incremental", "dump")),
        *(_as_promised("redis", kind, TIERS[:1]) for kind in ("rdb", "aof", "cluster")),
        _as_promised("mongodb", "dump", (TierAt(tier="cool"),)),
        _as_promised("etcd", "snapshot", TIERS[:1]),
        _as_promised("app-configuration", "snapshot", TIERS[:1]),
    )
)
"""What the platform keeps of every kind of data, as its objectives say: PostgreSQL 30 days and 90 archived."""

PRICES = Prices(
    name="the platform's prices",
    day=date(2025, 1, 1),
    region="East US",
    redundancy="LRS",
    source="the platform's own procedures, which name a price of storage for three tiers and nothing else",
    tiers=MappingProxyType(
        {
            "hot": TierPrice(storage=0.0184),
            "cool": TierPrice(storage=0.01, minimum=MINIMUM_DAYS["cool"] * _DAY),
            "archive": TierPrice(storage=0.002, minimum=MINIMUM_DAYS["archive"] * _DAY),
        }
    ),
)
"""What the platform calculated with; it left the minimum durations out, which `PRICES.at_rest` does too.

Its procedures date no price: the day stands for their year, and says no more than that.
"""

YEARLY_COST = 1500.0
"""Dollars: what keeping the backups may cost in a year."""

WORKING_HOURS = Window(days=(1, 2, 3), begins=time(9), ends=time(15))
"""Tuesday to Thursday, while those who can help are at work."""

WEEKEND_MORNING = Window(days=(5,), begins=time(6), ends=time(14))
"""Saturday, with a day in hand to put things right."""

DRILLS: Mapping[str, DrillSchedule] = MappingProxyType(
    {
        "pod": DrillSchedule(
            kind="pod",
            fault="a pod is deleted",
            every=30 * _DAY,
            window=WORKING_HOURS,
            participants=("DevOps",),
            criterion=Criterion(rto=timedelta(seconds=30)),
        ),
        "node": DrillSchedule(
            kind="node",
            fault="a node is drained",
            every=91 * _DAY,
            window=WORKING_HOURS,
            participants=("DevOps", "SRE"),
            criterion=Criterion(rto=timedelta(minutes=2)),
        ),
        "redis": DrillSchedule(
            kind="redis",
            fault="the master of the cache is killed",
            every=91 * _DAY,
            window=WORKING_HOURS,
            participants=("SRE", "DBA"),
            criterion=Criterion(rto=timedelta(seconds=10), rpo=timedelta(seconds=1)),
        ),
        "database": DrillSchedule(
            kind="database",
            fault="the primary is killed",
            every=182 * _DAY,
            window=WORKING_HOURS,
            participants=("DBA", "SRE", "DevOps", "manager"),
            told=("support",),
            criterion=Criterion(rto=timedelta(minutes=5)),
        ),
        "region": DrillSchedule(
            kind="region",
            fault="the primary region is cut off",
            every=365 * _DAY,
            window=WEEKEND_MORNING,
            participants=("DBA", "SRE", "DevOps", "support", "manager", "CTO"),
            told=("customers", "support"),
            criterion=Criterion(rto=timedelta(hours=4), rpo=timedelta(minutes=15)),
        ),
    }
)
"""What the platform drills, how often, and what it must come to; the hours and people are ours, for want of others."""
