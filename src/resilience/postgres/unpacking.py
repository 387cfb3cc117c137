"""From a stored base backup to the files of a data directory, everything durable, pg_control last."""

from __future__ import annotations

import os

from attrs import frozen

from resilience.concurrency import each_in_thread, in_thread
from resilience.model.errors import Corrupt, StorageFailed
from resilience.model.json import to_json
from resilience.primitives import StoredBackup
from resilience.streams.tar import TarWalker

from . import server_manifest
from .places import Places
from .untar import PG_CONTROL, Untar, sync_file_systems, write_durably

RESTORING = "resilience.restoring"


@frozen
class Unpacking:
    """Fills the folders of one restore."""

    places: Places

    async def unpack(self, backup: StoredBackup) -> None:
        """Write everything; a mark (`resilience.restoring`) stands in the data directory from first to last.

        Raises StorageFailed (disk full, and the like) and Corrupt. Until this returns no server can start there.
        """
        try:
            await in_thread(self._make_folders)
            pg_control = b""
            for part in backup.manifest.parts:
                if part.name == server_manifest.NAME:
                    data = await _whole(backup, part.name)
                    await in_thread(write_durably, self.places.data / part.name, data, self.places.account)
                else:
                    pg_control = await self._untar(backup, part.name) or pg_control
            if not pg_control:
                raise Corrupt(f"the backup holds no {PG_CONTROL}", operation="restore", subject=str(self.places.data))
            await in_thread(self._finish, pg_control)
        except OSError as error:
            where = str(self.places.data)
            what = f"{error.strerror}: {error.filename or where}"
            raise StorageFailed(what, operation="restore", subject=where) from error

    async def _untar(self, backup: StoredBackup, part: str) -> bytes:
        places = self.places
        untar = Untar(root=places.root(part), account=places.account, locations=places.locations)
        walker = TarWalker(untar)
        try:
            async with backup.read(part) as chunks:
                await each_in_thread(chunks, walker.feed)
            walker.close()
        finally:
            untar.close()
        return untar.pg_control

    def _make_folders(self) -> None:
        for folder in self.places.folders:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
            if self.places.account is not None and os.geteuid() == 0:
                os.chown(folder, self.places.account.uid, self.places.account.gid)
        mark = to_json([str(folder) for folder in self.places.folders])
        write_durably(self.places.data / RESTORING, mark, self.places.account)

    def _finish(self, pg_control: bytes) -> None:
        # initdb gives all folders of a cluster one mode; with group access it is 0750 (initdb -g).
        self.places.data.chmod((self.places.data / "global").stat().st_mode & 0o777)
        # A backup of a standby says that it is one: started, it would wait for a primary instead of ending recovery.
        (self.places.data / "standby.signal").unlink(missing_ok=True)
        # With recovery.signal, and without the settings that only `recover` gives, a server refuses to start.
        write_durably(self.places.data / "recovery.signal", b"", self.places.account)
        sync_file_systems(self.places.folders)
        write_durably(self.places.data / PG_CONTROL, pg_control, self.places.account)


async def _whole(backup: StoredBackup, part: str) -> bytes:
    async with backup.read(part) as chunks:
        return b"".join([chunk async for chunk in chunks])
