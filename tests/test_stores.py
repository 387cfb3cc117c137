"""The stores keep what `ObjectStore` promises, and a local directory keeps it when the disk fails."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilience.model.errors import AlreadyExists, StorageFailed, Unsupported
from resilience.primitives import ObjectStore
from resilience.stores import LocalStore, MemoryStore, keys, local
from resilience.testing.stores import StoreSuite, content, listed, read

from .faults import at_os_call, killed_everywhere


class TestMemoryStore(StoreSuite):
    @pytest.fixture
    def store(self) -> ObjectStore:
        return MemoryStore()


class TestLocalStore(StoreSuite):
    @pytest.fixture
    def store(self, tmp_path: Path) -> ObjectStore:
        return LocalStore(tmp_path / "missing" / "root")

    def again(self, store: ObjectStore) -> ObjectStore:
        assert isinstance(store, LocalStore)
        return LocalStore(store.root)


DATA = content(300_000)
FULL = {errno.ENOSPC: "No space left on device", errno.EIO: "Input/output error"}


def aside(store: LocalStore) -> list[str]:
    return [path.name for path in store.root.glob(".aside/*")]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(tmp_path)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here; the limit on file sizes is tested instead")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


async def test_a_full_disk_fails_the_put_and_is_as_empty_as_before(small_disk: Path) -> None:
    store = LocalStore(small_disk / "root")
    await store.put("small", [b"data"])
    for _ in range(3):
        with pytest.raises(StorageFailed, match=r"put large: No space left on device"):
            await store.put("large", [content(1 << 20), b"more"])
    assert [info.key for info in await listed(store)] == ["small"]
    assert aside(store) == []
    await store.put("large", [content(1 << 19)])


async def test_a_limit_on_file_sizes_fails_the_put_and_leaves_nothing(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(StorageFailed, match="put object: File too large"):
            await store.put("object", [DATA])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert await listed(store) == []
    assert aside(store) == []


@pytest.mark.parametrize("number", FULL, ids=FULL.get)
@pytest.mark.parametrize("chunks", [list, iter], ids=["at once", "one by one"])
async def test_a_disk_that_fails_at_any_call_leaves_nothing_visible(
    tmp_path: Path, number: int, chunks: Callable[[list[bytes]], Iterable[bytes]]
) -> None:
    def fail(name: str) -> None:
        raise OSError(number, os.strerror(number))

    for call in count(1):
        store = LocalStore(tmp_path / str(call))
        with at_os_call(call, fail) as made:
            (end,) = await asyncio.gather(
                store.put("folder/object", chunks([DATA[:10], DATA[10:]])), return_exceptions=True
            )
        if len(made) < call:
            break
        assert isinstance(end, StorageFailed)
        assert FULL[number] in str(end)
        assert await listed(LocalStore(store.root)) == []
        await store.put("folder/object", [DATA])
        assert await read(LocalStore(store.root), "folder/object") == DATA
    assert {"open", "write", "fsync", "link", "unlink", "mkdir"} <= set(made)


async def test_a_failed_fsync_is_final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)
    await store.put("before", [b"data"])
    calls: list[str] = []

    def fsync(handle: int) -> None:
        calls.append("fsync")
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", lambda *_: calls.append("link"))
    with pytest.raises(StorageFailed, match="Input/output error"):
        await store.put("object", [DATA])
    assert calls == ["fsync"]
    assert aside(store) == []


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV])
async def test_a_file_system_without_hard_links_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def link(old: str, new: str) -> None:
        raise OSError(number, os.strerror(number))

    store = LocalStore(tmp_path)
    monkeypatch.setattr(os, "link", link)
    with pytest.raises(Unsupported, match=r"makes no hard links \(a LocalStore needs them"):
        await store.put("object", [DATA])
    assert await listed(store) == []
    assert aside(store) == []


async def test_every_folder_that_changed_is_synced_before_put_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def watched(handle: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    store = LocalStore(tmp_path / "new" / "root")
    await store.put("a/b/object", [DATA])
    folders = [tmp_path, tmp_path / "new", store.root, store.root / "a", store.root / "a" / "b", store.root / ".aside"]
    assert {str(folder) for folder in folders} <= set(synced)
    assert synced[-2:] == [str(store.root / "a" / "b"), str(store.root / ".aside")]
    await store.delete("a/b/object")
    assert synced[-1] == str(store.root / "a" / "b")


async def test_a_put_killed_at_any_call_leaves_the_object_whole_or_absent(tmp_path: Path) -> None:
    folders = killed_everywhere("put", tmp_path)
    assert len(folders) > 10
    for folder in folders:
        store = LocalStore(folder / "root")
        if await listed(store) == []:
            assert folder != folders[-1]
            await store.put("folder/object", [b"onetwo"])
        assert await read(LocalStore(store.root), "folder/object") == b"onetwo"


async def test_what_is_no_object_is_not_listed(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    await store.put("folder/object", [b"data"])
    for name in (".hidden", "folder/.hidden", "a name", "lost+found", "folder/object~"):
        (tmp_path / name).write_text("not ours")
    (tmp_path / ".snapshots").mkdir()
    (tmp_path / ".snapshots" / "object").write_text("not ours")
    assert [info.key for info in await listed(store)] == ["folder/object"]


async def test_a_folder_that_was_removed_meanwhile_is_made_again(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "root")
    await store.put("folder/object", [b"data"])
    shutil.rmtree(store.root)
    await store.put("folder/object", [b"data"])
    assert await read(store, "folder/object") == b"data"


async def test_an_object_where_a_folder_is_wanted_is_a_conflict(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    await store.put("name", [b"data"])
    with pytest.raises(AlreadyExists, match="an object stands where the folder"):
        await store.put("name/object", [b"data"])
    await store.put("folder/object", [b"data"])
    with pytest.raises(AlreadyExists):
        await store.put("folder", [b"data"])
    assert [info.key for info in await listed(store)] == ["folder/object", "name"]


async def test_a_place_that_cannot_hold_a_store_is_said_in_one_sentence() -> None:
    with pytest.raises(StorageFailed, match=r"put object: .*: '?/proc/nowhere"):
        await LocalStore("/proc/nowhere").put("object", [b"data"])


async def test_a_long_list_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "LISTED_AT_ONCE", 3)
    store = LocalStore(tmp_path)
    for number in range(10):
        await store.put(f"{number // 4}/{number}", [b"data"])
        assert len(await listed(store)) == number + 1


names = st.text("ab-./0", min_size=1, max_size=6).filter(keys.is_key)


@given(wanted=st.sets(names, max_size=8), prefix=st.text("ab-./0", max_size=4))
@settings(max_examples=40, deadline=None)
def test_a_directory_lists_like_a_dictionary(wanted: set[str], prefix: str) -> None:
    async def compare(root: Path) -> None:
        local, memory = LocalStore(root), MemoryStore()
        for key in sorted(wanted):
            if not any(other.startswith(f"{key}/") for other in wanted):
                await local.put(key, [b"data"])
                await memory.put(key, [b"data"])
        assert [info.key for info in await listed(local, prefix)] == [info.key for info in await listed(memory, prefix)]

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(compare(Path(folder)))
