"""A backup and the log after it come back to what was asked for: everything up to there, and nothing after it."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from attrs import define, field

from resilience import Archive, Event, Manifest, restore
from resilience.model.errors import NotRecoverable
from resilience.model.targets import RecoveryTarget
from resilience.postgres import PostgresDataDirectory
from resilience.postgres.lsn import parse_lsn
from resilience.stores import MemoryStore
from resilience.testing.postgres import TestServer, owned_folder, running_server, starts

from .archived import MICROSECOND, SETTINGS, archive_wal, back_up, insert, rows

HOUR = timedelta(hours=1)
NAME = "before 'the' \\ mistake %f"


@define
class Story:
    """What happened to a server, row by row, and the archive that knows it: a backup, or `twice`, and the log."""

    server: TestServer
    twice: bool
    archive: Archive = field(factory=lambda: Archive(MemoryStore(), object_size=1 << 20))
    moments: list[datetime] = field(factory=list)
    manifests: list[Manifest] = field(factory=list)
    lsn: str = ""
    xid: int = 0

    async def happen(self) -> None:
        server = self.server
        server.psql("create table rows (id int primary key)")
        await self._insert(0)
        self.manifests.append(await back_up(server, self.archive))
        await self._insert(1)
        server.psql(f"select pg_create_restore_point($${NAME}$$)")
        await self._insert(2)
        self.lsn = server.psql("select pg_current_wal_insert_lsn()")
        await self._insert(3)
        self.xid = int(server.psql("insert into rows values (4) returning pg_current_xact_id()"))
        self.moments.append(self.moments[-1])
        if self.twice:
            self.manifests.append(await back_up(server, self.archive))
        await self._insert(5)
        server.psql("checkpoint")
        await archive_wal(server, self.archive, self.manifests[0])

    async def _insert(self, row: int) -> None:
        self.moments.append(insert(self.server, row))


Tell = Callable[[int], Awaitable[Story]]


@pytest.fixture(scope="module")
def story_of(session_folder: Path, postgres_bin: Callable[[int], Path]) -> Tell:
    """`story_of(16)` is what happened to a PostgreSQL 16 that is gone by now."""
    told: dict[int, Story] = {}

    async def story(major: int) -> Story:
        if major not in told:
            folder = owned_folder(Path(tempfile.mkdtemp(prefix=f"story-{major}-", dir=session_folder)))
            with running_server(folder, postgres_bin(major), settings={**SETTINGS, "fsync": "off"}) as server:
                told[major] = Story(server, twice=major == 17)
                await told[major].happen()
        return told[major]

    return story


@pytest.mark.parametrize("major", [15, 16, 17, 18])
async def test_a_restore_to_a_moment_has_what_was_committed_by_then(
    story_of: Tell, tmp_owned: Path, major: int
) -> None:
    story = await story_of(major)
    into = PostgresDataDirectory(tmp_owned / "data", bin_dir=story.server.bin_dir)
    report = await restore(story.archive, "orders", into=into, until=story.moments[2])
    assert await rows(into) == [0, 1, 2]
    assert report.reached.time == story.moments[2]
    assert report.reached.position.branch == "1"
    assert not (tmp_owned / "data/pg_wal/resilience").exists()


@pytest.mark.parametrize(
    ("until", "wanted"),
    [
        (lambda story: RecoveryTarget.time(story.moments[2] - MICROSECOND), [0, 1]),
        (lambda story: RecoveryTarget.time(story.moments[3]), [0, 1, 2, 3]),
        (lambda story: RecoveryTarget.time(story.moments[5] + MICROSECOND), [0, 1, 2, 3, 4, 5]),
        (lambda story: RecoveryTarget.lsn(story.lsn), [0, 1, 2]),
        (lambda story: RecoveryTarget.name(NAME, base=story.manifests[0].id), [0, 1]),
        (lambda story: RecoveryTarget.xid(story.xid), [0, 1, 2, 3, 4]),
        (lambda story: RecoveryTarget.backup(story.manifests[0].id), [0]),
        (lambda _: RecoveryTarget.latest(), [0, 1, 2, 3, 4, 5]),
    ],
    ids=["just before", "between backups", "after the last", "lsn", "name", "xid", "backup", "latest"],
)
async def test_every_kind_of_target_is_met_exactly(
    story_of: Tell,
    tmp_owned: Path,
    until: Callable[[Story], RecoveryTarget],
    wanted: list[int],
) -> None:
    story = await story_of(17)
    target = until(story)
    into = PostgresDataDirectory(tmp_owned / "data", bin_dir=story.server.bin_dir)
    report = await restore(story.archive, "orders", into=into, until=target)
    assert await rows(into) == wanted
    if target.offset is not None:
        assert report.reached.position.offset >= parse_lsn(story.lsn)


@pytest.mark.parametrize(
    ("until", "reason"),
    [
        (lambda _: RecoveryTarget.name(NAME), "no restore point .* lies between.*older one with base="),
        (lambda _: RecoveryTarget.name("never"), "no restore point 'never' lies between"),
        (
            lambda story: RecoveryTarget.xid(story.xid, base=story.manifests[1].id),
            "neither commits nor aborts between.*with base=",
        ),
        (lambda story: RecoveryTarget.time(story.moments[5] + HOUR), "lies beyond what the archive holds"),
    ],
    ids=["name in an older backup", "no such name", "xid in an older backup", "the future"],
)
async def test_a_target_that_is_not_in_the_log_is_never_replaced_by_another(
    story_of: Tell, tmp_owned: Path, until: Callable[[Story], RecoveryTarget], reason: str
) -> None:
    story = await story_of(17)
    into = PostgresDataDirectory(tmp_owned / "data", bin_dir=story.server.bin_dir)
    with pytest.raises(NotRecoverable, match=reason):
        await restore(story.archive, "orders", into=into, until=until(story))
    assert not starts(tmp_owned / "data", story.server.bin_dir)
    await into.discard()
    assert not into.path.exists() or list(into.path.iterdir()) == []


async def test_a_replay_tells_how_far_it_has_come(story_of: Tell, tmp_owned: Path) -> None:
    story = await story_of(17)
    events: list[Event] = []
    into = PostgresDataDirectory(tmp_owned / "data", bin_dir=story.server.bin_dir)
    report = await restore(story.archive, "orders", into=into, observer=events.append)
    replaying = [event.text for event in events if " on 1" in event.text]
    assert replaying and str(report.reached.position) in replaying[-1]
