"""The manifest of a multi-part append-only file: which files it is made of (src/aof.c of Redis 7 and 8, Valkey).

One line a file: `file NAME seq N type T`, T being b (the base), i (what was written since) or h (no longer needed);
Redis 8 adds the offsets of replication. A server replaces it whole, by renaming, whenever that changes: at every moment
there is one manifest, and the files it names hold all of the data.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator

from attrs import frozen

from resilience.model.errors import Corrupt

SUFFIX = ".manifest"
BASE, INCREMENT = "b", "i"
_TYPES = (BASE, INCREMENT, "h")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@frozen
class AofFile:
    """One file of an append-only file: its name, its number and its type."""

    name: str
    number: int
    type: str

    @property
    def rdb(self) -> bool:
        """Whether it is an RDB and nothing else; one that was taken over from Redis 6 has commands behind it."""
        return self.type == BASE and self.name.endswith(".rdb")


def read_listing(data: bytes) -> tuple[AofFile, ...]:
    """Return the files that a manifest names: the base if there is one, then what was written since, in order.

    Raises Corrupt if it is no manifest.
    """
    try:
        found = list(_files(data.decode()))
    except (UnicodeDecodeError, ValueError) as error:
        raise Corrupt(f"the append-only file's manifest cannot be read: {error}") from None
    bases = [each for each in found if each.type == BASE]
    increments = [each for each in found if each.type == INCREMENT]
    if len(bases) > 1 or increments != sorted(increments, key=lambda each: each.number):
        raise Corrupt("the append-only file's manifest contradicts itself")
    if not bases and not increments:
        raise Corrupt("the append-only file's manifest names no file")
    return (*bases, *increments)


def write_listing(files: Iterable[AofFile]) -> bytes:
    """Return a manifest that names these files."""
    return "".join(f"file {each.name} seq {each.number} type {each.type}\n" for each in files).encode()


def _files(text: str) -> Iterator[AofFile]:
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        words = shlex.split(line)
        said = dict(zip(words[::2], words[1::2], strict=True))
        if not {"file", "seq", "type"} <= set(said) or said["type"] not in _TYPES or not said["seq"].isdecimal():
            raise ValueError(f"a line of it is {line!r}")
        if not _NAME.fullmatch(said["file"]):
            raise ValueError(f"a file's name is {said['file']!r}")
        yield AofFile(said["file"], int(said["seq"]), said["type"])
