"""Who holds every acknowledged write: counted, not guessed."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from resilience.model.groups import SyncSet


@frozen
class Quorum:
    """Whether whoever has a history up to `needed` has every acknowledged write, and why (not)."""

    proven: bool
    needed: int = 0
    evidence: tuple[str, ...] = ()


def quorum(sync: SyncSet | None, has: Mapping[str, int], *, since: int | None) -> Quorum:
    """Decide whether those at hand must have every write that was acknowledged by `sync`.

    `has` is up to where each of those at hand has the primary's history. An acknowledged write is on at least k of the
    N members of the set, so if R of them are at hand and R + k > N, one of these has it, and then the furthest of them
    has it. Whether the k were any or the first ones makes no difference: the first may have been away.

    What was acknowledged under another set lies before `since`; so the furthest has to have that as well.
    """
    if sync is None:
        return Quorum(False, evidence=("who had to acknowledge a write is not known: nobody recorded it",))
    if sync.needed < 1:
        return Quorum(False, evidence=(f"a write was acknowledged by the primary alone: {sync}",))
    members = dict.fromkeys(sync.members)
    here = [name for name in members if name in has]
    count = f"{len(here)} + {sync.needed} {{}} {len(members)}"
    rests = f"a write is acknowledged by {sync}"
    if not here or len(here) + sync.needed <= len(members):
        absent = ", ".join(name for name in members if name not in has)
        text = f"those at hand ({', '.join(here) or 'none'}) need not have every write: {count.format('<=')}"
        return Quorum(False, evidence=(rests, f"{text}, without {absent}"))
    furthest = max(has[name] for name in here)
    if since is None:
        return Quorum(False, evidence=(rests, "since when that had been so is not recorded"))
    if furthest < since:
        text = f"since then {', '.join(here)} {'have' if len(here) > 1 else 'has'} not come as far as the primary was"
        return Quorum(False, evidence=(rests, text))
    proof = f"one of those at hand ({', '.join(here)}) has every write, so the furthest of them: {count.format('>')}"
    return Quorum(True, furthest, (rests, proof, *_assumed(sync)))


def _assumed(sync: SyncSet) -> tuple[str, ...]:
    changed = ("that the set was not changed after it was recorded",) if sync.recorded else ()
    taken = ", and ".join((*changed, "that no session turned waiting off (synchronous_commit = local or off)"))
    return (f"assumed: {taken}",)
