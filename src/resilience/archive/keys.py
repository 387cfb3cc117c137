"""Data keys: made, wrapped, kept in the archive beside what they seal, and found again.

A key is an object `keys/<name>/<key-encryption key>.json` for each key-encryption key that can unwrap it, so that
rotation adds objects and rewrites none. What is wrapped is bound to its target, its name and who made it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

from attrs import define, field, frozen

from resilience.concurrency import awaited_in_order, closing
from resilience.model.errors import AlreadyExists, Conflict, Corrupt, KeyMissing, ObjectMissing, SealBroken, Unsupported
from resilience.model.ids import new_id
from resilience.model.keys import Rewrapped
from resilience.primitives import KeyEncryptionKey, ObjectStore
from resilience.streams.seals import KEY_SIZE, bound, derived, mac

from . import layout
from .envelope import unwrap, wrap
from .small import RECORD, whole

T = TypeVar("T")
REWRAPPED_AT_ONCE = 16
_WRAP = "resilience 2 data key"
_FRAMES = "resilience 2 frames"
_RECORDS = "resilience 2 records"


@frozen(kw_only=True)
class WrappedKey:
    """A data key as it is stored: its name, wrapped with `kek`; it was made by who had `made_with`."""

    name: str
    kek: str
    made_with: str
    wrapped: bytes = field(repr=False)


@frozen(kw_only=True)
class DataKey:
    """A key that is used through what is derived from it: for frames, and for MACs."""

    name: str
    made_with: str
    secret: bytes = field(repr=False)
    _for_records: bytes = field(init=False, repr=False, eq=False)

    @_for_records.default
    def _derive_for_records(self) -> bytes:
        return derived(self.secret, _RECORDS)  # once: it proves a hundred thousand manifests

    def for_frames(self, salt: bytes = b"") -> bytes:
        """Return the key for the frames of a backup, or of what else has this salt."""
        return derived(self.secret, _FRAMES, salt=salt)

    def mac(self, name: str, body: bytes | memoryview) -> str:
        """Return the MAC of a record that is stored under a name."""
        return mac(self._for_records, name, body)


@define(kw_only=True)
class Keyring:
    """The data keys of an archive: made with `key`, found with that or an `older` one; with neither, nothing is."""

    store: ObjectStore
    key: KeyEncryptionKey | None
    older: Sequence[KeyEncryptionKey] = ()
    clock: Callable[[], datetime] = field(repr=False)
    _known: dict[str, DataKey] = field(factory=dict, init=False, repr=False)
    _writing: dict[str, DataKey] = field(factory=dict, init=False, repr=False)
    _finding: dict[str, asyncio.Lock] = field(factory=dict, init=False, repr=False)
    _lock: asyncio.Lock = field(factory=asyncio.Lock, init=False, repr=False)

    async def for_backup(self, system: str, target: str, backup: str) -> DataKey | None:
        """Make the key of a backup; None if nothing is to be sealed. Raises Conflict if one of this id was begun."""
        if self.key is None:
            return None
        try:
            return await self._make(self.key, system, target, f"backup-{backup}")
        except AlreadyExists as error:
            raise Conflict("a backup of this id exists", operation="backup", subject=backup) from error

    async def for_log(self, system: str, target: str) -> DataKey | None:
        """Return the key for what is appended to a target's logs on this day; None if nothing is to be sealed."""
        return await self._shared(system, target, "log", f"{self.clock().astimezone(UTC):%Y%m%d}")

    async def for_records(self, system: str, target: str) -> DataKey | None:
        """Return the key for the MACs of a target's manifests and records; None if nothing is to be sealed."""
        return await self._shared(system, target, "records")

    async def find(self, system: str, target: str, name: str) -> DataKey:
        """Return a key by its name.

        Raises KeyMissing if it takes a key-encryption key that is not here, Corrupt if it is damaged, forged or gone,
        Unsupported if it is written in a newer format.
        """
        try:
            prefix = layout.data_key(system, target, name)
        except ValueError as error:
            raise SealBroken(str(error), operation="unwrap key", subject=target) from error
        async with self._finding.setdefault(prefix, asyncio.Lock()):  # a vault is asked once, however many want to know
            if prefix not in self._known:
                self._known[prefix] = await self._found(prefix, system, target, name)
        return self._known[prefix]

    async def _found(self, prefix: str, system: str, target: str, name: str) -> DataKey:
        failed: Corrupt | Unsupported | None = None
        for kek in self._keks:
            try:
                if (found := await self._unwrapped(kek, system, target, name)) is not None:
                    return found
            except (Corrupt, Unsupported) as error:
                failed = failed or error
        raise failed or await self._missing(prefix)

    async def sealed(self, system: str, target: str) -> bool:
        """Tell whether anything of a target was ever sealed."""
        async with closing(self.store.list(layout.data_keys(system, target))) as infos:
            async for _ in infos:
                return True
        return False

    async def rewrap(self, system: str, target: str) -> AsyncGenerator[Rewrapped]:
        """Wrap every key of a target with `key` too, or prove that it is; yield what became of each, in order.

        Adds objects and changes none; may be repeated. Raises KeyMissing if there is nothing to wrap them with.
        """
        if self.key is None:
            raise KeyMissing("there is no key to wrap them with", operation="wrap keys of", subject=target)
        wrapped: dict[str, set[str]] = {}
        async with closing(self.store.list(layout.data_keys(system, target))) as infos:
            async for info in infos:
                if found := layout.wrapped(info.key):
                    wrapped.setdefault(found[0], set()).add(found[1])
        step = partial(self._rewrapped, self.key, system, target)
        async with aclosing(awaited_in_order(_each(wrapped.items()), step, ahead=REWRAPPED_AT_ONCE)) as ended:
            async for each in ended:
                yield each

    async def _rewrapped(
        self, kek: KeyEncryptionKey, system: str, target: str, wrapped: tuple[str, set[str]]
    ) -> Rewrapped:
        name, keks = wrapped
        place = layout.wrapped_key(system, target, name, kek.id)
        added = kek.id not in keks
        try:
            if added:
                key = await self.find(system, target, name)
                with suppress(AlreadyExists):  # another rotation was faster; what it put there is looked at
                    await self._put(kek, system, target, key)
            # Anybody may put something there: it must not be taken for the key until it was opened.
            if await self._unwrapped(kek, system, target, name) is None:
                raise ObjectMissing("what was just written is not there", operation="wrap key", subject=place)
        except (Corrupt, KeyMissing, Unsupported) as error:
            hint = error.hint or ("" if added else "remove this object, and rotate again")
            return Rewrapped(name=name, subject=error.subject or place, problem=error.what, hint=hint)
        return Rewrapped(name=name, subject=place, added=added)

    @property
    def _keks(self) -> tuple[KeyEncryptionKey, ...]:
        return tuple(self.older) if self.key is None else (self.key, *self.older)

    async def _shared(self, system: str, target: str, purpose: str, since: str = "") -> DataKey | None:
        """Return the newest key for a purpose that was made with ours, or a new one."""
        if self.key is None:
            return None
        beginning = f"{layout.data_keys(system, target)}{purpose}-{since}"
        async with self._lock:
            if beginning not in self._writing:
                found = await self._newest(self.key, system, target, beginning)
                name = f"{purpose}-{new_id(self.clock())}"
                self._writing[beginning] = found or await self._make(self.key, system, target, name)
            return self._writing[beginning]

    async def _newest(self, kek: KeyEncryptionKey, system: str, target: str, beginning: str) -> DataKey | None:
        async with closing(self.store.list(beginning)) as infos:
            found = [layout.wrapped(info.key) async for info in infos]
        for name in [each[0] for each in reversed(found) if each and each[1] == kek.id]:
            try:
                key = await self.find(system, target, name)
            except (Corrupt, KeyMissing, Unsupported):
                continue  # whoever put it there had no key
            if key.made_with == kek.id:
                return key
        return None

    async def _make(self, kek: KeyEncryptionKey, system: str, target: str, name: str) -> DataKey:
        made = DataKey(name=name, made_with=kek.id, secret=secrets.token_bytes(KEY_SIZE))
        await self._put(kek, system, target, made)
        self._known[layout.data_key(system, target, name)] = made
        return made

    async def _put(self, kek: KeyEncryptionKey, system: str, target: str, key: DataKey) -> None:
        context = bound(_WRAP, system, target, key.name, key.made_with)
        wrapped = await kek.wrap(key.secret, context=context)
        stored = WrappedKey(name=key.name, kek=kek.id, made_with=key.made_with, wrapped=wrapped)
        await self.store.put(layout.wrapped_key(system, target, key.name, kek.id), [wrap(stored)])

    async def _unwrapped(self, kek: KeyEncryptionKey, system: str, target: str, name: str) -> DataKey | None:
        place = layout.wrapped_key(system, target, name, kek.id)
        data = await whole(self.store, place, at_most=RECORD)
        if data is None:
            return None
        stored = unwrap(data, place, WrappedKey)
        try:
            context = bound(_WRAP, system, target, name, stored.made_with)
            secret = await kek.unwrap(stored.wrapped, context=context)
        except (SealBroken, ValueError) as error:
            text = "this data key was changed, moved, or made by somebody who has no key"
            raise SealBroken(text, operation="unwrap key", subject=place) from error
        return DataKey(name=name, made_with=stored.made_with, secret=secret)

    async def _missing(self, prefix: str) -> KeyMissing | ObjectMissing:
        keks = set()
        async with closing(self.store.list(prefix)) as infos:
            async for info in infos:
                if found := layout.wrapped(info.key):
                    keks.add(found[1])
        if not keks:
            text = "this data key is gone, and with it what it sealed"
            return ObjectMissing(text, operation="unwrap key", subject=prefix)
        return KeyMissing(
            f"it takes the key {' or '.join(sorted(keks))}",
            operation="unwrap key",
            subject=prefix,
            hint="give the archive this key: Archive(store, key=…, older=[…])",
        )


async def _each(items: Iterable[T]) -> AsyncGenerator[T]:
    for item in items:
        yield item
