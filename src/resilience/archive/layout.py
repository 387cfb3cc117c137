"""Where everything in an archive lies. Pure; docs/archive-format.md is its specification.

- `targets/<target>.json`: which system the name belongs to
- `<system>/<target>/manifests/<id>.json`: a backup exists if and only if this does
- `<system>/<target>/<kind>/<id>/<part>/<number>.zst`: the objects of a part, in order
- `<system>/<target>/runs/<id>/{started,ended}.json`: a trace of every attempt
- `<system>/<target>/history/<lineage>/<branch>.json`: a branch of the log and its parent
- `<system>/<target>/log/<lineage>/<branch>/<high>/<begins>-<ends>.zst`: a whole segment of the log
- `<system>/<target>/slices/<lineage>/<branch>/<segment>/<begins>-<ends>.zst`: a slice of an open segment
- `<system>/<target>/watermarks/<lineage>/<branch>/<high>/<until>-<time>.json`: how far the log is durable, newest first
- `<system>/<target>/gaps/<lineage>/<branch>/<begins>-<ends>.json`: a stretch that was acknowledged as lost
- `<system>/<target>/files/<lineage>/<name>.zst`: a small file beside the log

Offsets are 16 hexadecimal digits, `<high>` the first 8 of them. Those of watermarks, and their times, count down from
the largest there is, so that the newest is listed first.
"""

from __future__ import annotations

from resilience.model.ids import checked_id, checked_name

TARGETS = "targets/"
_LAST = (1 << 64) - 1
_NO_SYSTEM = ("targets",)
_NO_KIND = ("manifests", "runs", "history", "log", "slices", "watermarks", "gaps", "files")


def registration(target: str) -> str:
    """Return the key that says which system a target's name belongs to."""
    return f"{TARGETS}{checked_name(target)}.json"


def manifests(system: str, target: str) -> str:
    """Return the prefix of a target's manifests."""
    return f"{_place(system, target)}manifests/"


def manifest(system: str, target: str, backup: str) -> str:
    """Return the key of one manifest."""
    return f"{manifests(system, target)}{checked_id(backup)}.json"


def run(system: str, target: str, backup: str, moment: str) -> str:
    """Return the key of a run record; `moment` is `started` or `ended`."""
    return f"{_place(system, target)}runs/{checked_id(backup)}/{moment}.json"


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
    """Return the prefix of a branch's whole segments; `stretch(…)` and `.zst` follow."""
    return _log(system, target, "log", lineage, branch)


def slices(system: str, target: str, lineage: str, branch: str) -> str:
    """Return the prefix of a branch's slices; `sliced(…)` follows."""
    return _log(system, target, "slices", lineage, branch)


def watermarks(system: str, target: str, lineage: str, branch: str) -> str:
    """Return the prefix of a branch's watermarks; `descending(…)` and `.json` follow."""
    return _log(system, target, "watermarks", lineage, branch)


def gaps(system: str, target: str, lineage: str) -> str:
    """Return the prefix of a lineage's gaps; the branch, `/`, `between(…)` and `.json` follow."""
    return f"{_place(system, target)}gaps/{checked_name(lineage)}/"


def file(system: str, target: str, lineage: str, name: str) -> str:
    """Return the key of a small file beside a log."""
    return f"{_place(system, target)}files/{checked_name(lineage)}/{name}.zst"


def between(begins: int, ends: int) -> str:
    """Return how the name of a stretch begins or is."""
    return f"{begins:016X}-{ends:016X}"


def segment(begins: int, ends: int) -> str:
    """Return the name of a whole segment, below `segments(…)`."""
    return f"{begins >> 32:08X}/{between(begins, ends)}.zst"


def slice_of(segment: int, begins: int, ends: int) -> str:
    """Return the name of a slice, below `slices(…)`."""
    return f"{segment:016X}/{between(begins, ends)}.zst"


def watermark(until: int, milliseconds: int) -> str:
    """Return the name of a watermark recorded at a time, below `watermarks(…)`: the newest sorts first."""
    offset = _LAST - until
    return f"{offset >> 32:08X}/{offset:016X}-{_LAST - milliseconds:016X}.json"


def stretch(key: str) -> tuple[int, int]:
    """Return where the entry or gap of a key begins and ends. Raises ValueError."""
    begins, dash, ends = key.rpartition("/")[2].partition(".")[0].partition("-")
    if not dash or len(begins) != len(ends) != 16:
        raise ValueError(f"{key!r} names no stretch of a log")
    return int(begins, 16), int(ends, 16)


def _log(system: str, target: str, what: str, lineage: str, branch: str) -> str:
    return f"{_place(system, target)}{what}/{checked_name(lineage)}/{checked_name(branch)}/"


def _place(system: str, target: str) -> str:
    if system in _NO_SYSTEM:
        raise ValueError(f"{system!r} is no system: an archive keeps something else under that name")
    return f"{checked_name(system)}/{checked_name(target)}/"
