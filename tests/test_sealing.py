"""A sealed archive keeps what `Archiver` and `Log` promise, and gives nothing to who has no key."""

from __future__ import annotations

from pathlib import Path

import pytest

from resilience import Archive
from resilience.archive import layout
from resilience.keys import KeyFile
from resilience.model.plans import BackupPlan
from resilience.primitives import Archiver
from resilience.stores import MemoryStore

from .faults import small_archive
from .test_archive import TestArchiveInMemory as ArchiveInMemory
from .test_archive import store_of
from .test_archive_log import TestLogInMemory as LogInMemory


@pytest.fixture
def key(tmp_path: Path) -> KeyFile:
    return KeyFile.create(tmp_path / "key")


class TestSealedArchive(ArchiveInMemory):
    @pytest.fixture
    def archive(self, key: KeyFile) -> Archiver:
        return small_archive(MemoryStore(), key=key)

    def again(self, archive: Archiver) -> Archiver:
        assert isinstance(archive, Archive)
        return small_archive(store_of(archive), key=archive.key)

    async def remains(self, archive: Archiver, of: BackupPlan) -> int:
        retired = layout.retired(of.system, of.target, of.id)
        record = await store_of(archive).stat(retired)
        return await super().remains(archive, of) - (record is not None)


class TestSealedLog(LogInMemory):
    @pytest.fixture
    def archive(self, key: KeyFile) -> Archiver:
        return small_archive(MemoryStore(), key=key)

    def again(self, archive: Archiver) -> Archiver:
        assert isinstance(archive, Archive)
        return small_archive(archive.store, key=archive.key)
