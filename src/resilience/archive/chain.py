"""The chain of sealed backups: each names the newest that were there before it, so that nobody can hide one.

Who removes a backup and has a key leaves a record of it. The newest backup has no successor yet: a record beside its
run says that it was published, and so does a witness, if there is one.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncGenerator, Callable, Container, Iterable, Iterator, Mapping
from contextlib import aclosing
from datetime import UTC, date, datetime, timedelta

from attrs import field, frozen

from resilience.concurrency import awaited_in_order, closing
from resilience.model.errors import AlreadyExists, Corrupt, KeyMissing, ResilienceError, Unsupported
from resilience.model.findings import Doubt
from resilience.model.ids import planned_at
from resilience.model.manifests import Manifest, Predecessor
from resilience.model.moments import aware
from resilience.primitives import ObjectInfo, ObjectStore

from . import layout
from .records import Records
from .small import AHEAD, RECORD, whole

NAMED = 4
"""How many of the newest backups are looked at for those that no other names: as many may be taken at once.

As many of those that were planned last, and as many of those that were published last.
"""
LONGEST = timedelta(days=8)
"""How long a backup may run: one that was planned earlier may have been published after the newest was."""
DAYS = 31
_PUBLISHED = "published"
_logger = logging.getLogger("resilience")


@frozen(kw_only=True)
class Published:
    """A sealed backup was published: its id, and the sha256 of its stored manifest."""

    id: str
    sha256: str

    @property
    def backup(self) -> Predecessor:
        """The backup, as a successor would name it."""
        return Predecessor(id=self.id, sha256=self.sha256)


@frozen(kw_only=True)
class Retired:
    """A backup was removed on purpose (a sealed one by who had the key): its id, the sha256 of its stored manifest."""

    id: str
    sha256: str
    retired_at: datetime = field(validator=aware)
    actor: str = ""
    reason: str = ""


def digest_of(data: bytes) -> str:
    """Return the digest that stands for a stored manifest."""
    return hashlib.sha256(data).hexdigest()


@frozen(kw_only=True)
class Chain:
    """The sealed backups of one target; `witness` is another store that who can change the archive cannot change."""

    records: Records
    witness: ObjectStore | None
    clock: Callable[[], datetime] = field(repr=False)

    async def heads(self) -> tuple[Predecessor, ...]:
        """Return the newest backups that no other names yet, oldest first."""
        found: dict[str, Predecessor] = {}
        named: set[str] = set()
        for key in await self._newest():
            try:
                data = await whole(self.records.store, key)
                manifest = None if data is None else await self.records.unwrapped(key, data, Manifest)
            except (Corrupt, KeyMissing, Unsupported):
                continue  # nobody shall vouch for it
            if data is not None and manifest is not None:
                found[manifest.id] = Predecessor(id=manifest.id, sha256=digest_of(data))
                named.update(each.id for each in manifest.predecessors)
        return tuple(found[each] for each in sorted(found) if each not in named)

    async def published(self, id: str, sha256: str) -> None:
        """Record that a backup was published, here and with the witness. What fails is logged: the backup exists."""
        record = Published(id=id, sha256=sha256)
        key = layout.run(self.records.system, self.records.target, id, _PUBLISHED)
        for store in (self.records.store, self.witness):
            try:
                if store is not None:
                    await store.put(key, [await self.records.wrapped(key, record)])
            except AlreadyExists:
                continue
            except (ResilienceError, OSError) as error:
                _logger.warning("that %s was published is not recorded: %s", id, error)

    async def retired(self, manifest: Manifest, *, actor: str = "", reason: str = "") -> None:
        """Record that a backup is removed by who may; its manifest is still there. May be repeated."""
        data = await whole(self.records.store, self._manifest(manifest.id))
        if data is None:
            return
        key = layout.retired(self.records.system, self.records.target, manifest.id)
        record = Retired(id=manifest.id, sha256=digest_of(data), retired_at=self.clock(), actor=actor, reason=reason)
        try:
            await self.records.put(key, record)
        except AlreadyExists:
            return

    async def doubts(self, found: Mapping[str, str], named: Mapping[Predecessor, str], told: set[str]) -> list[Doubt]:
        """Say which backups are missing though nobody who has a key removed them.

        `found` are the digests of the backups that are there, by their ids; `named` are those that others name, with
        who does; of `told` it was said already that they are unreadable. A witness that does not answer is a doubt
        about no backup: a restore must not depend on it.
        """
        known = {each: f"{by} came after it" for each, by in named.items()}
        newest, silent = max(found, default=""), list[Doubt]()
        async for each in self._published(self.records.store, newest, found):
            known.setdefault(each, "it was published")
        if self.witness is not None:
            try:
                async for each in self._published(self.witness, newest, found):
                    known.setdefault(each, "the witness was told of it")
            except (ResilienceError, OSError) as error:
                text = f"the witness could not be asked whether a newer backup was hidden: {error}"
                silent.append(Doubt(backup=None, subject=self.records.target, text=text))
        missing = [each for each in known if found.get(each.id) != each.sha256 and each.id not in told]
        hidden = list[Doubt]()
        async with aclosing(
            awaited_in_order(_each(sorted(missing, key=str)), self._accounted_for, ahead=AHEAD)
        ) as looked:
            async for each, accounted_for in looked:
                if not accounted_for:
                    hidden.append(self._hidden(each, known[each], there=each.id in found))
        return [*hidden, *silent]

    async def _accounted_for(self, backup: Predecessor) -> tuple[Predecessor, bool]:
        """Tell whether a backup was removed by who may; after years of pruning most of those that are missing were."""
        return backup, await self._was_retired(backup) or await self._has_come(backup)

    async def _has_come(self, backup: Predecessor) -> bool:
        """Look again: it may have been published after its place was listed."""
        try:
            data = await whole(self.records.store, self._manifest(backup.id))
        except Corrupt:
            return False  # it is none of ours
        return data is not None and digest_of(data) == backup.sha256

    async def _was_retired(self, backup: Predecessor) -> bool:
        try:
            key = layout.retired(self.records.system, self.records.target, backup.id)
            record = await self.records.read(key, Retired)
        except (Corrupt, KeyMissing, Unsupported, ValueError):
            return False
        return record is not None and (record.id, record.sha256) == (backup.id, backup.sha256)

    def _hidden(self, backup: Predecessor, why: str, *, there: bool) -> Doubt:
        what = "another manifest stands in its place" if there else "it is not in the archive"
        return Doubt(
            backup=backup.id,
            subject=self._manifest(backup.id),
            text=f"{what}, although {why}: it was hidden, or removed by somebody who has no key",
            hint="look where the store keeps what was deleted; in a copy of the archive it may not have arrived yet",
        )

    async def _published(self, store: ObjectStore, newest: str, there: Container[str]) -> AsyncGenerator[Predecessor]:
        """Yield what records say was published, and is not `there`, about when the newest was taken or later."""
        runs = layout.runs(self.records.system, self.records.target)
        for day in _days(newest, self.clock()):
            async with closing(store.list(runs + day)) as infos:
                keys = [info.key async for info in infos if info.key.endswith(f"/{_PUBLISHED}.json")]
            for key in [each for each in keys if each.split("/")[-2] not in there]:
                try:
                    data = await whole(store, key, at_most=RECORD)
                    record = None if data is None else await self.records.unwrapped(key, data, Published)
                except (Corrupt, KeyMissing, Unsupported):
                    continue  # anybody may have written it
                if record is not None:
                    yield record.backup

    async def _newest(self) -> list[str]:
        """Return the keys of the newest manifests, listing no more than is needed to find some."""
        prefix = layout.manifests(self.records.system, self.records.target)
        now = self.clock().astimezone(UTC)
        last = [f"{moment:%Y%m%d}" for moment in (now - LONGEST, now, now + timedelta(days=1))]
        found: list[ObjectInfo] = []
        for digits in (6, 4, 0):
            found = []
            for beginning in sorted({each[:digits] for each in last}):
                async with closing(self.records.store.list(prefix + beginning)) as infos:
                    found += [info async for info in infos]
            if len(found) >= NAMED:
                break
        latest = sorted(found, key=lambda info: info.modified)[-NAMED:]
        return sorted({info.key for info in (*found[-NAMED:], *latest)})

    def _manifest(self, backup: str) -> str:
        return layout.manifest(self.records.system, self.records.target, backup)


async def _each(backups: Iterable[Predecessor]) -> AsyncGenerator[Predecessor]:
    for backup in backups:
        yield backup


def _days(newest: str, now: datetime) -> Iterator[str]:
    """Yield how ids begin that may have been published after the newest was planned; if of too many days, at once."""
    today = now.astimezone(UTC).date()
    first = planned_at(newest).date() - LONGEST if newest else date.min
    if not 0 <= (today - first).days <= DAYS:
        yield ""
        return
    for number in range((today - first).days + 2):  # a clock may be ahead of ours
        yield f"{first + timedelta(days=number):%Y%m%d}"
