"""The lifecycle policy: every place we write to is in it, and no rule can break what prune would keep."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
from attrs import evolve

from resilience.archive import layout
from resilience.model.errors import Refused
from resilience.model.prices import AZURE_2024, Redundancy
from resilience.model.retention import Keep, RetentionPolicy, RetentionRule, Tier, TierAt
from resilience.reference import LOAD, NINETY_DAYS, RETENTION, TIERS
from resilience.render import Lifecycle, lifecycle_rules, upload_tiers
from resilience.render.lifecycle import KINDS, PLACES, REHYDRATED
from resilience.stores import azure_blob

DAY = timedelta(days=1)
TARGETS = {"orders": "postgresql", "cache": "redis", "logs": "mongodb"}
HOT = TierAt(tier="hot")
ID = "20261121T203000.000Z-3f9a1c"


def at(tier: Tier, days: float) -> TierAt:
    return TierAt(tier=tier, after=days * DAY)


def rule(system: str, kind: str, *tiers: TierAt, days: int = 90, at_least: int = 1) -> RetentionRule:
    keep = (Keep(lasting=days * DAY),)
    return RetentionRule(system=system, kind=kind, keep=keep, tiers=tiers or (HOT,), at_least=at_least)


def rendered(
    policy: RetentionPolicy = NINETY_DAYS, targets: Mapping[str, str] = TARGETS, redundancy: Redundancy = "LRS"
) -> Lifecycle:
    return lifecycle_rules(policy, container="backups", targets=targets, redundancy=redundancy)


def matching(lifecycle: Lifecycle, key: str) -> list[dict[str, Any]]:
    """Return the actions of the rules that Azure would apply to an object."""
    rules = json.loads(lifecycle.text)["rules"]
    return [
        each["definition"]["actions"]
        for each in rules
        if any(f"backups/{key}".startswith(prefix) for prefix in each["definition"]["filters"]["prefixMatch"])
    ]


def keys(target: str = "orders", system: str = "postgresql") -> dict[str, str]:
    """One key of everything that the layout can name."""
    whose = (system, target, "7400000000000000001")
    objects = {kind: layout.data(layout.backup(system, target, kind, ID), "base.tar", 0) for kind in KINDS[system]}
    return objects | {
        "targets": layout.registration(target),
        "manifests": layout.manifest(system, target, ID),
        "runs": layout.run(system, target, ID, "ended"),
        "restores": layout.restore(system, target, ID),
        "history": layout.history(*whose, "1"),
        "log": layout.segments(*whose, "1") + layout.segment(0, 1 << 24),
        "slices": layout.slices(*whose, "1") + layout.slice_of(0, 0, 4096),
        "watermarks": layout.watermarks(*whose, "1") + layout.watermark(4096) + layout.at_time(1),
        "gaps": layout.gaps(*whose, "1") + layout.gap(0, 4096),
        "files": layout.file(*whose, "00000002.history"),
        "keys": f"{system}/{target}/keys/{ID}/key.json",
        "retired": f"{system}/{target}/retired/{ID}.json",
    }


def test_everything_that_the_layout_names_has_one_place() -> None:
    assert set(layout._NO_KIND) <= set(PLACES)
    assert set(keys()) == {*PLACES, *KINDS["postgresql"], "targets"}
    lifecycle = rendered()
    for name, key in keys().items():
        places = [place.prefix for place in lifecycle.places if key.startswith(place.prefix)]
        assert len(places) == 1, name
        assert len(matching(lifecycle, key)) <= 1, name


def test_no_rule_removes_what_is_current() -> None:
    lifecycle = rendered()
    for name, key in keys().items():
        for actions in matching(lifecycle, key):
            assert "delete" not in actions.get("baseBlob", {}), name


def test_a_history_file_a_key_and_what_was_retired_are_never_touched_nor_are_their_versions() -> None:
    lifecycle = rendered()
    for name in ("history", "files", "keys", "retired", "gaps", "targets"):
        assert matching(lifecycle, keys()[name]) == [], name


def test_backups_move_through_their_tiers_and_so_do_their_versions_which_then_go() -> None:
    (actions,) = matching(rendered(), keys()["base"])
    since = "daysAfterModificationGreaterThan"
    assert actions["baseBlob"] == {
        "tierToCool": {since: 7},
        "tierToArchive": {since: 30, "daysAfterLastTierChangeGreaterThan": 7},
    }
    since = "daysAfterCreationGreaterThan"
    assert actions["version"] == actions["snapshot"]
    assert actions["version"]["tierToCool"] == {since: 7}
    assert actions["version"]["delete"] == {since: 90 + 30}


def test_manifests_and_the_log_stay_where_they_can_be_read() -> None:
    lifecycle = rendered()
    for name in ("manifests", "log", "runs", "slices", "watermarks"):
        (actions,) = matching(lifecycle, keys()[name])
        assert "baseBlob" not in actions, name
        assert set(actions["version"]) == {"delete"}
    assert matching(lifecycle, keys()["slices"])[0]["version"]["delete"] == {"daysAfterCreationGreaterThan": 31}


def test_the_log_has_tiers_of_its_own_but_never_archive() -> None:
    policy = evolve(NINETY_DAYS, log_tiers=(HOT, at("cool", 14)))
    (actions,) = matching(rendered(policy), keys()["log"])
    assert actions["baseBlob"] == {"tierToCool": {"daysAfterModificationGreaterThan": 14}}
    with pytest.raises(Refused, match="each would take hours to come out of Archive"):
        rendered(evolve(NINETY_DAYS, log_tiers=TIERS))


def test_copies_that_were_made_for_a_restore_go_after_a_week() -> None:
    assert REHYDRATED == azure_blob.REHYDRATED
    (actions,) = matching(rendered(), f"{REHYDRATED}{keys()['base']}")
    assert actions["baseBlob"] == {"delete": {"daysAfterModificationGreaterThan": 7}}


def test_what_is_written_to_cool_is_moved_there_if_it_was_not() -> None:
    policy = RetentionPolicy(rules=(rule("mongodb", "dump", at("cool", 0)),))
    (actions,) = matching(rendered(policy), "mongodb/logs/dump/x/y/000000.zst")
    assert actions["baseBlob"] == {"tierToCool": {"daysAfterModificationGreaterThan": 0}}


@pytest.mark.parametrize(
    ("tiers", "why"),
    [
        ((at("hot", 1),), "begins at the age 0"),
        ((), "begins at the age 0"),
        ((HOT, at("cold", 9), at("archive", 9)), "in the order of their ages"),
        ((HOT, at("cold", 9), at("cool", 30)), "to colder tiers only"),
        ((HOT, at("cool", 1.5)), "whole days only"),
        ((at("archive", 0),), "cannot be verified"),
    ],
)
def test_tiers_that_rules_cannot_do_are_refused(tiers: tuple[TierAt, ...], why: str) -> None:
    broken = evolve(rule("redis", "rdb"), tiers=tiers)
    with pytest.raises(Refused, match=why):
        rendered(RetentionPolicy(rules=(broken,)))


@pytest.mark.parametrize("redundancy", ["ZRS", "GZRS", "RA-GZRS"])
def test_accounts_without_archive_are_not_asked_for_it(redundancy: Redundancy) -> None:
    with pytest.raises(Refused, match="only LRS, GRS and RA-GRS have"):
        rendered(redundancy=redundancy)
    cool = RetentionPolicy(rules=(rule("redis", "rdb", HOT, at("cool", 7)),))
    assert rendered(cool, redundancy=redundancy).rules


def test_a_chain_whose_full_backup_would_be_offline_first_is_refused() -> None:
    increments = rule("postgresql", "incremental", HOT, at("cool", 7))
    broken = RetentionPolicy(rules=(rule("postgresql", "base", *TIERS), increments))
    with pytest.raises(Refused, match="full backups are in Archive from 30 days on"):
        rendered(broken)
    shorter = RetentionPolicy(
        rules=(rule("postgresql", "base", *TIERS), evolve(increments, keep=(Keep(lasting=29 * DAY),)))
    )
    assert not [finding for finding in rendered(shorter).findings if finding.severity == "warning"]


def test_a_chain_that_may_be_half_offline_for_a_day_is_warned_of() -> None:
    (warning,) = [each for each in rendered().findings if each.severity == "warning"]
    assert "nearly 30 days old builds on a full backup that is older, and in Archive already" in warning.text


def test_a_rule_removes_backups_only_where_an_age_says_it_all() -> None:
    alone = RetentionPolicy(rules=(rule("redis", "rdb", days=7, at_least=0),))
    lifecycle = lifecycle_rules(alone, container="backups", targets={"cache": "redis"}, expire=[("redis", "rdb")])
    (manifests,) = matching(lifecycle, layout.manifest("redis", "cache", ID))
    (objects,) = matching(lifecycle, layout.data(layout.backup("redis", "cache", "rdb", ID), "dump.rdb", 0))
    # The manifest goes first: what has a manifest has its objects, also while the account is at it.
    assert manifests["baseBlob"]["delete"] == {"daysAfterModificationGreaterThan": 7}
    assert objects["baseBlob"]["delete"] == {"daysAfterModificationGreaterThan": 9}


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        (RetentionPolicy(rules=(rule("redis", "rdb"),)), "a rule cannot count"),
        (RetentionPolicy(rules=(rule("redis", "rdb", at_least=0),), forever=frozenset([ID])), "knows no names"),
        (RetentionPolicy(rules=(rule("redis", "rdb", at_least=0),), window=DAY), "knows no chains"),
        (
            RetentionPolicy(
                rules=(evolve(rule("redis", "rdb", at_least=0), keep=(Keep(lasting=9 * DAY, every=DAY),)),)
            ),
            "the newest of its day or week",
        ),
        (
            RetentionPolicy(rules=(rule("redis", "rdb", at_least=0), rule("redis", "aof", at_least=0))),
            "manifests of other kinds",
        ),
    ],
)
def test_a_rule_that_could_remove_what_is_kept_is_refused(policy: RetentionPolicy, why: str) -> None:
    with pytest.raises(Refused, match=why):
        lifecycle_rules(policy, container="backups", targets={"cache": "redis"}, expire=[("redis", "rdb")])


def test_a_rule_that_would_break_a_chain_is_refused() -> None:
    policy = RetentionPolicy(rules=(rule("postgresql", "base", at_least=0),))
    with pytest.raises(Refused, match="a rule knows no chains"):
        lifecycle_rules(policy, container="b", targets={"orders": "postgresql"}, expire=[("postgresql", "base")])


def test_what_leaving_a_tier_too_soon_costs_is_said() -> None:
    lifecycle = lifecycle_rules(NINETY_DAYS, container="b", targets=TARGETS, prices=AZURE_2024, load=LOAD)
    said = [str(each) for each in lifecycle.findings]
    assert any(
        "lies 60 days in archive, and is paid for 180: 120 days of nothing, $0.0080 a GB" in each for each in said
    )
    assert any("of $201.86 a month $73.07 are for what is removed or moved on too soon" in each for each in said)
    without = [str(each) for each in rendered().findings]
    assert any("lies 23 days in cool, and is paid for 30 (" in each for each in without)


def test_what_no_rule_is_about_is_said() -> None:
    assert any(each.subject == "postgresql dump" and "for ever" in each.text for each in rendered().findings)


def test_azure_takes_at_most_ten_prefixes_a_rule_and_a_hundred_rules() -> None:
    many = {f"db-{number}": "postgresql" for number in range(90)}
    lifecycle = rendered(targets=many)
    definitions = [each["definition"] for each in json.loads(lifecycle.text)["rules"]]
    prefixes = [prefix for each in definitions for prefix in each["filters"]["prefixMatch"]]
    assert (
        len(prefixes) == len(set(prefixes)) and max(len(each["filters"]["prefixMatch"]) for each in definitions) == 10
    )
    assert len(lifecycle.rules) <= 100
    with pytest.raises(Refused, match="an account takes 100"):
        rendered(targets={f"db-{number}": "postgresql" for number in range(200)})


def test_names_of_rules_are_letters_and_digits_and_differ() -> None:
    names = [each["name"] for each in rendered(targets={"a.b": "postgresql", "a2eb": "redis", "a-b": "mongodb"}).rules]
    assert all(isinstance(name, str) and name.isalnum() and len(name) <= 256 for name in names)
    assert len(set(map(str, names))) == len(names)


def test_the_resource_is_what_arm_takes() -> None:
    lifecycle = rendered()
    body = lifecycle.resource
    assert body == {"properties": {"policy": json.loads(lifecycle.text)}}
    for each in json.loads(lifecycle.text)["rules"]:
        assert set(each) == {"name", "enabled", "type", "definition"}
        assert each["type"] == "Lifecycle"
        assert each["definition"]["filters"]["blobTypes"] == ["blockBlob"]
        assert each["definition"]["actions"]
        for actions in each["definition"]["actions"].values():
            assert set(actions) <= {"tierToCool", "tierToCold", "tierToArchive", "delete"}


def test_it_shows_every_place_in_words() -> None:
    text = str(rendered())
    assert (
        "postgresql/orders/base/: written to hot, from day 7 on cool, from day 30 on archive; prune removes it; "
        "previous versions are kept until 120 days after it was written"
    ) in text
    assert "postgresql/orders/history/: written to hot; nobody removes it; previous versions are kept for ever" in text


def test_the_tier_that_is_written_to_is_the_policys_first() -> None:
    policy = RetentionPolicy(
        rules=(rule("mongodb", "dump", at("cool", 0)), rule("postgresql", "base", *TIERS)), log_tiers=(at("cold", 0),)
    )
    assert upload_tiers(policy, targets={"orders": "postgresql", "logs": "mongodb"}) == {
        "mongodb/logs/dump/": "cool",
        "mongodb/logs/log/": "cold",
        "postgresql/orders/base/": "hot",
        "postgresql/orders/log/": "cold",
    }
    with pytest.raises(Refused, match="cannot be verified"):
        upload_tiers(RetentionPolicy(rules=(rule("redis", "rdb", at("archive", 0)),)), targets={"cache": "redis"})


def test_the_platforms_own_retention_can_be_rendered() -> None:
    systems = {rule.system for rule in RETENTION.rules}
    lifecycle = rendered(RETENTION, {f"{system}-one": system for system in systems})
    assert [each.subject for each in lifecycle.findings if each.severity == "warning"] == ["postgresql incremental"]
    for each in RETENTION.rules:
        assert any(place.prefix == f"{each.system}/{each.system}-one/{each.kind}/" for place in lifecycle.places)
