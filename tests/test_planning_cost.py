"""What it costs: the reference's own figures come out, each line is arithmetic that a person can check."""

from __future__ import annotations

from datetime import timedelta

import pytest
from attrs import evolve

from resilience.model.loads import BackupLoad, Load, LogLoad, RestoreLoad
from resilience.model.prices import AZURE_2024, GB, MINIMUM_DAYS
from resilience.model.retention import Keep, RetentionPolicy, RetentionRule, TierAt
from resilience.planning.cost import MONTH, estimate_cost, stays, tier_at
from resilience.reference import COLD, LOAD, NINETY_DAYS, PRICES, RETENTION, TIERS, YEARLY_COST

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
HOT, COOL = TierAt(tier="hot"), TierAt(tier="cool")


def policy(*rules: RetentionRule, log: tuple[TierAt, ...] = (HOT,)) -> RetentionPolicy:
    return RetentionPolicy(rules=rules, log_tiers=log)


def rule(kind: str, days: float, *tiers: TierAt, every: timedelta | None = None, at_least: int = 0) -> RetentionRule:
    keep = (Keep(lasting=days * DAY, every=every),)
    return RetentionRule(system="postgresql", kind=kind, keep=keep, tiers=tiers or (HOT,), at_least=at_least)


def load(size: int = GB, every: timedelta = DAY, *, kind: str = "base", builds_on: str | None = None) -> BackupLoad:
    return BackupLoad(system="postgresql", kind=kind, size=size, every=every, builds_on=builds_on)


def test_the_rent_of_what_lies_there_is_109_17() -> None:
    cost = estimate_cost(NINETY_DAYS, LOAD, PRICES.at_rest)
    assert cost.held == pytest.approx(20_520)
    assert [round(cost.of(tier=tier), 2) for tier in ("hot", "cool", "archive")] == [29.37, 52.44, 27.36]
    assert round(cost.monthly, 2) == 109.17
    assert cost.findings == ()


def test_with_the_minimum_durations_the_same_costs_179_85_which_is_over_the_goal() -> None:
    cost = estimate_cost(NINETY_DAYS, LOAD, PRICES, goal=YEARLY_COST)
    assert round(cost.monthly, 2) == 179.85
    assert round(cost.yearly) == 2158
    assert cost.monthly - estimate_cost(NINETY_DAYS, LOAD, PRICES.at_rest).monthly == pytest.approx(
        cost.of("paid but not used")
    )
    (goal,) = [finding for finding in cost.findings if finding.severity == "warning"]
    assert goal.text == "12 times $179.85 = $2,158.16 a year, $658.16 over the goal"
    assert [each.subject for each in cost.findings if each.severity == "note"] == ["tier cool", "tier archive"]


def test_with_what_r1_promises_it_is_149_28() -> None:
    assert round(estimate_cost(RETENTION, LOAD, PRICES).monthly, 2) == 149.28


def test_if_what_is_taken_hourly_is_really_a_full_dump_it_is_626_27() -> None:
    dumps = [evolve(each, size=50 * GB) if each.kind == "incremental" else each for each in LOAD.backups]
    cost = estimate_cost(NINETY_DAYS, evolve(LOAD, backups=tuple(dumps)), PRICES.at_rest)
    assert round(cost.monthly, 2) == 626.27


def test_a_goal_that_is_met_is_no_finding() -> None:
    cost = estimate_cost(NINETY_DAYS, LOAD, PRICES.at_rest, goal=YEARLY_COST)
    assert cost.yearly < YEARLY_COST and cost.findings == ()


def test_ninety_days_in_cold_cost_less_than_three_tiers_and_meet_the_goal() -> None:
    rules = tuple(evolve(each, tiers=COLD) for each in NINETY_DAYS.rules)
    tiered = estimate_cost(NINETY_DAYS, LOAD, AZURE_2024, goal=YEARLY_COST)
    cold = estimate_cost(RetentionPolicy(rules=rules), LOAD, AZURE_2024, goal=YEARLY_COST)
    assert cold.monthly < 0.55 * tiered.monthly
    assert cold.of("paid but not used") == 0
    assert [finding.severity for finding in cold.findings] == []


def test_what_lies_somewhere_too_short_is_paid_for_all_the_same() -> None:
    tiers = (HOT, TierAt(tier="cold", after=10 * DAY))
    cost = estimate_cost(policy(rule("base", 40, *tiers)), Load(backups=(load(),)), AZURE_2024)
    assert cost.of("storage", tier="hot") == pytest.approx(10 * 0.0208)
    assert cost.of("storage", tier="cold") == pytest.approx(30 * 0.0045)
    assert cost.of("paid but not used", tier="cold") == pytest.approx(60 * 0.0045)
    assert cost.held == pytest.approx(40)


def test_what_cannot_be_deleted_is_paid_for_longer_and_not_twice() -> None:
    kept = policy(rule("base", 20, COOL))
    plain = estimate_cost(kept, Load(backups=(load(),)), PRICES)
    held = estimate_cost(kept, Load(backups=(load(),), undeletable=14 * DAY), PRICES)
    assert plain.monthly == pytest.approx(30 * 0.01)
    assert held.monthly == pytest.approx(34 * 0.01)


def test_without_a_rule_it_grows_and_says_so() -> None:
    cost = estimate_cost(policy(), Load(backups=(load(),)), PRICES, forever=100 * DAY)
    assert cost.held == pytest.approx(100)
    assert [(each.severity, each.subject) for each in cost.findings] == [("warning", "postgresql base")]
    assert "grows by 30.4 GB a month for ever" in cost.findings[0].text


def test_of_what_is_kept_by_cadence_the_others_go_at_once() -> None:
    weekly = policy(rule("base", 70, every=7 * DAY))
    assert estimate_cost(weekly, Load(backups=(load(),)), PRICES).held == pytest.approx((6 * 1 + 70) / 7)
    at_least = policy(rule("base", 70, every=7 * DAY, at_least=3))
    assert estimate_cost(at_least, Load(backups=(load(),)), PRICES).held == pytest.approx((6 * 3 + 70) / 7)


def test_a_full_backup_lives_as_long_as_what_builds_on_it() -> None:
    backups = (load(100 * GB, 4 * DAY), load(kind="incremental", builds_on="base"))
    kept = policy(rule("base", 8), rule("incremental", 10))
    cost = estimate_cost(kept, Load(backups=backups), PRICES)
    # The last of four increments is taken three days after the full one and lives ten; the others wait for it.
    assert cost.of(subject="postgresql base") == pytest.approx(25 * 13 * 0.0184)
    assert cost.of(subject="postgresql incremental") == pytest.approx((13 + 12 + 11 + 10) / 4 * 0.0184)


def test_the_log_lives_as_long_as_the_oldest_backup_that_it_continues() -> None:
    log = LogLoad(system="postgresql", size=10 * GB, ratio=2, interval=None)
    kept = policy(rule("base", 20), log=(HOT, TierAt(tier="cool", after=5 * DAY)))
    cost = estimate_cost(kept, Load(backups=(load(),), logs=(log,)), PRICES.at_rest)
    assert cost.of(subject="postgresql log") == pytest.approx(5 * (5 * 0.0184 + 15 * 0.01))


def test_with_a_window_the_log_is_kept_for_that_and_so_are_the_backups_it_begins_at() -> None:
    log = LogLoad(system="postgresql", size=GB, interval=None)
    kept = evolve(policy(rule("base", 70, every=7 * DAY)), window=3 * DAY)
    cost = estimate_cost(kept, Load(backups=(load(),), logs=(log,)), PRICES)
    assert cost.of(subject="postgresql log") == pytest.approx(4 * 0.0184)
    assert cost.of(subject="postgresql base") == pytest.approx((6 * 4 + 70) / 7 * 0.0184)


def test_slices_cost_their_puts() -> None:
    log = LogLoad(system="postgresql", size=0, interval=5 * timedelta(seconds=1), active=0.5)
    cost = estimate_cost(policy(rule("base", 7)), Load(backups=(load(),), logs=(log,)), AZURE_2024)
    puts = 86400 / 5 / 2 * MONTH
    assert cost.of("writes", subject="postgresql log, slices") == pytest.approx(puts / 10_000 * 0.055)
    quiet = evolve(log, interval=timedelta(minutes=1))
    slower = estimate_cost(policy(rule("base", 7)), Load(backups=(load(),), logs=(quiet,)), AZURE_2024)
    assert slower.of("writes", subject="postgresql log, slices") == pytest.approx(puts / 12 / 10_000 * 0.055)


def test_blocks_are_written_to_hot_and_committed_to_their_tier() -> None:
    cost = estimate_cost(policy(rule("base", 30, COOL)), Load(backups=(load(640 << 20),)), AZURE_2024)
    by_tier = {line.tier: line.amount for line in cost.lines if line.item == "writes"}
    assert by_tier["cool"] == pytest.approx(10 * MONTH)
    assert by_tier["hot"] == pytest.approx((10 * 8 + 3) * MONTH)
    assert cost.of("tier changes") == 0


def test_moving_to_a_tier_is_a_write_there() -> None:
    cost = estimate_cost(policy(rule("base", 200, *TIERS)), Load(backups=(load(640 << 20),)), AZURE_2024)
    moved = {line.tier: line.dollars for line in cost.lines if line.item == "tier changes"}
    assert moved == pytest.approx({"cool": 10 * MONTH * 0.10 / 10_000, "archive": 10 * MONTH * 0.11 / 10_000})


def test_a_restore_from_archive_pays_for_getting_it_out_and_for_the_copy() -> None:
    restores = RestoreLoad(system="postgresql", kind="base", a_month=2, age=60 * DAY)
    kept, loads = policy(rule("base", 200, *TIERS)), Load(backups=(load(64 << 20),), restores=(restores,))
    subject = "postgresql restores"
    cost = estimate_cost(kept, loads, AZURE_2024)
    size = 2 / 16
    assert cost.of("retrieval", subject=subject) == pytest.approx(size * 0.022)
    assert cost.of("reads", tier="archive", subject=subject) == pytest.approx(2 * 5.50 / 10_000)
    assert cost.of("storage", tier="hot", subject=subject) == pytest.approx(size * 7 / MONTH * 0.0208)
    urgent = estimate_cost(kept, evolve(loads, restores=(evolve(restores, urgent=True),)), AZURE_2024)
    assert urgent.of("retrieval", subject=subject) == pytest.approx(size * 0.10)
    fresh = estimate_cost(kept, evolve(loads, restores=(evolve(restores, age=DAY),)), AZURE_2024)
    assert fresh.of("retrieval", subject=subject) == 0 and fresh.of("reads", subject=subject) > 0


def test_a_restore_of_an_increment_reads_the_full_backup_and_the_log_too() -> None:
    backups = (load(64 << 20), load(64 << 20, 6 * HOUR, kind="incremental", builds_on="base"))
    restores = (RestoreLoad(system="postgresql", kind="incremental", a_month=1),)
    log = LogLoad(system="postgresql", size=64 * (16 << 20), interval=None)
    kept = policy(rule("base", 5), rule("incremental", 5))
    cost = estimate_cost(kept, Load(backups=backups, logs=(log,), restores=restores), AZURE_2024)
    reads = sum(line.amount for line in cost.lines if line.item == "reads" and line.subject == "postgresql restores")
    assert reads == pytest.approx(1 + (4 + 1) / 2 + 64 / 4 / 2)
    with pytest.raises(ValueError, match="no load of postgresql dump"):
        wrong = (RestoreLoad(system="postgresql", kind="dump", a_month=1),)
        estimate_cost(kept, Load(backups=backups, restores=wrong), AZURE_2024)


def test_a_copy_in_another_region_costs_every_byte_that_is_sent() -> None:
    far = evolve(AZURE_2024, redundancy="GRS", replication=0.02)
    log = LogLoad(system="postgresql", size=GB, ratio=2, interval=None)
    cost = estimate_cost(policy(rule("base", 5)), Load(backups=(load(),), logs=(log,)), far)
    assert cost.of("replication") == pytest.approx(1.5 * MONTH * 0.02)


def test_a_tier_that_the_account_cannot_have_is_refused() -> None:
    with pytest.raises(ValueError, match="only LRS, GRS and RA-GRS have"):
        estimate_cost(NINETY_DAYS, LOAD, evolve(AZURE_2024, redundancy="ZRS"))
    with pytest.raises(ValueError, match="no price for the tier cold"):
        estimate_cost(policy(rule("base", 5, *COLD)), Load(backups=(load(),)), PRICES)


def test_the_minimum_durations_are_azures() -> None:
    assert MINIMUM_DAYS == {"hot": 0, "cool": 30, "cold": 90, "archive": 180}
    assert all(price.minimum.days == MINIMUM_DAYS[tier] for tier, price in AZURE_2024.tiers.items())
    assert all(price.minimum.days == MINIMUM_DAYS[tier] for tier, price in PRICES.tiers.items())


def test_where_something_lies_by_its_age() -> None:
    assert [(stay.tier, stay.days, stay.last) for stay in stays(TIERS, 12 * DAY)] == [
        ("hot", 7, False),
        ("cool", 5, True),
    ]
    assert [stay.tier for stay in stays(TIERS, timedelta(0))] == ["hot"]
    assert [tier_at(TIERS, days * DAY) for days in (0, 6.9, 7, 29, 30, 99)] == [
        "hot", "hot", "cool", "cool", "archive", "archive",
    ]  # fmt: skip


def test_an_estimate_shows_its_arithmetic() -> None:
    text = str(estimate_cost(NINETY_DAYS, LOAD, PRICES))
    assert text.startswith("$179.85 a month, $2,158.16 a year, for 20,520 GB; the platform's prices: East US, LRS")
    assert "postgresql base, archive, paid but not used: 6,000 GB at $0.002: $12.00" in text
