"""Puts what PostgreSQL archives into the log, and records how far the log is durable."""

from __future__ import annotations

import asyncio
import logging
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from attrs import define, evolve, field, frozen

from resilience.concurrency import in_thread
from resilience.model.errors import Corrupt, Refused, StorageFailed, Unsupported
from resilience.model.log import Branch, LogEntry, Watermark
from resilience.postgres.lsn import format_lsn, position
from resilience.postgres.wal.header import PG_CONTROL, Control, SegmentHeader, read_control, read_header
from resilience.postgres.wal.names import WalName, history_name, parse_history
from resilience.primitives import Log

from .opened import Opened

EVERY_SEGMENTS = 16
EVERY_SECONDS = 60.0
TICK = timedelta(milliseconds=100)
"""The kernel stamps files with a clock that lags by less than this; see CLOCK_REALTIME_COARSE in clock_gettime(2)."""

_RECOVERING = ("standby.signal", "recovery.signal")
_HISTORIES = "[0-9A-F]" * 8 + ".history"
_logger = logging.getLogger(__name__)


@frozen
class WalFile:
    """A file of pg_wal as it was read: its bytes, when it was last written to, and which file that was."""

    path: Path
    data: bytes
    modified: datetime
    identity: tuple[int, int, int]

    @classmethod
    def read(cls, path: Path) -> WalFile:
        """Read a file. Raises OSError."""
        with path.open("rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            return cls(path, file.readall(), datetime.fromtimestamp(status.st_mtime, UTC), identity(status))


def identity(status: os.stat_result) -> tuple[int, int, int]:
    """Return what tells a file from every other, and from itself once it was written to again."""
    return status.st_dev, status.st_ino, status.st_mtime_ns


@define
class Progress:
    """How far each branch of a log is durable without a hole; recorded now and then, never across one."""

    log: Log
    _runs: dict[str, Watermark] = field(factory=dict, init=False)
    _behind: dict[str, dict[int, LogEntry]] = field(factory=dict, init=False)
    _recorded: dict[str, tuple[int, float]] = field(factory=dict, init=False)
    _lock: asyncio.Lock = field(factory=asyncio.Lock, init=False)

    async def begin(self, entry: LogEntry) -> None:
        """Look how far a branch is, before the first entry of it is appended."""
        async with self._lock:
            if (branch := entry.branch) not in self._runs:
                run = await self.log.watermark(branch) or Watermark(begins=entry.begins, ends=entry.begins)
                if run.ends.offset < entry.begins.offset:
                    run = await self._over_gaps(run, entry)
                self._behind[branch] = {}
                self._recorded[branch] = run.ends.offset, _now()
                self._runs[branch] = run

    async def appended(self, entry: LogEntry) -> None:
        """Note that an entry is durable, and record how far all is if it is time to."""
        branch, run, behind = entry.branch, self._runs[entry.branch], self._behind[entry.branch]
        behind[entry.begins.offset] = entry
        while found := behind.pop(run.ends.offset, None):
            run = evolve(run, ends=found.ends, latest=found.latest, complete_at=found.complete_at)
        self._runs[branch] = run
        recorded, at = self._recorded[branch]
        if run.ends.offset - recorded >= EVERY_SEGMENTS * entry.size or _now() - at >= EVERY_SECONDS:
            await self._record(branch)

    async def record(self) -> None:
        """Record what is durable and was not recorded yet."""
        for branch in list(self._runs):
            await self._record(branch)

    async def _record(self, branch: str) -> None:
        async with self._lock:
            run = self._runs[branch]
            if run.ends.offset > self._recorded[branch][0]:
                await self.log.record(run)
                self._recorded[branch] = run.ends.offset, _now()

    async def _over_gaps(self, run: Watermark, entry: LogEntry) -> Watermark:
        for gap in (await self.log.survey()).gaps:
            if gap.branch == run.branch and gap.begins.offset <= run.ends.offset < gap.ends.offset:
                run = Watermark(begins=gap.ends, ends=gap.ends)
        if run.ends.offset < entry.begins.offset:
            _logger.warning("the log has a hole from %s to %s", run.ends, entry.begins)
        return run


def _now() -> float:
    return asyncio.get_running_loop().time()


@define(kw_only=True)
class Pusher:
    """Archives the files of one cluster."""

    opened: Opened
    progress: Progress = field(init=False)
    _branches: set[int] = field(factory=set, init=False)
    _allowed: bool = field(default=False, init=False)
    _order: asyncio.Lock = field(factory=asyncio.Lock, init=False)
    _begun: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.progress = Progress(self.log)

    @property
    def log(self) -> Log:
        """Where it goes."""
        return self.opened.log

    @property
    def control(self) -> Control:
        """What cluster it comes from."""
        return self.opened.control

    @property
    def data(self) -> Path:
        """The cluster's data directory."""
        return self.opened.config.data or Path()

    async def push(self, path: Path) -> WalFile:
        """Archive a file; once this returns it is durable. What is there already is compared.

        Raises Refused for what does not belong into this log and for an archive that another account wrote,
        LineageBroken if it is there with other content, and what the store raises.
        """
        with self.opened.explained():
            return await self._archive(path)

    async def _archive(self, path: Path) -> WalFile:
        try:
            name = WalName.parse(path.name, segment_size=self.control.segment_size)
        except ValueError as error:
            raise self._refused(path, str(error)) from error
        self.opened.still_there()
        async with self._order:
            await self._allow()
            file = await _read(path)
            entry = None if name.begins is None else await self._begin(name.timeline, name.begins, file)
        if entry is not None:
            await self._append(entry, file)
        elif name.kind == "history":
            await self.log.record(parse_history(name.timeline, _decoded(file.data, path)))
        else:
            await self.log.keep(name.text, file.data)
        self.opened.still_there()
        return file

    async def _begin(self, timeline: int, begins: int, file: WalFile) -> LogEntry:
        """Check a segment; one after the other, so that where a log begins is where its first segment does."""
        self._check(_header(file), timeline, begins, file)
        await self._branch(timeline)
        entry = LogEntry(
            begins=position(timeline, begins),
            ends=position(timeline, begins + len(file.data)),
            latest=file.modified + TICK,
            complete_at=await in_thread(self._complete_at, timeline, file),
        )
        await self.progress.begin(entry)
        return entry

    async def _append(self, entry: LogEntry, file: WalFile) -> None:
        await self.log.append(entry, [file.data])
        await self.progress.appended(entry)
        if not self._begun:
            await self.opened.begun()
            self._begun = True

    async def _allow(self) -> None:
        if not self._allowed:
            await self.opened.may_write()
            self._allowed = True

    def _check(self, header: SegmentHeader, timeline: int, begins: int, file: WalFile) -> None:
        if header.lineage != self.control.lineage:
            what = f"it is WAL of cluster {header.lineage}, this is cluster {self.control.lineage}"
        elif header.begins != begins:
            what = f"it begins at {format_lsn(header.begins)}, its name says {format_lsn(begins)}"
        elif header.timeline > timeline:
            what = f"it is of timeline {header.timeline}, its name says {timeline}"
        elif not len(file.data) == header.segment_size == self.control.segment_size:
            what = f"it has {len(file.data)} bytes, a segment of this cluster has {self.control.segment_size}"
        else:
            return
        raise self._refused(file.path, what)

    async def _branch(self, timeline: int) -> None:
        """Record a timeline before its first segment."""
        if timeline in self._branches:
            return
        if timeline == 1:
            await self.log.record(Branch(name="1"))
        else:
            text = await in_thread(_text, self.data / "pg_wal" / history_name(timeline))
            if text is not None:
                await self.log.record(parse_history(timeline, text))
            elif str(timeline) not in {branch.name for branch in (await self.log.survey()).branches}:
                raise self._refused(
                    self.data / "pg_wal" / history_name(timeline),
                    f"the history of timeline {timeline} is neither here nor in the archive",
                )
        self._branches.add(timeline)

    def _complete_at(self, timeline: int, file: WalFile) -> datetime | None:
        """Return when the segment was finished, if this server wrote it: whatever it wrote later it acknowledged later.

        What came from elsewhere carries the time of its arrival, which says nothing of what was acknowledged there.
        """
        try:
            control = read_control((self.data / PG_CONTROL).read_bytes())
        except (OSError, Unsupported):
            return None
        newest = max((int(path.name[:8], 16) for path in (self.data / "pg_wal").glob(_HISTORIES)), default=1)
        elsewhere = control.in_recovery or any((self.data / name).exists() for name in _RECOVERING)
        return None if elsewhere or timeline < max(newest, control.timeline) else file.modified

    def _refused(self, path: Path, what: str) -> Refused:
        return Refused(what, operation="push", subject=str(path))


def _header(file: WalFile) -> SegmentHeader:
    try:
        return read_header(file.data)
    except Corrupt as error:
        raise Corrupt(error.what, operation="push", subject=str(file.path)) from error


async def _read(path: Path) -> WalFile:
    try:
        return await in_thread(WalFile.read, path)
    except OSError as error:
        raise StorageFailed(f"it cannot be read: {error.strerror}", operation="push", subject=str(path)) from error


def _text(path: Path) -> str | None:
    try:
        return _decoded(path.read_bytes(), path)
    except FileNotFoundError:
        return None


def _decoded(data: bytes, path: Path) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Corrupt("it is no history of a timeline", operation="push", subject=str(path)) from error
