"""A sealed archive keeps what `Archiver` and `Log` promise, and gives nothing to who has no key."""

from __future__ import annotations

from pathlib import Path

import pytest

from resilience import Archive
from resilience.keys import KeyFile
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


class TestSealedLog(LogInMemory):
    @pytest.fixture
    def archive(self, key: KeyFile) -> Archiver:
        return small_archive(MemoryStore(), key=key)

    def again(self, archive: Archiver) -> Archiver:
        assert isinstance(archive, Archive)
        return small_archive(archive.store, key=archive.key)
