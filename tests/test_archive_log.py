"""The log of an archive keeps what `Log` promises, over every store, and is found by few lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from resilience import Archive
from resilience.archive.log import ArchiveLog
from resilience.model.log import LogEntry
from resilience.primitives import Archiver
from resilience.stores import LocalStore, MemoryStore
from resilience.testing.faults import change, flipped
from resilience.testing.logs import LogSuite, opened

from .faults import small_archive


class TestLogInMemory(LogSuite):
    @pytest.fixture
    def archive(self) -> Archiver:
        return small_archive(MemoryStore())

    def again(self, archive: Archiver) -> Archiver:
        assert isinstance(archive, Archive)
        return small_archive(archive.store)

    async def damage(self, archive: Archiver, entry: LogEntry) -> str:
        async with opened(archive) as log:
            key = key_of(log, entry)
            assert isinstance(log, ArchiveLog)
            await change(log.store, key, flipped(-1))
        return key


class TestLogInADirectory(TestLogInMemory):
    cancel_step = 17

    @pytest.fixture
    def archive(self, tmp_path: Path) -> Archiver:
        return small_archive(LocalStore(tmp_path))


def key_of(log: object, entry: LogEntry) -> str:
    assert isinstance(log, ArchiveLog)
    return log._key_of_entry(entry)
