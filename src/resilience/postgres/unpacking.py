"""From stored base backups to the files of a data directory, everything durable, pg_control last."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define, field

from resilience.concurrency import in_thread
from resilience.folders import write_durably
from resilience.model.errors import Corrupt, Refused, StorageFailed
from resilience.model.manifests import Manifest
from resilience.primitives import StoredBackup

from . import server_manifest
from .combining import Combination
from .mark import MARK, Mark
from .places import Places
from .tools import Tools
from .untar import PG_CONTROL, FileSystems, Untar, walk

# A backup of a standby says that it is one: started, it would wait for a primary instead of ending recovery. And a mark
# in a backup is not ours.
_LEFT_OUT = ("standby.signal", MARK)


@define
class Unpacking:
    """Fills the folders of one restore, behind its mark."""

    places: Places
    mark: Mark
    tools: Tools = field(factory=Tools)
    _file_systems: FileSystems = field(factory=FileSystems, init=False)

    async def unpack(self, chain: Sequence[StoredBackup]) -> None:
        """Write everything, of one backup or of a chain; the mark stands from first to last, and stays.

        Raises StorageFailed (disk full, and the like) and Corrupt; Refused, before anything is written, if the chain is
        not whole.
        """
        _refuse_loose_ends([backup.manifest for backup in chain])
        try:
            await in_thread(self._begin)
            if len(chain) == 1:
                await self._unpack(chain[0])
            else:
                combination = Combination(self.places, self.tools, _LEFT_OUT)
                await combination.make(chain)
                await in_thread(self._finish, combination.pg_control, combination.mode)
        except OSError as error:
            where = str(self.places.data)
            what = f"{error.strerror}: {error.filename or where}"
            raise StorageFailed(what, operation="restore", subject=where) from error
        finally:
            self._file_systems.close()

    async def _unpack(self, backup: StoredBackup) -> None:
        places = self.places
        manifest, unpacked = b"", None
        for part in backup.manifest.parts:
            if part.name == server_manifest.NAME:
                manifest = await _whole(backup, part.name)
                continue
            untar = Untar(
                root=places.root(part.name), account=places.account, locations=places.locations, leave_out=_LEFT_OUT
            )
            try:
                await walk(backup, part.name, untar)
            finally:
                untar.close()
            unpacked = untar if untar.pg_control else unpacked
        if unpacked is None:
            raise Corrupt(f"the backup holds no {PG_CONTROL}", operation="restore", subject=str(places.data))
        await in_thread(self._finish, unpacked.pg_control, unpacked.mode, manifest)

    def _begin(self) -> None:
        for folder in self.places.folders:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
            self.places.own(folder)
        self.mark.set(self.places.folders)
        self._file_systems.open(self.places.folders)

    def _finish(self, control: bytes, mode: int, manifest: bytes = b"") -> None:
        data, account = self.places.data, self.places.account
        # initdb gives all folders of a cluster one mode; with group access it is 0750 (initdb -g).
        data.chmod((data / "global").stat().st_mode & 0o777)
        if manifest:
            write_durably(data / server_manifest.NAME, manifest, account, mode=mode)
        write_durably(data / "recovery.signal", b"", account, mode=mode)
        self.mark.guard()
        self._file_systems.sync()
        write_durably(data / PG_CONTROL, control, account, mode=mode)


def _refuse_loose_ends(chain: Sequence[Manifest]) -> None:
    """An incremental backup without all that it builds on would be unpacked to stubs of files."""
    for parent, manifest in zip([None, *chain], chain, strict=False):
        if manifest.parent != (parent and parent.id):
            raise Refused(
                f"{manifest.id} builds on {manifest.parent or 'nothing'}, here it would follow {parent and parent.id}",
                operation="restore",
                subject=manifest.target,
                hint="hand over the whole chain, oldest first",
            )


async def _whole(backup: StoredBackup, part: str) -> bytes:
    async with backup.read(part) as chunks:
        return b"".join([chunk async for chunk in chunks])
