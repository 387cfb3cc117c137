"""Redis's own redis-check-rdb reads what our walker reads, through a pipe: a second opinion that costs no disk.

It is the code by which a server loads, but keeps one value at a time, so it needs no more memory than the largest.
"""

from __future__ import annotations

import os
import select
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from attrs import define, field

from resilience.concurrency import each_in_thread, in_thread
from resilience.model.findings import Finding, blocker
from resilience.primitives import StoredBackup
from resilience.programs import Running, started

from .walking import RdbWalker

_STALL_SECONDS = 60.0
_WRONG = "RDB ERROR DETECTED"
_UNKNOWN = ("format version", "signature")


async def walk(backup: StoredBackup, part: str, walker: RdbWalker, program: str | Path | bool) -> list[Finding]:
    """Feed a stored RDB to a walker, and to a program where there is one: what that says is a finding.

    The program is looked for on the PATH; True is for the one of the server's own product, False for none.
    Raises Corrupt, Unsupported and what reading raises.
    """
    wanted = f"{backup.manifest.details.get('product')}-check-rdb" if program is True else str(program)
    path = shutil.which(wanted) if program else None
    subject = f"{backup.manifest.id} {part}"
    async with backup.read(part) as chunks:
        if path is None:
            await each_in_thread(chunks, walker.feed)
            await in_thread(walker.close)
            return []
        async with _reading(path) as check:

            def both(chunk: bytes) -> None:
                walker.feed(chunk)
                check.feed(chunk)

            await each_in_thread(chunks, both)
            await in_thread(walker.close)
            return [await check.judge(subject)]


@define
class _Check:
    """A redis-check-rdb that reads what it is fed; `feed` runs in a thread."""

    running: Running
    _pipe: int
    _ended: bool = field(default=False, init=False)

    def feed(self, chunk: bytes) -> None:
        """Hand on a piece, unless the program has ended or reads no more."""
        rest, room = memoryview(chunk), select.poll()
        room.register(self._pipe, select.POLLOUT)
        while rest and not self._ended:
            try:
                if room.poll(_STALL_SECONDS * 1000):
                    rest = rest[os.write(self._pipe, rest) :]
                else:
                    self._ended = True
            except BlockingIOError:
                continue
            except BrokenPipeError:  # it has found something
                self._ended = True

    async def judge(self, subject: str) -> Finding:
        """Wait for its end and say what it found."""
        self.close()
        said = (await self.running.read_all()).decode(errors="replace")
        status = await self.running.wait()
        name, lines = self.running.program, said.partition(_WRONG)[2].splitlines()
        words = "; ".join(line for line in lines if line.startswith("[") and "[info]" not in line)
        if status == 0:
            return Finding(severity="note", subject=subject, text=f"{name} finds it sound")
        if words and not any(each in words for each in _UNKNOWN):
            return blocker(subject, f"{name} finds it damaged: {words}")
        words = words or self.running.said or f"status {status}"
        return Finding(
            severity="warning",
            subject=subject,
            text=f"{name} could not read it: {words}",
            hint="name one of the server's own release with program=",
        )

    def close(self) -> None:
        """Tell it that nothing comes any more."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1


@asynccontextmanager
async def _reading(path: str) -> AsyncIterator[_Check]:
    """Run the program on a pipe: it opens a file by its name, which a socket cannot be."""
    reading, writing = os.pipe()
    try:
        with os.fdopen(reading, "rb") as stdin:
            running = started([path, "/dev/stdin"], stdin=stdin, stdout=True)
            async with running as process:
                stdin.close()
                os.set_blocking(writing, False)
                check = _Check(process, writing)
                writing = -1
                try:
                    yield check
                finally:
                    check.close()
    finally:
        if writing >= 0:
            os.close(writing)
