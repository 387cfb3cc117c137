"""Who of a group may be promoted: whose history is the primary's, and who has most of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from attrs import frozen

from resilience.model.findings import Finding, blocker
from resilience.model.groups import GroupFacts, MemberFacts, Sample
from resilience.model.show import as_bytes

from .ancestry import Line, contains, main_line, same_branch, shared


@frozen(kw_only=True)
class Standby:
    """A standby that can be looked at: `has` is up to where it has the primary's history.

    `parted` is what it has after that, bytes of another history. `why_not` says why it may not be promoted.
    """

    member: MemberFacts
    has: int
    parted: int = 0
    why_not: str = ""

    @property
    def name(self) -> str:
        """Its name."""
        return self.member.name


@frozen(kw_only=True)
class Muster:
    """All standbys of a group, compared with the history that its primary was writing (`main`).

    `primary` is who took writes last. `confirmed`: the primary itself was seen on that branch, now or by `sample`;
    `recorded` is how far it was then. A sample of another branch is left out. `astray` names those whose history has
    left the main line, and by how much.
    """

    primary: str
    main: Line | None
    standbys: tuple[Standby, ...] = ()
    sample: Sample | None = None
    recorded: int | None = None
    confirmed: bool = False
    astray: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def eligible(self) -> tuple[Standby, ...]:
        """Those who may be promoted."""
        return tuple(each for each in self.standbys if not each.why_not)

    @property
    def furthest(self) -> int:
        """How far the furthest standby has the primary's history, whether it may be promoted or not."""
        return max((each.has for each in self.standbys), default=0)

    def standby(self, name: str | None) -> Standby | None:
        """Return one of the standbys by its name."""
        return next((each for each in self.standbys if each.name == name), None)


def muster(facts: GroupFacts, sample: Sample | None, *, never: Sequence[str] = ()) -> Muster:
    """Compare the histories of all members that can be looked at.

    The main line is the youngest branch that descends from all others; where branches have parted, the one that the
    primary was seen on. On an older branch a higher position means nothing.
    """
    primary = facts.primary or (sample.primary if sample is not None else "")
    lineage = _lineage(facts, primary, sample)
    alike = [each for each in facts.members if each.reachable and each.lineage in ("", lineage)]
    lines = {each.name: line for each in alike if (line := Line.of(each)) is not None}
    recorded = _recorded(sample, lines)
    alive = next((lines.get(each.name) for each in alike if each.name == primary and each.role == "primary"), None)
    known = [*lines.values(), *([recorded] if recorded is not None else [])]
    main = alive or main_line(known) or lines.get(primary) or recorded
    if main is None:
        return Muster(primary=primary, main=None, findings=tuple(_parted_ways(lines)) if lines else ())
    standbys = tuple(
        _standby(each, lines.get(each.name), main, never, lineage)
        for each in facts.members
        if each.name != primary and each.reachable and each.role != "primary"
    )
    of_now = recorded is not None and same_branch(main, recorded)
    seen = [line for line in (lines.get(primary), recorded) if line is not None]
    return Muster(
        primary=primary,
        main=main,
        standbys=standbys,
        sample=sample if of_now else None,
        recorded=int(recorded.end.offset) if recorded is not None and of_now else None,
        confirmed=any(same_branch(main, line) for line in seen),
        astray=tuple(_astray(standbys, sample, recorded, main)),
        findings=() if of_now else tuple(_of_sample(sample, main)),
    )


def best(standbys: Sequence[Standby], *, preferred: Sequence[str] = (), sync: Sequence[str] = ()) -> Standby | None:
    """Return who has most; of equals the one that is preferred, then a synchronous one, then the first."""
    order = {name: place for place, name in enumerate(preferred)}
    return min(
        standbys,
        key=lambda each: (-each.has, order.get(each.name, len(order)), each.name not in sync),
        default=None,
    )


def _standby(member: MemberFacts, line: Line | None, main: Line, never: Sequence[str], lineage: str) -> Standby:
    if line is None:
        why = "it belongs to another system" if member.lineage not in ("", lineage) else "its history is not known"
        return Standby(member=member, has=0, why_not=why)
    common = shared(main, line) or 0
    # Whoever is on the branch of the main line may be further than anybody knew: that is no other history.
    ahead = same_branch(main, line)
    has = int(line.end.offset) if ahead else common
    parted = 0 if ahead or contains(main, line) else int(line.end.offset) - common
    why = next((each.text for each in member.findings if each.severity == "blocker"), "")
    if parted:
        why = f"its history has parted from the primary's: {as_bytes(parted)} of its own since"
    if member.name in never:
        why = "the policy never promotes it"
    return Standby(member=member, has=has, parted=parted, why_not=why)


def _lineage(facts: GroupFacts, primary: str, sample: Sample | None) -> str:
    """Which system the group is: what the primary says of itself, or did, or else most of the members."""
    seen = [*facts.members, *(sample.members if sample is not None else ())]
    own = next((each.lineage for each in seen if each.name == primary and each.lineage), "")
    count = Counter(each.lineage for each in facts.members if each.lineage)
    return own or (count.most_common(1)[0][0] if count else "")


def _recorded(sample: Sample | None, lines: dict[str, Line]) -> Line | None:
    """Return the primary's history as a sample has it; its branches may be known from others only."""
    if sample is None or sample.position is None:
        return None
    own = next((each.branches for each in sample.members if each.name == sample.primary), ())
    if own:
        return Line.up_to(own, sample.position)
    found = [Line.up_to(line.branches, sample.position) for line in lines.values()]
    known = {line.branches: line for line in found if line is not None}
    return next(iter(known.values())) if len(known) == 1 else None


def _astray(standbys: Sequence[Standby], sample: Sample | None, recorded: Line | None, main: Line) -> Iterator[str]:
    yield from (f"{each.name} ({as_bytes(each.parted)})" for each in standbys if each.parted)
    if sample is not None and recorded is not None and not same_branch(main, recorded) and not contains(main, recorded):
        yield f"{sample.primary} as it was recorded ({as_bytes(recorded.end.offset - (shared(main, recorded) or 0))})"


def _parted_ways(lines: dict[str, Line]) -> Iterator[Finding]:
    known = ", ".join(f"{name} at {line.end}" for name, line in lines.items())
    yield blocker(
        "history",
        f"the members' histories have parted, and nobody can tell which one is the primary's: {known}",
        "find out who took writes last, and take the others out of the group",
    )


def _of_sample(sample: Sample | None, main: Line) -> Iterator[Finding]:
    if sample is not None and sample.position is not None:
        yield Finding(
            severity="warning",
            subject="record",
            text=f"the last recorded state is of {sample.primary} at {sample.position}, the group is on "
            f"{main.end.branch}: it says nothing about what was acknowledged there",
            hint="keep a StateRecorder running, also after a failover",
        )
