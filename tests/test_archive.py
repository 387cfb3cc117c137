"""The archive keeps what `Archiver` promises, over every store, and refuses what is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from resilience import Archive
from resilience.archive import layout
from resilience.model.manifests import Manifest
from resilience.model.plans import BackupPlan
from resilience.primitives import Archiver, ObjectStore
from resilience.stores import LocalStore, MemoryStore
from resilience.testing.archivers import ArchiverSuite
from resilience.testing.faults import change, flipped
from resilience.testing.stores import listed, read

from .faults import small_archive


class TestArchiveInMemory(ArchiverSuite):
    @pytest.fixture
    def archive(self) -> Archiver:
        return small_archive(MemoryStore())

    def again(self, archive: Archiver) -> Archiver:
        return small_archive(store_of(archive))

    async def outcome(self, archive: Archiver, of: BackupPlan) -> str | None:
        store = store_of(archive)
        if await store.stat(layout.run(of.system, of.target, of.id, "started")) is None:
            return None
        key = layout.run(of.system, of.target, of.id, "ended")
        if await store.stat(key) is None:
            return "running"
        outcome: str = json.loads(await read(store, key))["outcome"]
        return outcome

    async def remains(self, archive: Archiver, of: BackupPlan) -> int:
        infos = await listed(store_of(archive), f"{of.system}/{of.target}/")
        return sum(of.id in info.key and "/runs/" not in info.key for info in infos)

    async def damage(self, archive: Archiver, manifest: Manifest, part: str) -> str:
        store, key = store_of(archive), manifest.part(part).objects[-1].key
        await change(store, key, flipped(-1))
        return key


class TestArchiveInADirectory(TestArchiveInMemory):
    cancel_step = 17

    @pytest.fixture
    def archive(self, tmp_path: Path) -> Archiver:
        return small_archive(LocalStore(tmp_path))


def store_of(archive: Archiver) -> ObjectStore:
    assert isinstance(archive, Archive)
    return archive.store
