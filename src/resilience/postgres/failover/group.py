"""What the looks at all members say about the group. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime

import asyncpg
from attrs import frozen

from resilience.model.errors import ResilienceError, TimedOut, Unreachable
from resilience.model.findings import Finding, blocker
from resilience.model.groups import GroupFacts, MemberFacts, Sighting, SyncSet
from resilience.model.json import Json
from resilience.model.show import as_bytes, as_span
from resilience.postgres.lsn import position
from resilience.postgres.members import PostgresMember
from resilience.postgres.survey import NEWEST, OLDEST

from .identity import HINT
from .looking import ASLEEP, Look
from .owners import owner
from .sync_names import ANYBODY

PROBE_SECONDS = 2
"""How long a standby waits for an answer when it knocks at the primary's door; libpq waits no shorter (34.1.2)."""
FRESH_SECONDS = 5.0
"""What a primary sent a standby so short a time ago says that it lives."""


@frozen(kw_only=True)
class Seen:
    """One member as it was looked at; without a look, the error says why.

    `free` are bytes on its disk; `elsewhere` says why its data directory is not that of the server that answers.
    """

    member: PostgresMember
    look: Look | None = None
    error: ResilienceError | None = None
    seconds: float = 0.0
    free: int | None = None
    elsewhere: str = ""


def group_facts(
    seen: Sequence[Seen], *, group: str, at: datetime, before: str = "", probes: Mapping[str, bool | None] | None = None
) -> GroupFacts:
    """Put the facts of a group together.

    `before` is who was primary when somebody looked last, `probes` what standbys found when they knocked at its door.
    """
    primary = primary_of(seen, before)
    members = tuple(member_facts(each, primary) for each in seen)
    return GroupFacts(
        group=group,
        system="postgresql",
        at=at,
        members=members,
        primary=primary,
        sync=_sync(seen, primary),
        sightings=tuple(_sightings(seen, primary, probes or {})),
        owner=next((name for each in seen if each.look and (name := _owner(each.look))), ""),
        findings=tuple(_group_findings(seen, primary)),
    )


def primary_of(seen: Sequence[Seen], before: str = "") -> str:
    """Name the member that takes writes, of several the latest history's; if none does, whom standbys receive from."""
    writing = [each for each in seen if each.look and not each.look.standby]
    if writing:
        return max(writing, key=lambda each: each.look.timeline if each.look else 0).member.name
    standbys = {each.member.name for each in seen if each.look}
    named = [name for each in seen if each.look for name in each.look.sources]
    candidates = [name for name in named if name not in standbys]
    return max(sorted(set(candidates)), key=candidates.count, default=before if before not in standbys else "")


def upstream_of(look: Look, primary: str) -> str:
    """Name the member that a standby receives from, or did before it was frozen; empty if it is no member."""
    return primary if primary in look.sources else next(iter(look.sources), "")


def member_facts(each: Seen, primary: str) -> MemberFacts:
    """Turn one look into facts."""
    look, name = each.look, each.member.name
    if look is None:
        return MemberFacts(name=name, problem=each.error.what if each.error else "nobody looked", free=each.free)
    return MemberFacts(
        name=name,
        role="standby" if look.standby else "primary",
        instance=look.instance,
        lineage=look.lineage,
        version=look.version,
        branches=look.branches,
        durable=position(look.timeline, look.durable),
        applied=position(look.timeline, look.applied),
        complete_at=look.complete_at if look.standby else look.now,
        writable=look.writable and not look.standby,
        upstream=upstream_of(look, primary) if look.standby else "",
        receiving=look.standby and look.receiving == "streaming",
        free=each.free,
        findings=tuple(_member_findings(each, look)),
        details=_details(look),
    )


def _details(look: Look) -> dict[str, Json]:
    details: dict[str, Json] = {
        "timeline": look.timeline,
        "application_name": look.application_name,
        "slots": [dict(each) for each in look.slots],
        "epoch": look.upstream.epoch,
    }
    if look.standby:
        return {
            **details,
            "backlog": look.durable - look.applied,
            "receiver": look.receiving or "none",
            "silent_seconds": None if look.silent is None else round(look.silent, 3),
            "frozen": look.upstream.frozen,
            "slot": look.slot_name,
            "paused": look.paused != "not paused",
            "apply_delay": look.delay,
        }
    return {
        **details,
        "standbys": [dict(each) for each in look.senders],
        "synchronous_standby_names": str(look.sync),
        "synchronous_commit": look.sync_commit,
    }


def _sync(seen: Sequence[Seen], primary: str) -> SyncSet | None:
    """Tell whom the primary waits for, by the names of members; None if it does not answer."""
    look = next((each.look for each in seen if each.member.name == primary and each.look), None)
    if look is None or look.standby:
        return None
    listed = [name for called in look.sync.names for name in _meant(called, look, seen, primary)]
    waits = look.sync_commit not in ("local", "off")
    return SyncSet(
        members=tuple(dict.fromkeys(listed)),
        needed=look.sync.needed if waits else 0,
        at=look.now,
        loaded_at=look.loaded,
    )


def _meant(called: str, look: Look, seen: Sequence[Seen], primary: str) -> list[str]:
    """Return everybody whom the primary takes for `called` (20.6.2): whoever is called so acknowledges a write.

    Names are compared without case, and several may have one. Who is no member, and one that is called like a member
    and is another, have a name that is none of a member: they may have a write, and nobody can ask them.
    """
    others = [each for each in seen if each.member.name != primary]
    known = {each.member.name: each.look.application_name.lower() for each in others if each.look and each.look.standby}
    streaming = Counter(str(each["name"]).lower() for each in look.senders)
    spare = streaming - Counter(known.values())  # standbys that nobody here has asked
    silent = {each.member.name.lower(): each.member.name for each in others if each.member.name not in known}
    if called == ANYBODY:
        strangers = [f"{name} ({number + 2})" for name, count in spare.items() for number in range(count)]
        return [*(each.member.name for each in others), *(name for name in strangers if name[:-4] not in silent)]
    here = [name for name, application in known.items() if application == called.lower()]
    twins = spare[called.lower()]
    if not here:
        absent = silent.get(called.lower(), f"{called} (?)" if called in known else called)
        here, twins = [absent], max(0, twins - 1)
    return [*here, *(f"{called} ({number + 2})" for number in range(twins))]


def _sightings(seen: Sequence[Seen], primary: str, probes: Mapping[str, bool | None]) -> list[Sighting]:
    found = []
    for each in seen:
        if each.member.name == primary:
            found.append(_from_here(each))
        elif each.look and each.look.standby and primary in each.look.sources:
            found.append(_from_standby(each.member.name, each.look, probes))
    return found


def _from_here(each: Seen) -> Sighting:
    if each.look is None:
        text = each.error.what if each.error else "nobody looked"
        if isinstance(each.error, (Unreachable, TimedOut)):
            # One that starts up is not dead, nor does it take writes.
            alive = None if isinstance(each.error.__cause__, asyncpg.CannotConnectNowError) else False
            return Sighting(vantage="here", alive=alive, text=text)
        return Sighting(vantage="here", alive=True, text=f"it answers, but does not let us in: {text}")
    if each.look.standby:
        return Sighting(vantage="here", alive=True, text="it answers, as a standby")
    return Sighting(vantage="here", alive=True, text=f"it answered in {as_span(each.seconds)}")


def _from_standby(name: str, look: Look, probes: Mapping[str, bool | None]) -> Sighting:
    """What a standby sees: what it receives, and what came of knocking at the primary's door."""
    silent = look.silent
    # What came while the standby knocked in vain came from a primary that lives, though it lets nobody in.
    fresh = FRESH_SECONDS if probes.get(name) is None else PROBE_SECONDS
    if look.receiving == "streaming" and silent is not None and silent <= fresh:
        return Sighting(vantage=name, alive=True, text=f"its WAL receiver heard from it {as_span(silent)} ago")
    if look.receiving is None:
        heard = "it is frozen" if look.upstream.frozen else "its WAL receiver gets no connection"
    else:
        heard = f"its WAL receiver has heard nothing for {as_span(silent)}"
    if name in probes:
        answer = {True: "the primary answers it", False: "the primary does not answer it", None: "it cannot ask"}
        return Sighting(vantage=name, alive=probes[name], text=f"{heard}; {answer[probes[name]]}")
    return Sighting(vantage=name, alive=None, text=heard)


_Check = tuple[str, bool, str, str]
"""How severe it is, whether it is so, what is said then, and what to do."""


def _member_findings(each: Seen, look: Look) -> list[Finding]:
    name = each.member.name
    major = int(look.version.split(".")[0].split("beta")[0].split("rc")[0].split("devel")[0])
    known = OLDEST <= major <= NEWEST
    # A standby that cannot be changed cannot be promoted; a primary could not be once it is a standby.
    fixed = "blocker" if look.standby else "warning"
    checks: list[_Check] = [
        ("blocker", not known, f"PostgreSQL {look.version} is not supported, {OLDEST} to {NEWEST} are", ""),
        (
            "warning",
            not look.rewindable,
            "neither checksums nor wal_log_hints: once it has diverged it must be rebuilt, not rewound",
            "ALTER SYSTEM SET wal_log_hints = on;  -- then restart the server",
        ),
        (
            fixed,
            bool(look.pinned),
            f"its command line sets {' and '.join(look.pinned)}, so that a failover cannot",
            "set it in postgresql.conf, and restart the server without it",
        ),
        (
            fixed,
            not look.alterable,
            "allow_alter_system is off, and a failover changes settings by ALTER SYSTEM",
            "set allow_alter_system = on in postgresql.conf, and reload it",
        ),
    ]
    if look.standby:
        checks += _standby_checks(each, look)
    lost = [slot for slot in look.slots if slot["status"] == "lost"]
    checks += [("warning", True, f"the slot {slot['name']} has lost WAL that it was to keep", "") for slot in lost]
    return [
        Finding(severity="blocker" if severity == "blocker" else "warning", subject=name, text=text, hint=hint)
        for severity, wrong, text, hint in checks
        if wrong
    ]


def _standby_checks(each: Seen, look: Look) -> list[_Check]:
    name, places = each.member.name, [look.sender] if look.sender else look.upstream.places
    return [
        (
            "warning",
            bool(places) and not look.sources,
            f"it receives from {', '.join(':'.join(place) for place in places)}, which is no member's address",
            "once its primary is dead it is no witness of that: have the dsn of a member name that very address",
        ),
        ("blocker", bool(each.elsewhere), each.elsewhere, HINT),
        (
            "warning",
            look.upstream.frozen,
            "it is frozen: it receives from nobody",
            "a failover is on its way, or one was given up: resume it, or have it follow its primary",
        ),
        (
            "warning",
            look.application_name.lower() != name,
            f"a primary knows it as {look.application_name}, not as {name}: its name changes when it follows",
            "",
        ),
        (
            "warning",
            not look.fetched and look.startup != ASLEEP,
            "it still applies what it had when it started: it has more than it shows",
            "wait until it has",
        ),
        ("warning", look.paused != "not paused", "replay is paused", "SELECT pg_wal_replay_resume();"),
        ("warning", look.delay not in ("0", "0ms"), f"it applies {look.delay} later: its data is old", ""),
        (
            "warning",
            look.target_timeline != "latest",
            f"recovery_target_timeline is {look.target_timeline}: it will not follow a new primary",
            "ALTER SYSTEM SET recovery_target_timeline = 'latest';",
        ),
    ]


def _group_findings(seen: Sequence[Seen], primary: str) -> list[Finding]:
    # Nobody plans around what a primary says of itself, so this stands in the way of the whole group.
    found = [blocker(primary, each.elsewhere, HINT) for each in seen if each.elsewhere and each.member.name == primary]
    writing = [each.member.name for each in seen if each.look and not each.look.standby]
    if len(writing) > 1:
        text = f"{' and '.join(writing)} take writes at once; {primary} has the latest history"
        hint = "fence all but one and rejoin them"
        found.append(blocker("two primaries", text, hint))
    lineages = {each.look.lineage for each in seen if each.look}
    if len(lineages) > 1:
        text = (
            f"its members are of {len(lineages)} different clusters (system identifiers {', '.join(sorted(lineages))})"
        )
        found.append(blocker("members", text, "check the dsn of each member"))
    if impatient := dict.fromkeys(who for each in seen if each.look for who in each.look.impatient):
        text = f"what {', '.join(impatient)} writes waits for no standby (synchronous_commit), and may be lost"
        found.append(Finding(severity="warning", subject="synchronous standbys", text=text))
    look = next((each.look for each in seen if each.member.name == primary and each.look), None)
    if look is not None and not look.standby:
        found += _primary_findings(seen, primary, look)
    return found


def _primary_findings(seen: Sequence[Seen], primary: str, look: Look) -> list[Finding]:
    found = []
    known = {each.look.application_name.lower() for each in seen if each.look and each.look.standby}
    streaming = {str(each["name"]).lower() for each in look.senders if each["state"] == "streaming"}
    strangers = [name for name in look.sync.names if name.lower() not in known and name != "*"]
    if strangers:
        text = f"synchronous_standby_names counts on {', '.join(strangers)}, no member that answers is called so"
        found.append(Finding(severity="warning", subject=primary, text=text))
    waiting = [name for name in look.sync.names if name.lower() in streaming]
    if look.sync.needed and not look.sync.names_anybody() and len(waiting) < look.sync.needed:
        names = ", ".join(look.sync.names)
        text = f"it waits for {look.sync.needed} of {names}, of which {len(waiting)} stream: commits hang"
        found.append(Finding(severity="warning", subject=primary, text=text))
    if look.sync.needed and look.sync.names_anybody():
        text = "synchronous_standby_names is *: whoever streams acknowledges writes, also one that is no member"
        found.append(Finding(severity="warning", subject=primary, text=text, hint="name the members there"))
    if look.sync_commit == "off":
        text = "synchronous_commit is off: what it acknowledged last is lost if it dies, even if it comes back"
        found.append(Finding(severity="warning", subject=primary, text=text, hint="turn it off where that is wanted"))
    if look.sync.needed and look.sync_commit in ("off", "local"):
        text = f"synchronous_commit is {look.sync_commit}: a write waits for none of {', '.join(look.sync.names)}"
        found.append(Finding(severity="warning", subject=primary, text=text))
    if look.sync.needed and look.sync_commit == "remote_write":
        text = "synchronous_commit is remote_write: what was acknowledged may be in a standby's memory only"
        found.append(Finding(severity="warning", subject=primary, text=text))
    kept = max((int(slot["kept"] or 0) for slot in look.slots if not slot["active"]), default=0)
    if kept > 1 << 30:
        text = f"a slot that nobody reads keeps {as_bytes(kept)} of WAL"
        found.append(Finding(severity="warning", subject=primary, text=text))
    return found


def _owner(look: Look) -> str:
    slots = [str(each["name"]) for each in look.slots]
    return owner(look.managed, libraries=look.libraries, applications=list(look.applications), slots=slots)
