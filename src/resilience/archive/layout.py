"""Where everything in an archive lies. Pure; docs/archive-format.md is its specification.

targets/<target>.json                                    which system the name belongs to
<system>/<target>/manifests/<id>.json                    a backup exists if and only if this does
<system>/<target>/<kind>/<id>/<part>/<number>.zst        the objects of a part, in order
<system>/<target>/runs/<id>/{started,ended}.json         a trace of every attempt
"""

from __future__ import annotations

from resilience.model.ids import checked_id, checked_name

TARGETS = "targets/"

def registration(target: str) -> str:
    """Return the key that says which system a target's name belongs to."""
    return f"{TARGETS}{checked_name(target)}.json"


def manifests(system: str, target: str) -> str:
    """Return the prefix of a target's manifests."""
    return f"{system}/{checked_name(target)}/manifests/"


def manifest(system: str, target: str, backup: str) -> str:
    """Return the key of one manifest."""
    return f"{manifests(system, target)}{checked_id(backup)}.json"


def run(system: str, target: str, backup: str, moment: str) -> str:
    """Return the key of a run record; `moment` is `started` or `ended`."""
    return f"{system}/{checked_name(target)}/runs/{checked_id(backup)}/{moment}.json"


def backup(system: str, target: str, kind: str, backup: str) -> str:
    """Return the prefix of all objects of one backup."""
    return f"{system}/{checked_name(target)}/{kind}/{checked_id(backup)}/"


def data(prefix: str, part: str, number: int) -> str:
    """Return the key of the object `number` of a part, below `backup(…)`."""
    return f"{prefix}{part}/{number:06d}.zst"
