"""A store in a local directory: create-only and safe against crashes.

An object is written aside, synced, hard-linked to its name and removed from aside; then every folder that changed is
synced. A link either exists whole or not at all and never replaces another, so two writers cannot disturb each other
and half an object is never visible. See open(2), link(2) and fsync(2); a failed fsync is final because the kernel may
already have dropped the pages it could not write.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime
from itertools import islice, takewhile
from pathlib import Path
from stat import S_ISREG
from typing import ParamSpec, TypeVar

from attrs import define, field

from resilience.concurrency import closing, in_order_of, in_thread
from resilience.model.errors import AlreadyExists, ObjectMissing, StorageFailed, Unsupported
from resilience.primitives import Chunks, ObjectInfo

from .keys import checked, checked_offset, each, is_prefix

P = ParamSpec("P")
T = TypeVar("T")

CHUNK = 1 << 20
ASIDE = ".aside"
FIRST_LISTED = 20
LISTED_AT_ONCE = 1000
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV)


def _absolute(path: str | Path) -> Path:
    return Path(path).absolute()


@define
class LocalStore:
    """Keeps objects as files below `root`, which is created when first written to.

    Objects are synced before they become visible. A file system without hard links is refused with Unsupported; a full
    or failing disk raises StorageFailed and leaves nothing visible. What a killed writer left aside (in `.aside`) is
    never listed.
    """

    root: Path = field(converter=_absolute)
    _durable: set[Path] = field(factory=set, init=False, repr=False)

    async def put(self, key: str, chunks: Chunks) -> ObjectInfo:
        """Create an object; see `ObjectStore.put`. Cancelled: it exists whole and durable, or not at all."""
        path = self.root / checked(key)
        aside = _File(self.root / ASIDE / secrets.token_hex(16))
        try:
            if isinstance(chunks, Sequence):
                status = await _do("put", key, self._create, aside, chunks, path)
            else:
                await _do("put", key, self._begin, aside)
                async with closing(each(chunks)) as pieces:
                    async for piece in pieces:
                        await _do("put", key, aside.write, piece)
                status = await _do("put", key, self._complete, aside, path)
        except BaseException:
            aside.discard()
            raise
        aside.close()
        return _info(key, status)

    def _create(self, aside: _File, chunks: Sequence[bytes], path: Path) -> os.stat_result:
        # What is all there already goes to the disk in one step: a thread is not asked for every piece.
        self._begin(aside)
        for piece in chunks:
            aside.write(piece)
        return self._complete(aside, path)

    def _begin(self, aside: _File) -> None:
        self._make_folders(aside.path.parent)
        aside.open(os.O_WRONLY | os.O_CREAT | os.O_EXCL)

    def _complete(self, aside: _File, path: Path) -> os.stat_result:
        aside.sync()
        self._make_folders(path.parent)
        return _publish(aside.path, path)

    @asynccontextmanager
    async def get(self, key: str, *, offset: int = 0) -> AsyncIterator[AsyncIterator[bytes]]:
        """Read an object from `offset`; see `ObjectStore.get`."""
        file = _File(self.root / checked(key))

        def begin() -> tuple[bytes, int]:
            size = file.open(os.O_RDONLY)
            file.seek(offset)
            return file.read(CHUNK), size - offset

        async def chunks(chunk: bytes, rest: int) -> AsyncGenerator[bytes]:
            while chunk:
                yield chunk
                rest -= len(chunk)
                chunk = await _do("get", key, file.read, CHUNK) if rest > 0 else b""

        checked_offset(offset)
        try:
            async with aclosing(chunks(*await _do("get", key, begin))) as pieces:
                yield pieces
        finally:
            file.close()

    async def read_many(self, keys: Sequence[str]) -> Sequence[bytes | None]:
        """Read small objects, in one go; None for what is not there."""
        root = str(self.root)
        paths = [f"{root}/{checked(key)}" for key in keys]

        def read() -> list[bytes | None]:
            found: list[bytes | None] = []
            for path in paths:
                try:
                    with open(path, "rb", buffering=0) as file:  # Path takes as long as the disk
                        found.append(file.readall())
                except OSError as error:
                    if error.errno not in _MISSING:
                        raise
                    found.append(None)
            return found

        return await _do("get", keys[0] if keys else "", read)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Yield the objects under a prefix in the order of their keys; see `ObjectStore.list`."""
        walk, most = self._walk(prefix), FIRST_LISTED  # whoever wants the first only shall not wait for all

        def some() -> list[ObjectInfo]:
            return list(islice(walk, most))

        while infos := await _do("list", prefix, some):
            for info in infos:
                yield info
            most = LISTED_AT_ONCE

    async def stat(self, key: str) -> ObjectInfo | None:
        """Look at one object; None if it is not there."""
        path = self.root / checked(key)
        try:
            return _info(key, await _do("stat", key, _status, path))
        except ObjectMissing:
            return None

    async def delete(self, key: str) -> None:
        """Remove one object, if it is there, durably."""
        path = self.root / checked(key)

        def remove() -> None:
            path.unlink()
            sync_folder(path.parent)

        with suppress(ObjectMissing):
            await _do("delete", key, remove)

    def _make_folders(self, folder: Path) -> None:
        # Whoever made a folder may have died before syncing its parent: sync the way up once, even if it all exists.
        if folder in self._durable and folder.is_dir():
            return
        inside = [up for up in (folder, *folder.parents) if up.is_relative_to(self.root)]
        missing = list(takewhile(lambda up: not up.exists(), (folder, *folder.parents)))
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise AlreadyExists(f"an object stands where the folder {folder} is wanted") from error
        if self.root not in self._durable:
            with suppress(PermissionError):  # a folder that we may pass but not read, and so have not changed
                sync_folder(self.root.parent)
        for changed in {*inside, *(made.parent for made in missing)} - self._durable:
            sync_folder(changed)
        self._durable.update(inside)

    def _walk(self, prefix: str) -> Iterator[ObjectInfo]:
        """Walk keys in order, entering only folders that can hold the prefix."""
        if is_prefix(prefix):
            yield from self._walk_folder(prefix.rpartition("/")[0], prefix)

    def _walk_folder(self, folder: str, prefix: str) -> Iterator[ObjectInfo]:
        try:
            with os.scandir(self.root / folder) as scanned:
                entries = in_order_of(list(scanned), _key)
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            key = f"{folder}/{entry.name}" if folder else entry.name
            if not is_prefix(entry.name):
                continue  # not ours, or aside
            if entry.is_dir():
                if f"{key}/".startswith(prefix) or prefix.startswith(f"{key}/"):
                    yield from self._walk_folder(key, prefix)
            elif key.startswith(prefix):
                with suppress(FileNotFoundError):
                    yield _info(key, entry.stat())


def _key(entry: os.DirEntry[str]) -> str:
    return entry.name + "/" if entry.is_dir() else entry.name


def _status(path: Path) -> os.stat_result:
    status = path.stat()
    if not S_ISREG(status.st_mode):
        raise FileNotFoundError(errno.ENOENT, "no object", str(path))
    return status


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key=key, size=status.st_size, modified=datetime.fromtimestamp(status.st_mtime, UTC))


@define
class _File:
    """A file that a thread opens and the caller can always close, even when cancelled while it was being opened."""

    path: Path
    _handle: int | None = None

    def open(self, flags: int) -> int:
        """Open the file and return its size."""
        size = _status(self.path).st_size if flags == os.O_RDONLY else 0
        self._handle = os.open(self.path, flags | os.O_CLOEXEC, 0o600)
        return size

    @property
    def handle(self) -> int:
        if self._handle is None:
            raise ValueError(f"{self.path} is closed")
        return self._handle

    def read(self, count: int) -> bytes:
        return os.read(self.handle, count)

    def seek(self, offset: int) -> None:
        os.lseek(self.handle, offset, os.SEEK_SET)

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self.handle, rest) :]

    def sync(self) -> None:
        os.fsync(self.handle)

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def discard(self) -> None:
        self.close()
        with suppress(OSError):
            self.path.unlink()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _publish(aside: Path, path: Path) -> os.stat_result:
    try:
        os.link(aside, path)
    except OSError as error:
        if error.errno in _NO_LINKS:
            raise Unsupported(
                f"the file system at {path.parent} makes no hard links",
                hint="a LocalStore needs them to create objects safely; choose another file system",
            ) from error
        raise
    try:
        aside.unlink()
        sync_folder(path.parent)
        sync_folder(aside.parent)
        return path.stat()
    except OSError:
        with suppress(OSError):
            path.unlink()
        raise


async def _do(operation: str, key: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a blocking function in a thread and turn the operating system's errors into ours, at this one door."""
    try:
        return await in_thread(function, *args, **kwargs)
    except FileExistsError as error:
        raise AlreadyExists("the object exists", operation=operation, subject=key) from error
    except OSError as error:
        if operation != "put" and error.errno in _MISSING:
            raise ObjectMissing("there is no such object", operation=operation, subject=key) from error
        where = error.filename or "the store"
        raise StorageFailed(f"{error.strerror}: {where}", operation=operation, subject=key) from error
