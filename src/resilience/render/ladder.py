"""Whether tiers by age can be had: what would make a chain unreadable, or the log, is refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import pairwise

from resilience.model.errors import Refused
from resilience.model.findings import Finding
from resilience.model.prices import WITHOUT_ARCHIVE, Redundancy
from resilience.model.retention import RetentionPolicy, Tier, TierAt

OPERATION = "render lifecycle rules"
ORDER: tuple[Tier, ...] = ("hot", "cool", "cold", "archive")


def check_tiers(tiers: Sequence[TierAt], subject: str, redundancy: Redundancy) -> None:
    """Raise Refused if rules cannot move something through these tiers."""
    why = ""
    if not tiers or tiers[0].after > timedelta(0):
        why = "the first tier is the one that is written to: it begins at the age 0"
    elif any(later.after <= earlier.after for earlier, later in pairwise(tiers)):
        why = "tiers are in the order of their ages"
    elif any(ORDER.index(later.tier) <= ORDER.index(earlier.tier) for earlier, later in pairwise(tiers)):
        why = "rules move to colder tiers only"
    elif any(each.after.seconds or each.after.microseconds for each in tiers):
        why = "rules know whole days only"
    elif redundancy in WITHOUT_ARCHIVE and any(each.tier == "archive" for each in tiers):
        why = f"an account with {redundancy} has no Archive tier: only LRS, GRS and RA-GRS have"
    elif tiers[0].tier == "archive":
        why = "what is written to Archive cannot be verified, nor built on, nor restored without waiting for hours"
    if why:
        raise Refused(why, operation=OPERATION, subject=subject)


def check_log(tiers: Sequence[TierAt], redundancy: Redundancy) -> None:
    """Raise Refused if the log could not be read during a recovery."""
    check_tiers(tiers, "log", redundancy)
    if any(each.tier == "archive" for each in tiers):
        raise Refused(
            "a recovery reads every segment of the log, and each would take hours to come out of Archive",
            operation=OPERATION,
            subject="log",
            hint="use cool or cold",
        )


def check_chains(policy: RetentionPolicy) -> Iterator[Finding]:
    """Raise Refused where a full backup would be in Archive before what builds on it; warn where that may happen."""
    for rule in policy.rules:
        base = policy.rule(rule.system, "base")
        if rule.kind != "incremental" or base is None:
            continue
        full, own = _archived(base.tiers), _archived(rule.tiers)
        longest = max((keep.lasting for keep in rule.keep), default=timedelta.max)
        online = min(own or longest, longest)
        subject = f"{rule.system} incremental"
        if full is None or full > online:
            continue
        if full < online:
            raise Refused(
                f"full backups are in Archive from {full.days} days on, and increments that build on them are to be "
                f"read at once until they are {online.days} days old",
                operation=OPERATION,
                subject=subject,
                hint="archive both at the same age, or neither",
            )
        text = f"an increment nearly {full.days} days old builds on a full backup that is older, and in Archive already"
        hint = "archive full backups later than increments, by as much as lies between two of them"
        yield Finding(severity="warning", subject=subject, text=text, hint=hint)


def in_words(tiers: Sequence[TierAt]) -> str:
    """Say where something lies by its age."""
    first, *later = tiers
    return ", ".join([f"written to {first.tier}", *(f"from day {each.after.days} on {each.tier}" for each in later)])


def _archived(tiers: Sequence[TierAt]) -> timedelta | None:
    """Return the age from which on something lies in Archive; None if it never does."""
    return next((each.after for each in tiers if each.tier == "archive"), None)
