"""The Protocols of where bytes and keys live."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from datetime import datetime
from typing import Protocol, TypeAlias, runtime_checkable

from attrs import field, frozen

from resilience.model.moments import aware
from resilience.model.retention import Tier

from .common import Opened


@frozen(kw_only=True)
class ObjectInfo:
    """What a store knows of one object; `tier` is None where there is one only, or the default one holds.

    `held` says why it cannot be removed (a legal hold, immutability); empty if the store does not say.
    """

    key: str
    size: int
    modified: datetime = field(validator=aware)
    tier: Tier | None = None
    held: str = ""


class KeyEncryptionKey(Protocol):
    """Wraps the keys that data is sealed with, and never leaves where it is kept.

    - `wrap` returns bytes from which only who may use the key gets `key` back.
    - `unwrap` raises SealBroken unless `wrapped` was made by `wrap` of this key, with this context, by somebody who may
      use it: nobody else can make bytes that it accepts. Both raise Unavailable and Refused as stores do.
    - `id` tells it from every other key; it is no secret, and fit for the name of an object.
    """

    @property
    def id(self) -> str: ...
    async def wrap(self, key: bytes, *, context: bytes) -> bytes: ...
    async def unwrap(self, wrapped: bytes, *, context: bytes) -> bytes: ...


class ObjectStore(Protocol):
    """Named, immutable sequences of bytes. Keys are paths of `/`-separated names.

    - `put` creates; it raises AlreadyExists rather than overwrite, and of two writers at once exactly one succeeds. The
      object becomes visible whole and durable, or not at all; also on cancellation, a crash and a full disk.
    - `get` yields chunks of about 1 MiB from `offset` on; it raises ObjectMissing when entered.
    - `list` yields, in the order of their keys, all objects whose keys begin with `prefix`.
    - `stat` returns None for what is not there. `delete` may be repeated.
    """

    async def put(self, key: str, chunks: Chunks) -> ObjectInfo: ...
    def get(self, key: str, *, offset: int = 0) -> Opened[AsyncIterator[bytes]]: ...
    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]: ...
    async def stat(self, key: str) -> ObjectInfo | None: ...
    async def delete(self, key: str) -> None: ...


@runtime_checkable
class Rehydrating(Protocol):
    """A store with a tier that cannot be read (`ObjectInfo.tier` is `archive`), and a way back from there.

    - `get` of such an object raises NotRehydrated, or reads its readable copy once there is one.
    - `rehydrate` begins to make that copy, if nobody has yet, and returns whether it is there. It may be repeated.
    """

    async def rehydrate(self, key: str, *, to: Tier = "hot", urgent: bool = False) -> bool: ...


Chunks: TypeAlias = AsyncIterator[bytes] | Iterable[bytes]
"""What `put` takes: the pieces of an object, in order."""
