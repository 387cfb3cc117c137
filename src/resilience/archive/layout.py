"""Where everything in an archive lies. Pure; docs/archive-format.md is its specification.

- `targets/<target>.json`: which system the name belongs to
- `<system>/<target>/manifests/<id>.json`: a backup exists if and only if this does
- `<system>/<target>/<kind>/<id>/<part>/<number>.zst`: the objects of a part, in order
- `<system>/<target>/runs/<id>/{started,published,ended}.json`: a trace of every attempt
- `<system>/<target>/restores/<id>.json`: what a restore has measured
- `<system>/<target>/history/<lineage>/<branch>.json`: a branch of the log and its parent
- `<system>/<target>/log/<lineage>/<branch>/<high>/<begins>-<ends>.zst`: a whole segment of the log
- `<system>/<target>/slices/<lineage>/<branch>/<segment>/<begins>-<ends>.zst`: a slice of an open segment
- `<system>/<target>/watermarks/<lineage>/<branch>/<high>/<block>/<until>-<period>/<time>.json`: how far the log is
  durable, newest first
- `<system>/<target>/gaps/<lineage>/<branch>/<begins>-<ends>.json`: a stretch that was acknowledged as lost
- `<system>/<target>/files/<lineage>/<name>.zst`: a small file beside the log
- `<system>/<target>/keys/<name>/<key-encryption key>.json`: a data key, wrapped
- `<system>/<target>/retired/<id>.json`: a backup that was removed by who may

Offsets are 16 hexadecimal digits, `<high>` the first 8 of them. Those of watermarks, and their times, count down from
the largest there is, so that the newest is listed first. `<block>` is the first 11 digits of `<until>`, `<period>` the
first 10 of `<time>`: no folder gets so many names that a file system is slow to list it, however long a server is idle.

A store can only list what begins alike, so where a segment may begin is limited: it is not longer than the largest
power of two that divides its beginning, at most 1 GiB, or it ends in the 16 MiB that it begins in. PostgreSQL's all do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress

from resilience.model.ids import checked_id, checked_name

TARGETS = "targets/"
HIGH = 32
LARGEST_SEGMENT = 1 << 30
_BLOCK = 20
_PERIOD = 24
_NEAR = 24
_LAST = (1 << 64) - 1
_FILE = re.compile("[A-Za-z0-9_][A-Za-z0-9_.-]*")
_OFFSET = re.compile("[0-9A-F]{16}")
_STRETCH = re.compile(r"([0-9A-F]{16})-([0-9A-F]{16})\.zst")
_WATERMARK = re.compile(r"([0-9A-F]{16})-[0-9A-F]{10}/[0-9A-F]{16}\.json")
_DATA_KEY = re.compile(r"(backup|log|records)-([0-9]{8}T[0-9]{6}\.[0-9]{3}Z-[0-9a-f]{6})")
_KEK = re.compile("[a-z0-9][a-z0-9.-]{0,99}")
_NO_SYSTEM = ("targets",)
_NO_KIND = (
    *("manifests", "runs", "restores", "retired", "keys"),
    *("history", "log", "slices", "watermarks", "gaps", "files"),
)


def everything(system: str, target: str) -> str:
    """Return the prefix of all that an archive keeps of a target, but its registration."""
    return _place(system, target)


def is_kind(name: str) -> bool:
    """Tell whether a folder of that name, below `everything(…)`, holds the objects of backups."""
    return name not in _NO_KIND


def registration(target: str) -> str:
    """Return the key that says which system a target's name belongs to."""
    return f"{TARGETS}{checked_name(target)}.json"


def manifests(system: str, target: str) -> str:
    """Return the prefix of a target's manifests."""
    return f"{_place(system, target)}manifests/"


def manifest(system: str, target: str, backup: str) -> str:
    """Return the key of one manifest."""
    return f"{manifests(system, target)}{checked_id(backup)}.json"


def backup_of(key: str) -> str | None:
    """Return the id of the backup whose manifest has this key; None if no manifest has such a name."""
    with suppress(ValueError):
        return checked_id(key.rpartition("/")[2].removesuffix(".json"))
    return None


def runs(system: str, target: str) -> str:
    """Return the prefix of the run records of a target."""
    return f"{_place(system, target)}runs/"


def run(system: str, target: str, backup: str, moment: str) -> str:
    """Return the key of a run record; `moment` is `started`, `ended` or, of a sealed backup, `published`."""
    return f"{runs(system, target)}{checked_id(backup)}/{moment}.json"


def retired(system: str, target: str, backup: str) -> str:
    """Return the key of the record that a backup was removed."""
    return f"{_place(system, target)}retired/{checked_id(backup)}.json"


def data_keys(system: str, target: str) -> str:
    """Return the prefix of all data keys of a target."""
    return f"{_place(system, target)}keys/"


def data_key(system: str, target: str, name: str) -> str:
    """Return the prefix of one data key, however it is wrapped. Raises ValueError if that is no name of one."""
    if not _DATA_KEY.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a data key")
    return f"{data_keys(system, target)}{name}/"


def wrapped_key(system: str, target: str, name: str, kek: str) -> str:
    """Return the key of a data key that is wrapped with one key-encryption key."""
    if not _KEK.fullmatch(kek):
        raise ValueError(f"{kek!r} cannot be part of a key: the id of a key-encryption key is of a-z, 0-9, '.' and '-'")
    return f"{data_key(system, target, name)}{kek}.json"


def backup_key(backup: str) -> str:
    """Return the name of the data key that a backup is sealed with."""
    return f"backup-{checked_id(backup)}"


def wrapped(key: str) -> tuple[str, str] | None:
    """Return the names of the data key and the key-encryption key; None if no wrapped key is stored there."""
    *_, name, kek = key.split("/")
    kek = kek.removesuffix(".json")
    return (name, kek) if _DATA_KEY.fullmatch(name) and _KEK.fullmatch(kek) else None


FAILED = "-failed"
"""How the name of a restore's record ends that has measured nothing: whoever wants the others does not read it."""


def restores(system: str, target: str) -> str:
    """Return the prefix of what restores of a target have measured."""
    return f"{_place(system, target)}restores/"


def restore(system: str, target: str, id: str, *, failed: bool = False) -> str:
    """Return the key of what one restore has measured, or of why it failed."""
    return f"{restores(system, target)}{checked_id(id)}{FAILED if failed else ''}.json"


def backup(system: str, target: str, kind: str, backup: str) -> str:
    """Return the prefix of all objects of one backup."""
    if kind in _NO_KIND:
        raise ValueError(f"{kind!r} is no kind of backup: an archive keeps something else under that name")
    return f"{_place(system, target)}{checked_name(kind)}/{checked_id(backup)}/"


def data(prefix: str, part: str, number: int) -> str:
    """Return the key of the object `number` of a part, below `backup(…)`."""
    return f"{prefix}{part}/{number:06d}.zst"


def histories(system: str, target: str, lineage: str = "") -> str:
    """Return the prefix of all branches of a lineage; without one, of all lineages."""
    return f"{_place(system, target)}history/" + (f"{checked_name(lineage)}/" if lineage else "")


def history(system: str, target: str, lineage: str, branch: str) -> str:
    """Return the key that records a branch of a log."""
    return f"{histories(system, target, lineage)}{checked_name(branch)}.json"


def segments(system: str, target: str, lineage: str, branch: str) -> str:
    """Return the prefix of a branch's whole segments; `segment(…)` follows."""
    return _log(system, target, "log", lineage, branch)


def slices(system: str, target: str, lineage: str, branch: str) -> str:
    """Return the prefix of a branch's slices; `slice_of(…)` follows."""
    return _log(system, target, "slices", lineage, branch)


def watermarks(system: str, target: str, lineage: str, branch: str) -> str:
    """Return the prefix of a branch's watermarks; `watermark(…)` follows."""
    return _log(system, target, "watermarks", lineage, branch)


def gaps(system: str, target: str, lineage: str, branch: str = "") -> str:
    """Return the prefix of a lineage's gaps, or of a branch's; `gap(…)` follows."""
    return f"{_place(system, target)}gaps/{checked_name(lineage)}/" + (f"{checked_name(branch)}/" if branch else "")


def files(system: str, target: str, lineage: str) -> str:
    """Return the prefix of the small files beside a log."""
    return f"{_place(system, target)}files/{checked_name(lineage)}/"


def file(system: str, target: str, lineage: str, name: str) -> str:
    """Return the key of a small file beside a log."""
    if not _FILE.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a file beside a log: use letters, digits, '_', '.' and '-'")
    return f"{files(system, target, lineage)}{name}.zst"


def segment(begins: int, ends: int) -> str:
    """Return the name of a whole segment, below `segments(…)`. Raises ValueError if it could not be found there."""
    return f"{segment_at(_findable(begins, begins, ends))}{ends:016X}.zst"


def segment_at(begins: int) -> str:
    """Return how the name of a whole segment begins that begins there."""
    return f"{begins >> HIGH:08X}/{begins:016X}-"


def slice_of(segment: int, begins: int, ends: int) -> str:
    """Return the name of a slice, below `slices(…)`. Raises ValueError if it could not be found there."""
    return f"{slices_at(_findable(segment, begins, ends))}{begins:016X}-{ends:016X}.zst"


def slices_at(segment: int) -> str:
    """Return how the names of all slices begin whose segment begins there."""
    return f"{segment:016X}/"


def slices_about(offset: int) -> Iterator[str]:
    """Yield how the names of slices that hold an offset may begin, the likeliest first."""
    block = offset >> _NEAR << _NEAR
    yield f"{offset >> _NEAR:010X}"
    for power in range(_NEAR + 1, LARGEST_SEGMENT.bit_length()):
        if offset >> power << power != block:
            block = offset >> power << power
            yield slices_at(block)


def highs(begins: int, ends: int | None) -> Iterator[str]:
    """Yield, in order, how the names of all segments begin that may hold something between two offsets."""
    first, last = begins >> HIGH, ((1 << 64 if ends is None else ends) - 1) >> HIGH
    while first <= last:
        digits, size = 8, 1
        while digits and first % (size << 4) == 0 and first + (size << 4) - 1 <= last:
            digits, size = digits - 1, size << 4
        yield f"{first // size:0{digits}X}" if digits else ""
        first += size


def watermark(until: int) -> str:
    """Return the name of a watermark, below `watermarks(…)`; `at_time(…)` follows. The largest sorts first."""
    offset = _LAST - until
    return f"{offset >> HIGH:08X}/{offset >> _BLOCK:011X}/{offset:016X}-"


def at_time(milliseconds: int) -> str:
    """Return how the name of a watermark ends that was recorded at a time. The newest sorts first."""
    time = _LAST - milliseconds
    return f"{time >> _PERIOD:010X}/{time:016X}.json"


def gap(begins: int, ends: int) -> str:
    """Return the name of a gap of a branch, below `gaps(…)`."""
    return f"{begins:016X}-{ends:016X}.json"


def stretch(key: str) -> tuple[int, int] | None:
    """Return where the entry of a key begins and ends; None if no entry has such a name."""
    match = _STRETCH.fullmatch(key.rpartition("/")[2])
    return (int(match[1], 16), int(match[2], 16)) if match else None


def sliced(key: str) -> tuple[int, int, int] | None:
    """Return where the slice of a key begins and ends, and its segment begins; None if no slice has such a name."""
    numbers, segment = stretch(key), _OFFSET.fullmatch(key.split("/")[-2])
    return (*numbers, int(segment[0], 16)) if numbers and segment else None


def until(key: str) -> int | None:
    """Return where the watermark of a key ends; None if no watermark has such a name."""
    match = _WATERMARK.fullmatch("/".join(key.split("/")[-2:]))
    return _LAST - int(match[1], 16) if match else None


def _findable(segment: int, begins: int, ends: int) -> int:
    """Return the beginning of a segment if whatever of it lies between two offsets can be found again."""
    room = min(segment & -segment or LARGEST_SEGMENT, LARGEST_SEGMENT)
    if not 0 <= segment <= begins < ends <= _LAST or (
        ends - segment > room and segment >> _NEAR != (ends - 1) >> _NEAR
    ):
        raise ValueError(f"no segment of a log begins at {segment:X} and holds {begins:X} to {ends:X}")
    return segment


def _log(system: str, target: str, what: str, lineage: str, branch: str) -> str:
    return f"{_place(system, target)}{what}/{checked_name(lineage)}/{checked_name(branch)}/"


def _place(system: str, target: str) -> str:
    if system in _NO_SYSTEM:
        raise ValueError(f"{system!r} is no system: an archive keeps something else under that name")
    return f"{checked_name(system)}/{checked_name(target)}/"
