"""The lifecycle policy of an Azure storage account, from the same RetentionPolicy that prune keeps to.

Such rules know ages and prefixes and nothing else, and run about once a day, in no order. So they move bytes between
tiers, and clear away previous versions, snapshots and rehydrated copies. What is a backup is left to prune: only it
knows chains, the newest few and what is kept for ever, and it removes a manifest before its objects.

Format: learn.microsoft.com/azure/storage/blobs/lifecycle-management-policy-structure, and the ARM type
Microsoft.Storage/storageAccounts/managementPolicies.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Literal

from attrs import evolve, field, frozen

from resilience.archive import layout
from resilience.model.errors import Refused
from resilience.model.findings import Finding
from resilience.model.ids import checked_name
from resilience.model.json import Json
from resilience.model.loads import DAY, Load
from resilience.model.prices import MINIMUM_DAYS, Prices, Redundancy
from resilience.model.retention import RetentionPolicy, RetentionRule, Tier, TierAt
from resilience.model.show import Shown
from resilience.planning.cost import estimate_cost, stays

from .ladder import OPERATION, check_chains, check_log, check_tiers, in_words

PREFIXES_A_RULE = 10
RULES = 100
"""What Azure allows."""
REHYDRATED = ".rehydrated/"
REHYDRATED_DAYS = 7
"""How long a copy lies there that was made for a restore."""
MANIFEST_FIRST = 2
"""Days by which manifests go before their objects, where a rule removes them: it runs about daily."""

KINDS: Mapping[str, tuple[str, ...]] = {"postgresql": ("base", "incremental", "dump")}
"""The kinds of backup that this library's systems write; a policy may name others."""

Kept = Literal["for ever", "as backups", "briefly"]
PLACES: Mapping[str, Kept] = {
    "manifests": "as backups",
    "runs": "as backups",
    "restores": "as backups",
    "retired": "for ever",
    "keys": "for ever",
    "history": "for ever",
    "gaps": "for ever",
    "files": "for ever",
    "log": "as backups",
    "slices": "briefly",
    "watermarks": "briefly",
}
"""How long previous versions are kept of what is no object of a backup; while it is current nothing of it is removed.

`.history` files lie in `history` and `files`. What nobody can make again and is small is kept for ever.
"""


@frozen(kw_only=True)
class Place(Shown):
    """One prefix of the archive and what the rules do there: where it lies by its age, and what removes it.

    `versions` is for how many days from when it was written a previous version or snapshot is kept, None for ever.
    """

    prefix: str
    tiers: tuple[TierAt, ...] = (TierAt(tier="hot"),)
    removed_by: str = "prune"
    removed_after: int | None = None
    versions: int | None = None

    def __str__(self) -> str:
        gone = f"{self.removed_by} removes it"
        if self.removed_after is not None:
            gone += f" after {self.removed_after} days"
        versions = "for ever" if self.versions is None else f"until {self.versions} days after it was written"
        return f"{self.prefix}: {in_words(self.tiers)}; {gone}; previous versions are kept {versions}"


@frozen(kw_only=True)
class Lifecycle(Shown):
    """The rules of a storage account, every place in the archive with what they do there, and what to know of it."""

    rules: tuple[dict[str, Json], ...] = field(repr=False)
    places: tuple[Place, ...]
    findings: tuple[Finding, ...] = ()

    @property
    def text(self) -> str:
        """The policy as JSON, as `az storage account management-policy create --policy` takes it."""
        return json.dumps({"rules": self.rules}, indent=2)

    @property
    def resource(self) -> dict[str, Json]:
        """The body of the ARM resource managementPolicies/default. It replaces all rules that the account has."""
        return {"properties": {"policy": {"rules": list(self.rules)}}}

    def __str__(self) -> str:
        head = f"{len(self.rules)} lifecycle rules for {len(self.places)} places"
        return "\n  ".join([head, *map(str, self.places), *map(str, self.findings)])


def lifecycle_rules(
    policy: RetentionPolicy,
    *,
    container: str,
    targets: Mapping[str, str],
    redundancy: Redundancy = "LRS",
    undo: timedelta = 30 * DAY,
    expire: Collection[tuple[str, str]] = (),
    prices: Prices | None = None,
    load: Load | None = None,
) -> Lifecycle:
    """Render the rules for an archive in `container`, whose `targets` are names with their systems.

    Previous versions and snapshots of what may be pruned are kept until they are `undo` older than the oldest backup
    that the policy wants. `expire` names kinds (system, kind) that the rules shall remove themselves, where nobody runs
    prune: refused wherever an age alone is not safe. With `prices`, and a `load`, findings say what it costs to leave a
    tier too soon.

    Raises Refused for what would make a chain unreadable or break it, archive WAL, use a tier that the account cannot
    have, or exceed what Azure allows.
    """
    for rule in policy.rules:
        check_tiers(rule.tiers, f"{rule.system} {rule.kind}", redundancy)
    check_log(policy.log_tiers, redundancy)
    places = [Place(prefix=f"{layout.TARGETS}", removed_by="nobody"), Place(prefix=REHYDRATED, removed_by="a rule")]
    places[1] = evolve(places[1], removed_after=REHYDRATED_DAYS, versions=1)
    for target, system in sorted(targets.items()):
        places += _places(policy, system, checked_name(target), undo, expire)
    rules = tuple(_rules(container, places))
    if len(rules) > RULES:
        text = f"these are {len(rules)} rules, an account takes {RULES}"
        raise Refused(text, operation=OPERATION, hint="spread the targets over several storage accounts")
    findings = [
        *check_chains(policy),
        *_short(policy, prices),
        *_costs(policy, load, prices),
        *_unruled(policy, targets),
    ]
    return Lifecycle(rules=rules, places=tuple(places), findings=(*findings, _DAILY))


def upload_tiers(policy: RetentionPolicy, *, targets: Mapping[str, str]) -> dict[str, Tier]:
    """Return the tier that objects are written to, by the prefix of their keys: what `AzureBlobStore(tiers=…)` takes.

    Records are not in it: they are written to the account's default, which should be Hot. Raises Refused for a policy
    that writes to Archive.
    """
    found: dict[str, Tier] = {}
    for target, system in sorted(targets.items()):
        root = f"{checked_name(system)}/{checked_name(target)}/"
        for rule in policy.rules:
            if rule.system == system:
                check_tiers(rule.tiers, f"{system} {rule.kind}", "LRS")
                found[f"{root}{rule.kind}/"] = rule.tiers[0].tier
        check_log(policy.log_tiers, "LRS")
        found[f"{root}log/"] = policy.log_tiers[0].tier
    return found


_DAILY = Finding(
    severity="note",
    subject="lifecycle",
    text="the account runs its rules about once a day, and a change takes up to 24 hours to begin with; they remove no "
    "backup, no manifest and no log: that is for prune",
    hint="run prune daily; turn soft delete on: it is what brings back what was removed by mistake",
)


def _places(
    policy: RetentionPolicy, system: str, target: str, undo: timedelta, expire: Collection[tuple[str, str]]
) -> Iterator[Place]:
    """Yield every place of a target: the kinds of backup, then all the rest."""
    rules = {rule.kind: rule for rule in policy.rules if rule.system == system}
    versions = _days(_oldest(policy, system) + undo) if rules else None
    root = f"{checked_name(system)}/{target}/"
    expiring = {kind for its, kind in expire if its == system}
    for kind in dict.fromkeys((*KINDS.get(system, ()), *rules)):
        place = Place(prefix=f"{root}{kind}/", removed_by="nobody")
        if (rule := rules.get(kind)) is not None:
            place = evolve(place, tiers=rule.tiers, removed_by="prune", versions=versions)
            if kind in expiring:
                gone = _expires(policy, rule, expiring)
                place = evolve(place, removed_by="a rule", removed_after=gone + MANIFEST_FIRST)
        yield place
    for name, kept in PLACES.items():
        days = {"for ever": None, "as backups": versions, "briefly": _days(policy.grace + undo)}
        place = Place(prefix=f"{root}{name}/", versions=days[kept])
        if name == "log":
            place = evolve(place, tiers=policy.log_tiers)
        if name in ("history", "keys", "retired"):
            place = evolve(place, removed_by="nobody")
        if name in ("manifests", "runs") and expiring:
            place = evolve(place, removed_by="a rule", removed_after=_expires(policy, rules[min(expiring)], expiring))
        yield place


def _expires(policy: RetentionPolicy, rule: RetentionRule, expiring: Collection[str]) -> int:
    """Return after how many days an age alone says that a backup of a kind can go. Raises Refused if it cannot."""
    same = [each for each in policy.rules if each.system == rule.system]
    (keep, *more) = rule.keep or (None,)
    why = ""
    if rule.at_least:
        why = f"the {rule.at_least} newest stay however old they are, and a rule cannot count"
    elif policy.forever:
        why = "some are kept for ever by name, and a rule knows no names"
    elif policy.window is not None or {"base", "incremental"} & {each.kind for each in same}:
        why = "others, or a log, may build on them, and a rule knows no chains"
    elif keep is None or more or keep.every is not None:
        why = "which of them is the newest of its day or week, a rule cannot know"
    elif {each.kind for each in same} != set(expiring) or len({each.keep for each in same}) > 1:
        why = "manifests of other kinds, which stay, lie in the same place as theirs"
    if why or keep is None:
        subject = f"{rule.system} {rule.kind}"
        raise Refused(f"age alone cannot remove them: {why}", operation=OPERATION, subject=subject, hint="run prune")
    return _days(keep.lasting)


def _oldest(policy: RetentionPolicy, system: str) -> timedelta:
    """Return how old the oldest backup of a system is that its rules want."""
    spans = [keep.lasting for rule in policy.rules if rule.system == system for keep in rule.keep]
    return max([*spans, policy.window or timedelta(0), policy.grace])


def _days(span: timedelta) -> int:
    return -(-span // DAY)


def _rules(container: str, places: Sequence[Place]) -> Iterator[dict[str, Json]]:
    """Yield one rule for all places that are treated alike, and more of them where that are too many prefixes."""
    alike: dict[str, list[Place]] = {}
    for place in places:
        if _actions(place):
            alike.setdefault(json.dumps(_actions(place)), []).append(place)
    for some in alike.values():
        for start in range(0, len(some), PREFIXES_A_RULE):
            chosen = some[start : start + PREFIXES_A_RULE]
            yield {
                "name": f"resilience{_letters(chosen[0].prefix)}",
                "enabled": True,
                "type": "Lifecycle",
                "definition": {
                    "actions": _actions(chosen[0]),
                    "filters": {
                        "blobTypes": ["blockBlob"],
                        "prefixMatch": [f"{container}/{each.prefix}" for each in chosen],
                    },
                },
            }


def _letters(prefix: str) -> str:
    """Return a name that Azure takes for a rule: letters and digits, and as different as the prefixes are."""
    return re.sub("[^a-z0-9]", lambda found: f"{ord(found[0]):X}" if found[0] != "/" else "X", prefix)


def _actions(place: Place) -> dict[str, Json]:
    """Return what is done at one place; empty: nothing."""
    since = "daysAfterCreationGreaterThan"
    current = _tiering(place.tiers, "daysAfterModificationGreaterThan")
    previous = _tiering(place.tiers, since)
    if place.removed_after is not None:
        current["delete"] = {"daysAfterModificationGreaterThan": place.removed_after}
    if place.versions is not None:
        previous["delete"] = {since: place.versions}
    found = {"baseBlob": current, "version": previous, "snapshot": previous}
    return {what: actions for what, actions in found.items() if actions}


def _tiering(tiers: Sequence[TierAt], since: str) -> dict[str, Json]:
    found: dict[str, Json] = {}
    for each in tiers:
        if each.tier == "hot":
            continue
        days: dict[str, Json] = {since: _days(each.after)}
        if each.tier == "archive":
            days["daysAfterLastTierChangeGreaterThan"] = REHYDRATED_DAYS
        found[f"tierTo{each.tier.capitalize()}"] = days
    return found


def _short(policy: RetentionPolicy, prices: Prices | None) -> Iterator[Finding]:
    """Say of every tier that is left too soon what that costs."""
    for rule in policy.rules:
        lasting = max((keep.lasting for keep in rule.keep), default=None)
        if lasting is None:
            continue
        for stay in stays(rule.tiers, lasting):
            unused = MINIMUM_DAYS[stay.tier] - stay.days
            if unused <= 0:
                continue
            text = f"lies {stay.days:g} days in {stay.tier}, and is paid for {MINIMUM_DAYS[stay.tier]}"
            if prices is not None:
                price = prices.of(stay.tier).storage
                dollars = unused * price
                text += f": {unused:g} days of nothing, ${dollars / 30:.4f} a GB ({unused:g}/30 of ${price:g})"
            hint = "keep it longer there, or not at all: savings() compares"
            yield Finding(severity="note", subject=f"{rule.system} {rule.kind}", text=text, hint=hint)


def _costs(policy: RetentionPolicy, load: Load | None, prices: Prices | None) -> Iterator[Finding]:
    if load is not None and prices is not None:
        cost = estimate_cost(policy, load, prices)
        if wasted := cost.of("paid but not used"):
            text = f"of ${cost.monthly:,.2f} a month ${wasted:,.2f} are for what is removed or moved on too soon"
            yield Finding(
                severity="warning", subject="early deletion", text=text, hint="savings() compares other tiers"
            )


def _unruled(policy: RetentionPolicy, targets: Mapping[str, str]) -> Iterator[Finding]:
    for system in sorted(set(targets.values())):
        ruled = {rule.kind for rule in policy.rules if rule.system == system}
        for kind in KINDS.get(system, ()):
            if kind not in ruled:
                text = "no rule is about it: it stays where it is written, for ever, and so do its previous versions"
                yield Finding(severity="note", subject=f"{system} {kind}", text=text)
