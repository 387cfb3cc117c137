"""Manifests: what a backup consists of. A backup exists if and only if its manifest does."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from attrs import field, frozen
from attrs.validators import ge, gt

from .json import Foldable, Json
from .moments import aware
from .positions import Position, RecoveryPoint
from .show import Shown, as_bytes

FORMAT = 1
"""The archive format of what is not sealed; docs/archive-format.md says how older and newer ones are read."""
SEALED_FORMAT = 2
"""The archive format of what is sealed, and the newest that this version reads."""


@frozen(kw_only=True)
class StoredObject(Shown):
    """One stored object: a run of frames. `frames` are their stored lengths in order; they add up to `size`."""

    key: str
    size: int = field(validator=ge(0))
    sha256: str
    frames: tuple[int, ...] = field(repr=False)


@frozen(kw_only=True)
class StoredPart(Shown):
    """One part of a backup as it is stored: `size` plain bytes in frames of `frame_size`, the last one shorter.

    `number` tells it from every other part that was sealed with the same key.
    """

    name: str
    number: int = field(default=0, validator=ge(0), repr=False)
    size: int = field(validator=ge(0))
    frame_size: int = field(validator=gt(0))
    compression: str = "zstd"
    objects: tuple[StoredObject, ...] = field(repr=False)

    @property
    def stored(self) -> int:
        """Bytes in the store."""
        return sum(stored.size for stored in self.objects)


@frozen(kw_only=True)
class Sealing(Shown):
    """How a backup's frames are sealed: with which data key, found wrapped in the archive under this name."""

    key: str
    cipher: str = "AES-256-GCM"


@frozen(kw_only=True)
class Predecessor(Shown):
    """A backup that was there before another one, and the sha256 of its stored manifest."""

    id: str
    sha256: str


class Parts(Foldable[StoredPart]):
    """The parts of a backup, in order."""

    __slots__ = ()

    @classmethod
    def kind(cls) -> type[tuple[StoredPart, ...]]:
        """Return what their JSON is decoded to."""
        return tuple[StoredPart, ...]


@frozen(kw_only=True)
class Manifest(Shown):
    """One backup: where it came from, what it holds, what it brings back.

    `lineage` names the history the data belongs to (PostgreSQL's system identifier); `begins` is where a replay of the
    system's log has to start, `recovery_point` what the backup alone restores to. `predecessors` are the newest
    backups that were there before a sealed one, so that nobody can hide them. `actor` took it, for a `reason`.
    `details` belong to the system.
    """

    format: int = FORMAT
    id: str
    target: str
    system: str
    kind: str
    lineage: str
    parent: str | None = None
    started_at: datetime = field(validator=aware)
    ended_at: datetime = field(validator=aware)
    begins: Position
    recovery_point: RecoveryPoint
    parts: Parts = field(converter=Parts)
    writer: str = ""
    sealing: Sealing | None = None
    predecessors: tuple[Predecessor, ...] = field(default=(), repr=False)
    actor: str = ""
    reason: str = ""
    details: Mapping[str, Json] = field(factory=dict, repr=False)

    @property
    def size(self) -> int:
        """Plain bytes."""
        return sum(part.size for part in self.parts)

    @property
    def stored(self) -> int:
        """Bytes in the store."""
        return sum(part.stored for part in self.parts)

    def part(self, name: str) -> StoredPart:
        """Return the part of that name; raises KeyError."""
        for part in self.parts:
            if part.name == name:
                return part
        raise KeyError(name)

    def __str__(self) -> str:
        return (
            f"{self.target} {self.id}: {self.system} {self.kind}, {as_bytes(self.size)} in {as_bytes(self.stored)}, "
            f"restores to {self.recovery_point}"
        )
