"""The Protocols of backup and restore: targets, destinations, archives, logs and what proves something about them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from datetime import datetime
from typing import Protocol, TypeAlias, TypeVar

from resilience.model.capture import Captured, Part, Restored
from resilience.model.diagnosis import Checkup
from resilience.model.facts import DestinationFacts, TargetFacts
from resilience.model.findings import Doubt, Examined, Level, Verdict
from resilience.model.keys import Rewrapped
from resilience.model.log import Branch, Gap, LogEntry, LogFacts, Stretch, Watermark
from resilience.model.manifests import Manifest, StoredPart
from resilience.model.measured import RestoreMeasured
from resilience.model.objectives import Objective
from resilience.model.plans import BackupPlan, RestorePlan
from resilience.model.positions import RecoveryPoint
from resilience.model.pruning import LogTrim, Removed
from resilience.model.stock import ArchiveFacts, BackupObjects

from .common import Named, Opened, T_co
from .storage import ObjectInfo

S_contra = TypeVar("S_contra", contravariant=True)


class BackupTarget(Named, Protocol):
    """Something that can be backed up.

    - `survey` writes nothing. What stands in the way of a backup is a finding with severity blocker.
    - Leaving `capture` early, also by cancellation, aborts it and ends the server's backup mode.
    - With a `parent` only what has changed since then is captured. Raises NotIncremental if that cannot be told.
    """

    async def survey(self) -> TargetFacts: ...
    def capture(self, plan: BackupPlan, *, parent: StoredBackup | None = None) -> Opened[Capture]: ...


class Diagnosable(Named, Protocol):
    """Something that can be asked how well its configuration protects it.

    - `diagnose` writes nothing. What is wrong is a finding whose hint is the line or the command that changes it; what
      it may not see is a note that says what to grant. An exception means that it could not look at all.
    """

    async def diagnose(self, objective: Objective) -> Checkup: ...


class Capture(Protocol):
    """A backup being read from its target.

    - `parts` are yielded once, in order; each is read to its end before the next is asked for.
    - `finish` comes after the last part; it raises Corrupt if what was read is not what the target says it sent.
    - `size` is how many bytes the target expects to send, None if it cannot know.
    """

    @property
    def size(self) -> int | None: ...
    def parts(self) -> AsyncIterator[Part]: ...
    async def finish(self) -> Captured: ...


class RestoreDestination(Named, Protocol[T_co]):
    """Somewhere a backup comes back to life.

    - `survey` writes nothing, and says whether the destination is empty and large enough for the chain.
    - `apply` refuses a destination that is not empty. It makes the destination startable last, so that an interrupted
      restore cannot start, and returns the recovery point read back from the restored system. It replays what the plan
      says of `log` and tells `reached` how far it has come. A plan may replay nothing of it: then `log` only says which
      branches there are, so that the restored system goes on on a new one; it is None where there is no log.
    - `live` is an isolated running server that never acts as the production it was taken from; stopped on leaving.
    - `discard` removes what `apply` left behind; it may be repeated.
    - `accepts` are the kinds of backup it can bring back to life, `replays` those after which it can replay a log.
    """

    @property
    def accepts(self) -> tuple[str, ...]: ...
    @property
    def replays(self) -> tuple[str, ...]: ...
    async def survey(self, chain: Sequence[Manifest]) -> DestinationFacts: ...
    async def apply(
        self,
        plan: RestorePlan,
        *,
        chain: Sequence[StoredBackup],
        log: Log | None = None,
        reached: Reached | None = None,
    ) -> Restored: ...
    def live(self) -> Opened[T_co]: ...
    async def discard(self) -> None: ...


Reached: TypeAlias = Callable[[RecoveryPoint], None]
"""Told during a replay how far it has come; returns at once."""


class Archiver(Protocol):
    """Keeps backups, and the logs that continue them.

    - A backup exists if and only if its manifest does. `manifests` yields them oldest first. What cannot be read or
      trusted of them is appended to `doubts` and passed over; without such a list the first doubt is raised, so that
      nobody takes an older backup for the newest unawares. All doubts are there when the iteration has ended.
    - `draft` publishes nothing unless `publish` is called, which is last and create-only. Leaving it early, also by
      cancellation, leaves objects that no manifest names and a run record that says what happened.
    - `retire` removes the manifest first, then the objects; it may be repeated. It refuses what others build on, and
      `publish` refuses what has lost its parent.
    - `log` is the log of one lineage of a target, empty or not; `lineages` are those that have one.
    - `offline` are the objects of a backup that lie in a tier that cannot be read and have no readable copy yet;
      `rehydrate` begins to make one readable, if that has not begun, and returns whether it is.
    - `survey` looks at all that lies there of a target and writes nothing. `pruning` removes of it, `actor` for a
      `reason`; it leaves a run record, and what it may remove it is told piece by piece.
    - `rewrap` wraps what a target's data is sealed with by the archive's own key too, one data key after the other, and
      proves those that were wrapped before. It only adds, and may be repeated; what is in the way is told.
    - `remember` keeps what a restore has measured, or why it failed; `measured` are the last ones of a target that
      succeeded, newest first.
    """

    def manifests(self, target: str, *, doubts: list[Doubt] | None = None) -> AsyncIterator[Manifest]: ...
    def draft(self, plan: BackupPlan) -> Opened[Draft]: ...
    def open(self, manifest: Manifest) -> Opened[StoredBackup]: ...
    async def retire(self, manifest: Manifest, *, actor: str = "", reason: str = "") -> None: ...
    def log(self, target: str, *, system: str, lineage: str) -> Opened[Log]: ...
    async def lineages(self, target: str) -> tuple[str, ...]: ...
    def offline(self, manifest: Manifest) -> AsyncIterator[ObjectInfo]: ...
    async def rehydrate(self, key: str, *, urgent: bool = False) -> bool: ...
    async def survey(self, target: str) -> ArchiveFacts: ...
    def pruning(self, target: str, *, id: str, actor: str = "", reason: str = "") -> Opened[Pruning]: ...
    def rewrap(self, target: str) -> AsyncIterator[Rewrapped]: ...
    async def remember(self, measured: RestoreMeasured) -> None: ...
    async def measured(self, target: str, *, last: int = 5) -> tuple[RestoreMeasured, ...]: ...


class Pruning(Protocol):
    """Removes what it is told from an archive, of one target.

    - An object that the store does not let go is told as held, and the others go all the same. Every method may be
      repeated after an interruption. Cancelled: every object is there or gone.
    - `now` is when it began, by the store's clock; `added` are the backups that have appeared beside those
      that are `known`; it raises as `Archiver.manifests` does.
    - `retire` removes the manifest first, after a record that it was removed on purpose. While the manifest is held
      nothing else of the backup is touched: it is not gone.
    - `abandon` removes objects that no manifest names. Unless they are of a retired backup it does nothing if one was
      written after `quiet`, and first ends the run, so that it can no longer publish.
    - `trim` removes from a log what lies wholly within the stretches of a trim, or was written before its time; slices
      only where a whole segment has them.
    """

    @property
    def now(self) -> datetime: ...
    async def added(self, known: Collection[str]) -> tuple[Manifest, ...]: ...
    async def retire(self, manifest: Manifest) -> Removed: ...
    async def abandon(self, leftover: BackupObjects, *, quiet: datetime) -> Removed: ...
    async def trim(self, trim: LogTrim) -> Removed: ...


class Log(Protocol):
    """The log of one lineage, append-only: whole segments, and slices of the segment that is still being written.

    - A branch is recorded before its first entry, or `append` raises ValueError. `record` and `append` may be repeated;
      the same place with other content raises LineageBroken and changes nothing. `append` returns whether the entry is
      new; once it returns, the entry is durable; cancelled, it is there whole or not at all. `data` are the entry's
      bytes, in order. It raises ValueError for an entry without bytes, or with others than it says.
    - `keep` stores a small file beside the log under a name of the system's own; it never moves a watermark.
    - `watermark` is found without listing the log: from the newest that was recorded (or else from the first entry) on
      it goes as far as entries follow without a hole, and over a hole only where a recorded gap spans all of it and
      there is something behind. Recording one says that everything up to it is durable: whoever appends out of order
      records only what has no hole.
    - `entries` yields what covers a stretch of a branch, oldest first, by their names alone: every whole segment, and
      where there is none the longest slices, as far as they go on from `begins` (0: from the first of all) or from a
      segment. They may reach over its ends and may leave holes. Without `ends` (and with `begins`) it may stop at a
      hole of 4 GiB behind which nothing was recorded.
    - `slices` are what the slices of one segment alone cover of a stretch that begins with it, up to the first hole,
      whether the whole segment is there or not.
    - `offline` are the objects of a stretch that lie in a tier that cannot be read and have no readable copy yet.
    - `read` yields no byte that is not verified; raises ObjectMissing and ChecksumMismatch. `describe` reads an entry's
      head and returns it with its times and positions as the system writes them.
    """

    @property
    def lineage(self) -> str: ...
    async def record(self, record: Branch | Watermark | Gap) -> None: ...
    async def append(self, entry: LogEntry, data: Sequence[bytes | memoryview]) -> bool: ...
    async def keep(self, name: str, data: bytes) -> None: ...
    async def survey(self) -> LogFacts: ...
    async def watermark(self, branch: str) -> Watermark | None: ...
    def entries(self, branch: str, *, begins: int = 0, ends: int | None = None) -> AsyncIterator[LogEntry]: ...
    def slices(self, branch: str, *, begins: int, ends: int) -> AsyncIterator[LogEntry]: ...
    def offline(self, stretch: Stretch) -> AsyncIterator[ObjectInfo]: ...
    async def read(self, entry: LogEntry) -> Sequence[bytes]: ...
    async def describe(self, entry: LogEntry) -> LogEntry: ...


class Draft(Protocol):
    """A backup being written: `store` every part, in any order, then `publish` once."""

    async def store(self, part: Part) -> StoredPart: ...
    async def publish(self, captured: Captured) -> Manifest: ...


class StoredBackup(Protocol):
    """A published backup, open for reading.

    - No byte leaves `read` before its frame is verified. A digest of a whole object can only be known at its end: a
      reader must not make anything final before the iterator has ended without an error.
    - `examine` looks at every object, also at those after a damaged one: at level EXISTS whether it is there with its
      size, at level CHECKSUMS at every stored byte.
    """

    @property
    def manifest(self) -> Manifest: ...
    def read(self, part: str) -> Opened[AsyncIterator[bytes]]: ...
    def examine(self, level: Level) -> AsyncIterator[Examined]: ...


class Validator(Protocol[S_contra]):
    """Proves something about S: a StoredBackup, or a live server.

    - A failed check is a finding in the verdict; an exception means that it could not look.
    - The verdict says how much was examined.
    """

    @property
    def level(self) -> Level: ...
    async def check(self, subject: S_contra) -> Verdict: ...
