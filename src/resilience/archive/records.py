"""Manifests and records of one target: written with a seal where there is a key, and then read only with one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

from attrs import frozen

from resilience.concurrency import in_thread
from resilience.model.errors import Corrupt, KeyMissing, SealBroken
from resilience.primitives import ObjectStore

from .envelope import seal_of, unwrap, wrap
from .keys import DataKey, Keyring
from .small import RECORD, whole

P = ParamSpec("P")
T = TypeVar("T")
SMALL = 1 << 16
"""Bytes that the event loop reads itself: going to a thread takes longer."""


@frozen(kw_only=True)
class Records:
    """The records of one target. With a key, what has no seal or a broken one is not read; without one, no seal is."""

    store: ObjectStore
    keyring: Keyring
    system: str
    target: str

    async def wrapped(self, key: str, value: object) -> bytes:
        """Return the bytes to store for a value, sealed if there is a key."""
        by = await self.keyring.for_records(self.system, self.target)
        return await in_thread(wrap, value, key=key, by=by)  # the manifest of a terabyte has megabytes

    async def unwrapped(self, key: str, data: bytes, kind: type[T]) -> T:
        """Return the value in the bytes that are stored under `key`.

        Raises ManifestInvalid, SealBroken and Unsupported, and KeyMissing if its seal takes another key than is here.
        """
        if self.keyring.key is None:
            return await _sized(len(data), unwrap, data, key, kind)
        seal = await _sized(len(data), seal_of, data, key)
        if seal is None:
            raise unsealed(key)
        by = await self.authority(key, seal.key)
        return await _sized(len(data), partial(unwrap, by=by), data, key, kind)

    async def authority(self, key: str, name: str) -> DataKey:
        """Return the data key that what is stored under `key` is sealed with.

        Raises KeyMissing if that takes another key than is here, SealBroken if it cannot be had at all.
        """
        try:
            return await self.keyring.find(self.system, self.target, name)
        except Corrupt as error:
            text = f"its seal cannot be proven: {error}"
            raise SealBroken(text, operation="read", subject=key, hint=error.hint) from error
        except KeyMissing as error:
            text = f"its seal cannot be proven: {error.what}"
            raise KeyMissing(text, operation="read", subject=key, hint=error.hint) from error

    async def read(self, key: str, kind: type[T]) -> T | None:
        """Return the value that is stored under `key`, None if there is none; raises as `unwrapped` does."""
        data = await whole(self.store, key, at_most=RECORD)
        return None if data is None else await self.unwrapped(key, data, kind)

    async def put(self, key: str, value: object) -> None:
        """Store a value. Raises AlreadyExists if there is one."""
        await self.store.put(key, [await self.wrapped(key, value)])


def unsealed(key: str) -> SealBroken:
    """Return what to raise for what should be sealed and is not."""
    return SealBroken(
        "it is not sealed, so anybody may have written it",
        operation="read",
        subject=key,
        hint="if it is older than the sealing of this archive, open the archive without a key to use it",
    )


async def _sized(size: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    return function(*args, **kwargs) if size <= SMALL else await in_thread(function, *args, **kwargs)
