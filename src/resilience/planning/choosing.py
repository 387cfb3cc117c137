"""Whom to promote, and why: as a plan is made, and once more when nothing moves any more."""

from __future__ import annotations

from collections.abc import Sequence

from resilience.model.failover import FailoverPlan, FailoverPolicy
from resilience.model.groups import SyncSet

from .candidates import Muster, Standby, best


def choose(
    found: Muster, eligible: Sequence[Standby], policy: FailoverPolicy, sync: SyncSet | None
) -> tuple[Standby | None, str]:
    """Choose who has most of the history; among equals whom the policy prefers, then who acknowledges writes."""
    members = sync.members if sync is not None else ()
    chosen = best(eligible, preferred=policy.preferred, sync=members)
    if chosen is None:
        return None, _nobody(found)
    equals = [each.name for each in eligible if each.has == chosen.has and each.name != chosen.name]
    others = [each for each in eligible if each.has < chosen.has]
    chosen = found.standby(chosen.name) or chosen
    if equals:
        reason = "the policy prefers it" if chosen.name in policy.preferred else "it is named first"
        if chosen.name not in policy.preferred and chosen.name in members and not set(equals) <= set(members):
            reason = "it is a synchronous standby"
        return chosen, f"{chosen.name} has as much as {' and '.join(equals)}, and {reason}"
    if others:
        second = max(others, key=lambda each: each.has)
        return chosen, f"{chosen.name} has most of the history, {chosen.member.durable}; next is {second.name}"
    return chosen, f"{chosen.name} is the only one that can be promoted, at {chosen.member.durable}"


def choose_asked(found: Muster, to: str) -> tuple[Standby | None, str]:
    """Choose the one that was asked for, if it can be promoted."""
    named = found.standby(to)
    if named is None or named.why_not:
        why = named.why_not if named is not None else "it is no standby that can be looked at"
        return None, f"{to} was asked for, and cannot be promoted: {why}"
    return named, f"{to} was asked for"


def choose_again(plan: FailoverPlan, found: Muster) -> tuple[Standby | None, str]:
    """Choose once more: the planned one, unless somebody else has more by now."""
    planned = found.standby(plan.candidate)
    if plan.asked or plan.kind == "switchover":
        if planned is None or planned.why_not:
            why = planned.why_not if planned is not None else "nobody can look at it any more"
            return None, f"{plan.candidate} cannot be promoted any more: {why}"
        return planned, f"{planned.name} was planned, and stands at {planned.member.durable}"
    most = best(found.eligible, preferred=plan.policy.preferred)
    if most is None:
        return None, _nobody(found)
    if planned is not None and not planned.why_not and planned.has >= most.has:
        return planned, f"{planned.name} has the most, at {planned.member.durable}, as planned"
    gone = planned.why_not if planned is not None else "nobody can look at it any more"
    behind = planned is not None and not planned.why_not
    reason = f"{plan.candidate} is behind it" if behind else f"{plan.candidate} cannot be promoted: {gone}"
    return most, f"{most.name} has the most, at {most.member.durable}; {reason}"


def survivors(sync: SyncSet | None, found: Muster, candidate: str | None) -> list[str]:
    """Return who of the synchronous standbys is left to acknowledge writes once `candidate` is the primary."""
    if sync is None or not sync.needed:
        return []
    here = {each.name for each in found.standbys if not each.parted}
    return [name for name in dict.fromkeys(sync.members) if name != candidate and name in here]


def _nobody(found: Muster) -> str:
    reasons = [f"{each.name}: {each.why_not}" for each in found.standbys if each.why_not]
    return "nobody can be promoted: " + ("; ".join(reasons) or "no standby can be looked at")
