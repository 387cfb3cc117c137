"""Where everything in an archive lies. Pure; docs/archive-format.md is its specification.

- `targets/<target>.json`: which system the name belongs to
- `<system>/<target>/manifests/<id>.json`: a backup exists if and only if this does
- `<system>/<target>/<kind>/<id>/<part>/<number>.zst`: the objects of a part, in order
- `<system>/<target>/runs/<id>/{started,ended}.json`: a trace of every attempt
"""

from __future__ import annotations

from resilience.model.ids import checked_id, checked_name

TARGETS = "targets/"
_NO_SYSTEM = ("targets",)
_NO_KIND = ("manifests", "runs")


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


def _place(system: str, target: str) -> str:
    if system in _NO_SYSTEM:
        raise ValueError(f"{system!r} is no system: an archive keeps something else under that name")
    return f"{checked_name(system)}/{checked_name(target)}/"
