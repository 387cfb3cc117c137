"""What would make it cheaper: every suggestion is the difference of two estimates; nothing unmeasured is promised."""

from __future__ import annotations

from datetime import timedelta

import pytest
from attrs import evolve

from resilience.model.loads import BackupLoad, Load
from resilience.model.manifests import Manifest, StoredPart
from resilience.model.prices import AZURE_2024
from resilience.model.retention import RetentionPolicy
from resilience.planning.cost import estimate_cost
from resilience.planning.savings import Ratios, measured_load, measured_ratios, savings
from resilience.reference import COLD, LOAD, NINETY_DAYS, PRICES

from .plans import taken

DAY = timedelta(days=1)


def test_each_saving_is_the_difference_of_two_estimates() -> None:
    (tiers,) = [each for each in savings(NINETY_DAYS, LOAD, AZURE_2024) if "in cold" in each.what]
    cold = RetentionPolicy(rules=tuple(evolve(rule, tiers=COLD) for rule in NINETY_DAYS.rules))
    before = estimate_cost(NINETY_DAYS, LOAD, AZURE_2024).monthly
    after = estimate_cost(cold, LOAD, AZURE_2024).monthly
    assert tiers.before == pytest.approx(before) and tiers.after == pytest.approx(after)
    assert str(tiers).endswith(f"saves ${before - after:,.2f} of ${before:,.2f} a month (51%)")


def test_the_largest_comes_first_and_what_saves_nothing_is_not_said() -> None:
    found = savings(NINETY_DAYS, LOAD, PRICES, ratios=Ratios(compression=4, increment=0.1), offline=True)
    assert len(found) == 5
    assert [each.monthly for each in found] == sorted((each.monthly for each in found), reverse=True)
    cheap = RetentionPolicy(rules=tuple(evolve(rule, tiers=COLD) for rule in NINETY_DAYS.rules))
    assert not any("in cold" in each.what for each in savings(cheap, LOAD, AZURE_2024))


def test_what_was_not_measured_is_not_promised() -> None:
    said = [each.what for each in savings(NINETY_DAYS, LOAD, PRICES)]
    assert not any("compress" in what or "increments" in what for what in said)
    assert not any("compress" in each.what for each in savings(NINETY_DAYS, LOAD, PRICES, ratios=Ratios(compression=1)))


def test_compression_saves_what_it_was_measured_to() -> None:
    (saving,) = [
        each for each in savings(NINETY_DAYS, LOAD, PRICES, ratios=Ratios(compression=4)) if "4.0:1" in each.what
    ]
    assert saving.share == pytest.approx(0.75)


def test_increments_between_weekly_full_backups() -> None:
    daily = Load(backups=LOAD.backups[:1])
    policy = RetentionPolicy(rules=NINETY_DAYS.rules[:1])
    (saving,) = [
        each for each in savings(policy, daily, PRICES.at_rest, ratios=Ratios(increment=0.1)) if "week" in each.what
    ]
    # A week stores 1 + 7 times 0.1 instead of 7 full backups, and both wait for the last that needs them.
    assert 0.70 < saving.share < 1 - 1.7 / 7
    assert saving.caution


def test_offline_tiers_are_only_suggested_to_who_can_wait() -> None:
    assert not any("archive" in each.what for each in savings(NINETY_DAYS, LOAD, PRICES))
    (saving,) = [each for each in savings(NINETY_DAYS, LOAD, PRICES, offline=True) if "archive" in each.what]
    assert "15 hours" in saving.caution


def test_what_nothing_expires_is_expired_and_what_is_hourly_is_thinned_out() -> None:
    policy = RetentionPolicy(rules=tuple(rule for rule in NINETY_DAYS.rules if rule.system != "mongodb"))
    said = {each.what: each for each in savings(policy, LOAD, PRICES, keep=30 * DAY)}
    assert "let mongodb dump expire after 30 days" in said
    assert said["keep each redis rdb for a week, then one a day"].monthly > 0
    built = [evolve(each, builds_on="base") if each.kind == "incremental" else each for each in LOAD.backups]
    said = {each.what: each for each in savings(policy, evolve(LOAD, backups=tuple(built)), PRICES)}
    assert "the log" in said["keep each postgresql incremental for a week"].caution


def test_an_archive_says_what_it_holds_and_how_often_it_grows() -> None:
    full, again = taken(1, 0, ended=0), taken(4, 30, ended=60 * 48)
    small = [evolve(taken(n, n, parent=n - 1, ended=60 * hours), parts=_of(full, 10)) for n, hours in ((2, 6), (3, 12))]
    known = [evolve(full, parts=_of(full, 100)), *small, evolve(again, parts=_of(full, 120))]
    assert measured_ratios(known).increment == pytest.approx(0.1)
    assert measured_ratios(known).compression == pytest.approx(4)
    assert measured_load(known) == (
        BackupLoad(system=full.system, kind="base", size=110, every=2 * DAY),
        BackupLoad(system=full.system, kind="incremental", size=10, every=DAY / 4, builds_on="base"),
    )
    assert measured_load(known[:1]) == () and measured_ratios([]) == Ratios()


def _of(manifest: Manifest, stored: int) -> tuple[StoredPart, ...]:
    part = manifest.parts[0]
    return (evolve(part, size=4 * stored, objects=(evolve(part.objects[0], size=stored, frames=(stored,)),)),)
