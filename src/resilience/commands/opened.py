"""What every command begins with: the cluster looked at, its log opened, and a log of another cluster refused."""

from __future__ import annotations

import os
import pwd
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from attrs import frozen

from resilience.concurrency import closing, in_thread
from resilience.model.errors import Refused, StorageFailed
from resilience.model.findings import Doubt
from resilience.postgres.wal.header import PG_CONTROL, Control, read_control
from resilience.postgres.wal.source import WalSource
from resilience.postgres.wal.spool import Spool
from resilience.primitives import Archiver, Log

from .config import WalConfig
from .keeping import keeping

SYSTEM = "postgresql"
_MOUNTED = "see whether it is mounted"


@frozen(kw_only=True)
class Opened:
    """The log of one cluster, and where that cluster is; `config` is one that was located."""

    config: WalConfig
    control: Control
    archiver: Archiver
    log: Log
    spool: Spool
    folder: tuple[int, int] | None

    def still_there(self) -> None:
        """Raise StorageFailed if the archive's folder is not the one it was: what is written now is elsewhere."""
        if self.moved:
            where = str(self.config.directory)
            raise StorageFailed("the archive is no longer there", operation="push", subject=where, hint=_MOUNTED)

    @property
    def moved(self) -> bool:
        """Whether the archive's folder is another than when it was opened, or none: it was moved or unmounted."""
        directory = self.config.directory
        return directory is not None and folder_identity(directory) != self.folder

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Raise Refused, with what to do, where the archive is denied to us because another account wrote it."""
        try:
            yield
        except StorageFailed as error:
            whose = _owner_of_denied(error.__cause__, self.config.directory)
            if whose is None:
                raise
            owner, ours = _account(whose), _account(os.geteuid())
            raise Refused(
                f"{error.what}; it belongs to the account {owner}, and this runs as {ours}",
                operation=error.operation,
                subject=error.subject,
                hint="let the server's account take the backups too, and give it what is there already: "
                f"chown -R {ours} {self.config.directory}",
            ) from error

    @property
    def source(self) -> WalSource:
        """What recovery may ask for."""
        return WalSource(self.log, self.control.segment_size)

    async def known(self) -> bool:
        """Tell whether the archive has a log of this cluster at all; one that is not mounted has none."""
        return self.control.lineage in await self.archiver.lineages(self.config.target)

    async def may_write(self) -> None:
        """Raise Refused if what the name stands for in the archive is of another cluster, or no longer there."""
        target, lineage = self.config.target, self.control.lineage
        lineages = await self.archiver.lineages(target)
        if lineage in lineages:
            return
        others = set(lineages or await self._backed_up()) - {lineage}
        if others and self.config.lineage is None:
            raise Refused(
                f"the archive has cluster {', '.join(sorted(others))} under this name, this is cluster {lineage}",
                operation="push",
                subject=target,
                hint=f'give it a target of its own; or, if it is the successor, write lineage = "{lineage}"',
            )
        if await in_thread(self._begun.exists):
            raise Refused(
                "the archive has nothing of this cluster, although it was archived there before",
                operation="push",
                subject=target,
                hint=f"see whether it is mounted; if it was emptied on purpose, remove {self._begun}",
            )

    async def begun(self) -> None:
        """Remember that something was archived: an archive that is empty later is not the same one."""
        await in_thread(self._begun.touch)

    @property
    def _begun(self) -> Path:
        return self.spool.folder / f".archived-{self.control.lineage}"

    async def _backed_up(self) -> tuple[str, ...]:
        doubts: list[Doubt] = []  # a damaged manifest is no reason to archive nothing any more
        async with closing(self.archiver.manifests(self.config.target, doubts=doubts)) as manifests:
            return tuple({manifest.lineage async for manifest in manifests if manifest.system == SYSTEM})


@asynccontextmanager
async def opened(config: WalConfig) -> AsyncIterator[Opened]:
    """Open the log of the cluster that a configuration is for. Raises Refused, Unsupported, StorageFailed."""
    config = config.located()
    control = await in_thread(_control, config)
    if config.lineage not in (None, control.lineage):
        raise Refused(
            f"it names cluster {config.lineage}, the one in {config.data} is {control.lineage}",
            operation="read",
            subject=str(config.path),
        )
    spool = Spool(config.folder)
    await spool.prepare()
    folder = None if config.directory is None else folder_identity(config.directory)
    async with (
        keeping(config) as archiver,
        archiver.log(config.target, system=SYSTEM, lineage=control.lineage) as log,
    ):
        yield Opened(config=config, control=control, archiver=archiver, log=log, spool=spool, folder=folder)


def folder_identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a folder from another of the same name, mounted there or not; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _owner_of_denied(error: BaseException | None, directory: Path | None) -> int | None:
    """Return the other account that owns what the system denied us in an archive; None if it was something else."""
    if directory is None or not isinstance(error, PermissionError):
        return None
    path = Path(os.fsdecode(error.filename or directory))
    for each in (path, *path.parents):
        if each != directory and directory not in each.parents:
            return None
        try:
            owner = each.stat().st_uid
        except OSError:
            continue  # not there yet, or in a folder that is denied as well
        return owner if owner != os.geteuid() else None
    return None


def _account(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _control(config: WalConfig) -> Control:
    path = (config.data or config.path) / PG_CONTROL
    try:
        return read_control(path.read_bytes())
    except OSError as error:
        raise StorageFailed(f"it cannot be read: {error.strerror}", operation="read", subject=str(path)) from error
