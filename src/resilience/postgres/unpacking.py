"""From a stored base backup to the files of a data directory, everything durable, pg_control last."""

from __future__ import annotations

import os

from attrs import define, field

from resilience.concurrency import each_in_thread, in_thread
from resilience.model.errors import Corrupt, StorageFailed
from resilience.primitives import StoredBackup
from resilience.streams.tar import TarWalker

from . import server_manifest
from .mark import MARK, Mark
from .places import Places
from .untar import PG_CONTROL, FileSystems, Untar, write_durably

# A backup of a standby says that it is one: started, it would wait for a primary instead of ending recovery. And a mark
# in a backup is not ours.
_LEFT_OUT = ("standby.signal", MARK)


@define
class Unpacking:
    """Fills the folders of one restore, behind its mark."""

    places: Places
    mark: Mark
    _file_systems: FileSystems = field(factory=FileSystems, init=False)

    async def unpack(self, backup: StoredBackup) -> None:
        """Write everything; the mark stands from first to last, and stays.

        Raises StorageFailed (disk full, and the like) and Corrupt.
        """
        try:
            await in_thread(self._begin)
            manifest, unpacked = b"", None
            for part in backup.manifest.parts:
                if part.name == server_manifest.NAME:
                    manifest = await _whole(backup, part.name)
                else:
                    untar = await self._untar(backup, part.name)
                    unpacked = untar if untar.pg_control else unpacked
            if unpacked is None:
                raise Corrupt(f"the backup holds no {PG_CONTROL}", operation="restore", subject=str(self.places.data))
            await in_thread(self._finish, unpacked, manifest)
        except OSError as error:
            where = str(self.places.data)
            what = f"{error.strerror}: {error.filename or where}"
            raise StorageFailed(what, operation="restore", subject=where) from error
        finally:
            self._file_systems.close()

    async def _untar(self, backup: StoredBackup, part: str) -> Untar:
        places = self.places
        untar = Untar(root=places.root(part), account=places.account, locations=places.locations, leave_out=_LEFT_OUT)
        walker = TarWalker(untar)
        try:
            async with backup.read(part) as chunks:
                await each_in_thread(chunks, walker.feed)
            walker.close()
        finally:
            untar.close()
        return untar

    def _begin(self) -> None:
        for folder in self.places.folders:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
            if self.places.account is not None and os.geteuid() == 0:
                os.chown(folder, self.places.account.uid, self.places.account.gid)
        self.mark.set(self.places.folders)
        self._file_systems.open(self.places.folders)

    def _finish(self, untar: Untar, manifest: bytes) -> None:
        data, account = self.places.data, self.places.account
        # initdb gives all folders of a cluster one mode; with group access it is 0750 (initdb -g).
        data.chmod((data / "global").stat().st_mode & 0o777)
        write_durably(data / server_manifest.NAME, manifest, account, mode=untar.mode)
        write_durably(data / "recovery.signal", b"", account, mode=untar.mode)
        self.mark.guard()
        self._file_systems.sync()
        write_durably(data / PG_CONTROL, untar.pg_control, account, mode=untar.mode)


async def _whole(backup: StoredBackup, part: str) -> bytes:
    async with backup.read(part) as chunks:
        return b"".join([chunk async for chunk in chunks])
