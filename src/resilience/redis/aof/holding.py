"""An append-only file held open: all files of one manifest, and how far they reached at one moment.

Nothing is asked of the server but INFO, and nothing of it is changed. What a rewrite does in the meantime does not
matter: a file that is held open stays as it is when its name goes, the last one only grows, and a manifest that is the
same before and after the files were opened names all that is needed, also in the middle of a rewrite. Were hard links
made instead, and rewrites forbidden meanwhile (`auto-aof-rewrite-percentage 0`), as Redis's documentation has it, both
would stay behind wherever this process is killed.

How far: a server counts what it has written (`aof_current_size`) and what it is about to write. When it has written
as much as that came to at some moment, all that it had acknowledged by then is in the files. It counts whole commands
only, so the end is one, and no command is cut in two.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from attrs import define, field, frozen
from redis.asyncio import Redis

from resilience.concurrency import in_thread
from resilience.model.errors import Corrupt, Interrupted, Refused, TimedOut, Unavailable
from resilience.redis.client import Url
from resilience.redis.survey import Info, ask_info

from .listing import AofFile, read_listing

CHUNK = 4 << 20
PATIENCE = 600.0
"""Seconds to wait for a rewrite that has to come first, or for a disk that has fallen behind."""
_LOOK_SECONDS = 0.02
_MANIFEST = 1 << 20


@define
class Held:
    """One file, held open: so many of its bytes belong to the backup."""

    file: AofFile
    handle: int
    size: int = 0

    def chunks(self, operation: str) -> Iterator[bytes]:
        """Yield its bytes, in chunks of 4 MiB. Raises Interrupted if it has become shorter."""
        at = 0
        while at < self.size:
            chunk = os.pread(self.handle, min(CHUNK, self.size - at), at)
            if not chunk:
                text = f"it was cut off to {at} bytes while it was read, after {self.size} had been written"
                raise Interrupted(text, operation=operation, subject=self.file.name, hint="look at the server's disk")
            at += len(chunk)
            yield chunk


@frozen(kw_only=True)
class Moment:
    """What the server said of itself when it had written what the held files hold, and a little earlier."""

    info: Info
    written: int

    @property
    def time(self) -> datetime | None:
        """A time, by the server's clock, before which everything that it had executed is in the files."""
        return self.info.time


@define
class Holding:
    """The files of an append-only file in `folder`, as its manifest of that name has them; its methods block."""

    folder: Path
    manifest: str
    files: list[Held] = field(factory=list, init=False)
    _listing: int | None = field(default=None, init=False)

    @property
    def size(self) -> int:
        """How many bytes belong to the backup."""
        return sum(each.size for each in self.files)

    def open(self) -> bool:
        """Open all files; False if they are being replaced just now. Raises Refused if one may not be read, Corrupt."""
        self.close()
        try:
            self._listing = _opened(self.folder / self.manifest)
            for each in read_listing(os.pread(self._listing, _MANIFEST, 0)):
                self.files.append(Held(each, _opened(self.folder / each.name)))
        except FileNotFoundError:
            if self.same():
                raise Corrupt(f"a file that {self.manifest} names is not there", subject=str(self.folder)) from None
            return False
        except OSError as error:
            raise Refused(
                f"the append-only file cannot be read: {error.strerror}: {error.filename}",
                operation="backup",
                subject=str(self.folder),
                hint="run as the server's own account",
            ) from error
        return True

    def same(self) -> bool:
        """Tell whether the manifest is still the one that was read: it is never changed in place."""
        if self._listing is None:
            return False
        try:
            now, then = (self.folder / self.manifest).stat(), os.fstat(self._listing)
        except FileNotFoundError:
            return False
        return (now.st_dev, now.st_ino) == (then.st_dev, then.st_ino)

    def waits(self) -> bool:
        """Tell whether the server writes its first append-only file: until it is done the one here is an older one."""
        return (self.folder / f"temp-{self.manifest.removesuffix('.manifest')}.incr").exists()

    def lengths(self) -> list[int]:
        """Return how long the files are now."""
        return [os.fstat(each.handle).st_size for each in self.files]

    def starts_command(self, at: int) -> bool:
        """Tell whether a command may begin at this place of the last file."""
        around = os.pread(self.files[-1].handle, 3, max(0, at - 2))
        return (at == 0 or around[:2] == b"\r\n") and around[min(at, 2) :][:1] in (b"", b"*", b"#")

    def close(self) -> None:
        """Let go of all files."""
        for handle in (self._listing, *(each.handle for each in self.files)):
            if handle is not None:
                os.close(handle)
        self._listing = None
        self.files.clear()


def _opened(path: Path) -> int:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise Refused("it is no file", operation="backup", subject=str(path))
    return handle


async def hold(holding: Holding, client: Redis, url: Url, *, patience: float = PATIENCE) -> Moment:
    """Open the files and find out how far they reach; the caller closes `holding`.

    Raises Refused if they are not this server's or may not be read, Unavailable if the server cannot write or has not
    written what it acknowledged within `patience`, TimedOut if a rewrite took longer.
    """
    deadline = asyncio.get_running_loop().time() + patience
    while asyncio.get_running_loop().time() < deadline:
        if await in_thread(holding.open) and (moment := await _reached(holding, client, url)) is not None:
            return moment
        await asyncio.sleep(_LOOK_SECONDS)
    raise TimedOut(
        f"it has not come to rest within {patience:g} s: its append-only file is being rewritten, or its disk is slow",
        operation="backup",
        subject=url.where,
        hint="try again when INFO persistence says aof_rewrite_in_progress:0 and aof_rewrite_scheduled:0",
    )


async def _reached(holding: Holding, client: Redis, url: Url) -> Moment | None:
    """Return when the files hold all of a moment; None if that is not so with these files, or not yet."""
    asked = await ask_info(client, "everything")
    _check(asked, url)
    written = asked.number("aof_current_size")
    wanted = written + asked.number("aof_buffer_length")
    while True:
        before = await in_thread(holding.lengths)
        info = await ask_info(client, "everything")
        after, same, waits = await in_thread(_looked, holding)
        _check(info, url)
        ours = info.text("run_id") == asked.text("run_id") and same
        if not ours or info.number("aof_rewrite_scheduled") or (info.number("aof_rewrite_in_progress") and waits):
            return None
        if info.number("aof_current_size") < wanted:
            await asyncio.sleep(_LOOK_SECONDS)  # it holds writes back, two seconds at the most, while its disk is slow
            continue
        size = await in_thread(_ends, holding, info.number("aof_current_size"), sum(before), sum(after))
        if size is None:
            if sum(before) == sum(after):
                raise _foreign(holding, info, url, sum(after))
            return None
        for each, length in zip(holding.files, after, strict=True):
            each.size = length
        holding.files[-1].size = size
        return Moment(info=asked, written=holding.size)


def _looked(holding: Holding) -> tuple[list[int], bool, bool]:
    return holding.lengths(), holding.same(), holding.waits()


def _ends(holding: Holding, counted: int, before: int, after: int) -> int | None:
    """Return where the last file ended when the server had counted so much; None if that cannot be told.

    All files together had between `before` and `after` bytes then. A server that has made its first base has not
    counted that, until it is started again or rewrites it.
    """
    lengths = holding.lengths()
    first = lengths[0] if holding.files[0].file.type == "b" else 0
    others = sum(lengths[:-1])
    ends = [counted + more - others for more in dict.fromkeys((0, first)) if before <= counted + more <= after]
    ends = [each for each in ends if each >= 0 and holding.starts_command(each)]
    return ends[0] if len(ends) == 1 else None


def _check(info: Info, url: Url) -> None:
    """Raise unless the server keeps an append-only file, and can write it."""
    if not info.number("aof_enabled"):
        raise Refused("it keeps no append-only file", operation="backup", subject=url.where, hint=SWITCH_ON)
    if info.number("loading"):
        raise Unavailable("it is loading its data", operation="backup", subject=url.where)
    if info.text("aof_last_write_status") not in ("", "ok"):
        raise Unavailable("it cannot write its append-only file", operation="backup", subject=url.where, hint=DISK)


def _foreign(holding: Holding, info: Info, url: Url, size: int) -> Refused:
    return Refused(
        f"the append-only file in {holding.folder} is not the one that this server writes: it has {size} bytes, the "
        f"server counts {info.number('aof_current_size')}",
        operation="backup",
        subject=url.where,
        hint="name the right folder with folder=; if it is, the server has cut a damaged end off when it started, and "
        "counts right again after BGREWRITEAOF",
    )


SWITCH_ON = "CONFIG SET appendonly yes, or back up an RDB with RedisTarget"
DISK = "look at its log and at the room on its disk"
