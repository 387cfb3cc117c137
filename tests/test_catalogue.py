"""Many manifests: fetched side by side, told in order, with little in memory, and nothing left running."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
from attrs import define, evolve, field

from resilience import Archive
from resilience.archive import layout
from resilience.archive.envelope import wrap
from resilience.archive.small import AHEAD, TOGETHER, ReadsMany, wholes
from resilience.errors import ManifestInvalid
from resilience.model.findings import Doubt
from resilience.model.json import to_json
from resilience.model.manifests import StoredPart
from resilience.stores import LocalStore, MemoryStore
from resilience.testing.archivers import listed, plan, write
from resilience.testing.cancellation import nothing_left_running


@define
class SlowStore(MemoryStore):
    """Answers after a while, the later ones often before the earlier; counts how many are asked at once."""

    asked: int = 0
    most: int = 0
    random: random.Random = field(factory=lambda: random.Random(7))  # noqa: S311  # no secret

    @asynccontextmanager
    async def get(self, key: str, *, offset: int = 0) -> AsyncIterator[AsyncIterator[bytes]]:
        self.asked += 1
        self.most = max(self.most, self.asked)
        try:
            await asyncio.sleep(self.random.random() / 500)
            async with MemoryStore.get(self, key, offset=offset) as chunks:
                yield chunks
        finally:
            self.asked -= 1


async def filled(store: MemoryStore | LocalStore, count: int) -> None:
    for number in range(count):
        await store.put(f"small/{number:05d}", [b"%d" % number])


async def test_many_are_fetched_at_once_and_told_in_order() -> None:
    store = SlowStore()
    await filled(store, 200)
    assert [(key, data) async for key, data in wholes(store, "small/")] == [
        (f"small/{number:05d}", b"%d" % number) for number in range(200)
    ]
    assert store.most == AHEAD


async def test_a_local_directory_reads_them_together(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    assert isinstance(store, ReadsMany)
    await filled(store, 2 * TOGETHER + 1)
    assert [data async for _, data in wholes(store, "small/")] == [b"%d" % number for number in range(2 * TOGETHER + 1)]
    assert await store.read_many(["small/00001", "small", "nowhere", "small/00001/x", "small/00002"]) == [
        b"1", None, None, None, b"2",
    ]  # fmt: skip
    assert await store.read_many([]) == []
    with pytest.raises(ValueError, match="is no key"):
        await store.read_many(["../secret"])


async def test_what_is_removed_while_it_is_listed_is_left_out(tmp_path: Path) -> None:
    for store in (MemoryStore(), LocalStore(tmp_path)):
        await filled(store, 300)
        found = []
        async with aclosing(wholes(store, "small/")) as reading:
            async for key, _ in reading:
                found.append(key)
                if len(found) == 1:
                    await store.delete("small/00299")
        assert found == [f"small/{number:05d}" for number in range(299)]


async def test_who_stops_listening_leaves_nothing_running() -> None:
    store = SlowStore()
    await filled(store, 100)
    async with nothing_left_running():
        async with aclosing(wholes(store, "small/")) as reading:
            async for _ in reading:
                break
        assert store.asked == 0


async def test_a_damaged_manifest_is_raised_in_its_turn_and_passed_over_if_doubts_are_wanted() -> None:
    store = MemoryStore()
    archive = Archive(store, workers=1)
    ids = [(await write(archive, plan(number))).id for number in (1, 2, 3)]
    key = layout.manifest("memory", "orders", ids[1])
    await store.delete(key)
    await store.put(key, [b"{"])
    found = []
    with pytest.raises(ManifestInvalid):
        async for manifest in archive.manifests("orders"):
            found.append(manifest.id)  # noqa: PERF401  # what came before it raised
    assert found == ids[:1]
    doubts: list[Doubt] = []
    assert [manifest.id async for manifest in archive.manifests("orders", doubts=doubts)] == [ids[0], ids[2]]
    assert [doubt.backup for doubt in doubts] == [ids[1]]


async def test_an_archive_lists_as_before(tmp_path: Path) -> None:
    archive = Archive(LocalStore(tmp_path), workers=1)
    ids = [(await write(archive, plan(number), {"one": b"x"})).id for number in range(1, 12)]
    assert await listed(archive) == ids


async def test_a_listed_manifest_is_the_one_that_was_written() -> None:
    archive = Archive(MemoryStore())
    written = await write(archive, plan())
    (found,) = [each async for each in archive.manifests("orders")]
    assert to_json(found) == to_json(written)
    (again,) = [each async for each in archive.manifests("orders")]
    assert again == written
    assert (again.stored, list(again.parts), again.parts[-1:]) == (written.stored, [*written.parts], written.parts[-1:])
    (copied,) = [each async for each in archive.manifests("orders")]
    assert evolve(copied, actor="who") == evolve(written, actor="who")
    assert repr(again) == repr(written)


async def test_of_a_manifest_that_is_only_listed_no_part_is_kept_as_a_value() -> None:
    archive = Archive(MemoryStore())
    await write(archive, plan())
    (found,) = [each async for each in archive.manifests("orders")]
    gc.collect()
    assert not [each for each in gc.get_referents(found.parts) if isinstance(each, tuple | StoredPart)]


async def test_parts_that_cannot_be_read_are_told_when_they_are_listed() -> None:
    store = MemoryStore()
    manifest = await write(Archive(store), plan())
    key = layout.manifest(manifest.system, "orders", manifest.id)
    damaged = evolve(manifest, parts=())
    await store.delete(key)
    await store.put(key, [wrap(damaged).replace(b'"parts":[]', b'"parts":[7]')])
    with pytest.raises(ManifestInvalid):
        assert [each async for each in Archive(store).manifests("orders")]
    body = to_json(damaged).replace(b'"parts":[]', b'"parts":[7]')
    digest = hashlib.sha256(body).hexdigest().encode()
    await store.delete(key)
    await store.put(key, [b'{"format":1,"sha256":"' + digest + b'","manifest":' + body + b"}"])
    with pytest.raises(ManifestInvalid, match="cannot be read"):
        assert [each async for each in Archive(store).manifests("orders")]
