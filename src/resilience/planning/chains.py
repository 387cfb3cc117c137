"""Which backups build on which: an incremental one is worth nothing without its parent, and its parent's parent."""

from __future__ import annotations

from collections.abc import Iterable

from resilience.model.errors import NotRecoverable, Refused
from resilience.model.manifests import Manifest

INCREMENTAL = "incremental"
"""The kind of every backup that has a parent."""

REPLAYABLE = ("base", INCREMENTAL)
"""The kinds of backup that a log can be replayed on."""


def chain_of(manifest: Manifest, known: Iterable[Manifest]) -> tuple[Manifest, ...]:
    """Return a backup and all that it builds on, oldest first; one that is complete in itself is alone.

    Raises NotRecoverable, naming the backup that is missing or does not fit.
    """
    by_id = {each.id: each for each in known}
    chain = [manifest]
    while (parent := chain[-1].parent) is not None:
        child = chain[-1]
        if parent not in by_id:
            raise _broken(manifest, f"{child.id} builds on {parent}, which the archive does not hold")
        chain.append(by_id[parent])
        if len({each.id for each in chain}) < len(chain):
            raise _broken(manifest, f"{parent} builds on itself")
        if not _same_history(child, chain[-1]):
            raise _broken(manifest, f"{child.id} builds on {parent}, which is a backup of something else")
    return tuple(reversed(chain))


def broken_chains(known: Iterable[Manifest]) -> dict[str, str]:
    """Return the ids of all backups whose chain is not whole, and why; each backup is looked at once."""
    by_id = {each.id: each for each in known}
    whole: set[str] = set()
    broken: dict[str, str] = {}
    for each in by_id.values():
        way: list[Manifest] = []
        on_it: set[str] = set()
        at, why = each, ""
        while at.id not in whole and not why:
            way.append(at)
            on_it.add(at.id)
            if at.id in broken:
                why = broken[at.id]
            elif at.parent is None:
                break
            elif at.parent not in by_id:
                why = f"{at.id} builds on {at.parent}, which the archive does not hold"
            elif at.parent in on_it:
                why = f"{at.parent} builds on itself"
            elif not _same_history(at, by_id[at.parent]):
                why = f"{at.id} builds on {at.parent}, which is a backup of something else"
            else:
                at = by_id[at.parent]
        if why:
            broken.update(dict.fromkeys((one.id for one in way), why))
        else:
            whole |= on_it
    return broken


def children_of(manifest: Manifest, known: Iterable[Manifest]) -> tuple[Manifest, ...]:
    """Return the backups that build on one directly."""
    return tuple(each for each in known if each.parent == manifest.id)


def refuse_to_orphan(manifest: Manifest, known: Iterable[Manifest]) -> None:
    """Raise Refused, naming them, if backups that are still there build on this one: they have to be retired first."""
    children = [child.id for child in children_of(manifest, known)]
    if children:
        raise Refused(
            f"{', '.join(children)} would be worth nothing without it",
            operation="retire",
            subject=f"{manifest.target} {manifest.id}",
            hint="retire what builds on it first",
        )


def _same_history(one: Manifest, other: Manifest) -> bool:
    return (one.target, one.system, one.lineage) == (other.target, other.system, other.lineage)


def _broken(manifest: Manifest, what: str) -> NotRecoverable:
    return NotRecoverable(
        what,
        operation="restore",
        subject=f"{manifest.target} {manifest.id}",
        hint="restore a backup whose chain is whole",
    )
