"""How other people's code uses the public names. Never run: mypy checks that the types say what they should."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from pathlib import Path
from typing import assert_type

from resilience import (
    Archive,
    Archiver,
    BackupReport,
    BackupTarget,
    Coverage,
    Event,
    Finding,
    Level,
    Manifest,
    ObjectStore,
    Observer,
    Position,
    RecoveryPoint,
    RecoveryTarget,
    ResilienceError,
    RestorableMoment,
    RestoreDestination,
    RestorePlan,
    RestoreReport,
    Validator,
    Verdict,
    __version__,
    backup,
    coverage,
    plan_restore,
    restore,
    verify,
)
from resilience.errors import NoBackup
from resilience.postgres import (
    PostgresBackupValidator,
    PostgresDataDirectory,
    PostgresDumpTarget,
    PostgresDumpValidator,
    PostgresScratch,
    PostgresServer,
    PostgresTarget,
)
from resilience.primitives import Chunks, ObjectInfo, StoredBackup
from resilience.progress import ProgressBar
from resilience.stores import LocalStore, MemoryStore


async def back_up_and_prove(dsn: str, bin_dir: Path) -> None:
    """A backup, its report, everything that can be proven about it."""
    archive = Archive(LocalStore("backups"), compression=3, workers=2)
    with ProgressBar() as bar:
        report = await backup(PostgresTarget("orders", dsn=dsn, keep_damaged=True), archive, observer=bar)
    assert_type(report, BackupReport)
    assert_type(report.manifest, Manifest)
    assert_type(report.ratio, float)
    assert_type(report.findings, tuple[Finding, ...])
    assert_type(report.to_json(), str)

    verdict = await verify(
        archive,
        report.manifest,
        validators=[PostgresBackupValidator(at_least=100 << 20)],
        scratch=PostgresScratch(bin_dir=bin_dir, within="/srv", owner="postgres"),
    )
    assert_type(verdict, Verdict)
    assert_type(verdict.level, Level | None)
    if verdict.level is not None and verdict.level >= Level.STARTS:
        assert_type(__version__, str)


async def bring_back(path: str, archive: Archive) -> RecoveryPoint | None:
    """A restore, what it reached, and the server that runs on it."""
    destination = PostgresDataDirectory(
        path, bin_dir="/usr/bin", tablespaces={"/srv/fast": Path("/srv/faster")}, owner="postgres", leave="running"
    )
    try:
        report = await restore(
            archive, "orders", into=destination, until=RecoveryTarget.backup("20261121T203000.000Z-3f9a1c")
        )
    except NoBackup as error:
        assert_type(error.hint, str)
        return None
    except ResilienceError:
        await destination.discard()
        raise
    assert_type(report, RestoreReport)
    async with destination.live() as live:
        assert_type(live.dsn, str)
    return report.reached


async def copy_logically(dsn: str, other: str, archive: Archive) -> RestoreReport:
    """A logical backup of some databases, read through, and brought into another server."""
    target = PostgresDumpTarget("orders-logical", dsn=dsn, databases=["orders"], bin_dir="/usr/bin")
    report = await backup(target, archive)
    await verify(archive, report.manifest, validators=[PostgresDumpValidator(bin_dir="/usr/bin")])
    server = PostgresServer(dsn=other, bin_dir="/usr/bin", jobs=4, replace=True, tablespaces=False)
    return await restore(archive, "orders-logical", into=server)


async def list_what_there_is(archive: Archive) -> None:
    """The catalogue, and the moments one can come back to."""
    for target in await archive.targets():
        async for manifest in archive.manifests(target):
            assert_type(manifest, Manifest)
        covered = await coverage(archive, target)
        assert_type(covered, Coverage)
        for each in covered.ranges:
            assert_type(each.begins, RecoveryPoint)
            assert_type(each.ends.time, datetime | None)
        for hole in covered.holes:
            assert_type(hole.reason, str)
        for moment in covered.moments:
            assert_type(moment, RestorableMoment)
            assert_type(moment.point.position, Position)


async def bring_back_a_moment(archive: Archive, moment: datetime) -> RestoreReport:
    """What a restore would do and how long it takes, then the restore."""
    into = PostgresDataDirectory("data", bin_dir="/usr/bin")
    plan = await plan_restore(archive, "orders", into=into, until=moment, rto=timedelta(hours=2))
    assert_type(plan, RestorePlan)
    assert_type(plan.seconds, float | None)
    assert_type(plan.arithmetic, tuple[str, ...])
    report = await restore(archive, "orders", into=into, until=RecoveryTarget.lsn("16/B374D848", timeline="2"))
    assert_type(report.until, RecoveryTarget)
    return await restore(archive, "orders", into=into, until=moment)


def observe(event: Event) -> None:
    """Any callable that takes an event is an observer."""
    assert_type(event.total, int | None)


class GrowingStore:
    """A store of one's own: no base class is needed, and one around another is a few lines."""

    def __init__(self, inner: ObjectStore) -> None:
        self.inner = inner

    async def put(self, key: str, chunks: Chunks) -> ObjectInfo:
        """Store as the inner one does."""
        return await self.inner.put(key, chunks)

    def get(self, key: str, *, offset: int = 0) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Read as the inner one does."""
        return self.inner.get(key, offset=offset)

    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """List what the inner one has."""
        return self.inner.list(prefix)

    async def stat(self, key: str) -> ObjectInfo | None:
        """Look as the inner one does."""
        return await self.inner.stat(key)

    async def delete(self, key: str) -> None:
        """Refuse: this store only grows."""
        raise PermissionError(key)


class LargeEnough:
    """A validator of one's own: an attribute for the level, one method."""

    level = Level.PARSES

    async def check(self, subject: StoredBackup) -> Verdict:
        """Check the size alone."""
        passed = subject.manifest.size > 1 << 20
        return Verdict(subject=subject.manifest.id, passed=passed, level=self.level if passed else None)


# What the library ships, and what one writes oneself, is what the Protocols ask for.
an_observer: Observer = observe
stores: list[ObjectStore] = [LocalStore("backups"), MemoryStore(), GrowingStore(MemoryStore())]
archiver: Archiver = Archive(stores[0])
targets: list[BackupTarget] = [PostgresTarget("orders", dsn="host=db"), PostgresDumpTarget("orders", dsn="host=db")]
validators: list[Validator[StoredBackup]] = [PostgresBackupValidator(), PostgresDumpValidator(), LargeEnough()]
destinations: list[RestoreDestination[object]] = [
    PostgresDataDirectory("data"),
    PostgresServer(dsn="host=db"),
    PostgresScratch(),
]
