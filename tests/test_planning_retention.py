"""What goes and what stays: rules as values, and every history that can be thought of against a brute-force model.

The model shares no code with the planning: it counts bytes, one by one, and walks from branch to branch by hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from attrs import evolve, field, frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from resilience import reference
from resilience.model.errors import Refused
from resilience.model.findings import Doubt
from resilience.model.log import Gap, Watermark
from resilience.model.manifests import Manifest
from resilience.model.pruning import PrunePlan
from resilience.model.retention import Keep, RetentionPolicy, RetentionRule
from resilience.model.stock import ArchiveFacts, BackupObjects, LogObjects, StoredEntry, StoredRecord
from resilience.planning.retention import common, plan_prune, ranked

from .plans import at, fork, gap, name, place, taken

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)


def rule(*keep: Keep, kind: str = "base", at_least: int = 1) -> RetentionRule:
    return RetentionRule(system="memory", kind=kind, keep=keep, at_least=at_least)


def policy(
    *rules: RetentionRule, grace: float = 5, window: float | None = None, forever: Sequence[str] = ()
) -> RetentionPolicy:
    return RetentionPolicy(
        rules=rules,
        forever=frozenset(forever),
        grace=grace * MINUTE,
        window=None if window is None else window * MINUTE,
    )


def lasting(minutes: float, every: float | None = None) -> Keep:
    return Keep(lasting=minutes * MINUTE, every=None if every is None else every * MINUTE)


def stored(begins: int, ends: int, *, segment: int | None = None, written: float | None = None) -> StoredEntry:
    return StoredEntry(begins, ends, ends - begins, at(ends if written is None else written), segment)


def log(entries: Mapping[str, Sequence[StoredEntry]], *forks: object, gaps: Sequence[Gap] = ()) -> LogObjects:
    return LogObjects(lineage="1", branches=forks, gaps=tuple(gaps), entries=entries)  # type: ignore[arg-type]


def lies(manifest: Manifest) -> BackupObjects:
    return BackupObjects(
        id=manifest.id, kind=manifest.kind, objects=1, bytes=10, newest=manifest.ended_at, manifest=True
    )


def decided(
    known: Sequence[Manifest],
    how: RetentionPolicy,
    *,
    now: float,
    logs: Sequence[LogObjects] = (),
    also: Sequence[BackupObjects] = (),
    doubts: Sequence[Doubt] = (),
) -> PrunePlan:
    facts = ArchiveFacts(target="orders", system="memory", backups=(*map(lies, known), *also), logs=tuple(logs))
    return plan_prune(known, facts, how, now=at(now), doubts=doubts)


def reasons(plan: PrunePlan) -> dict[str, str]:
    return {each.backup: each.reason for each in plan.backups}


def test_each_stays_until_it_is_old_and_the_newest_stay_however_old_they_are() -> None:
    known = [taken(number, 10 * number) for number in range(1, 6)]
    plan = decided(known, policy(rule(lasting(25), at_least=1)), now=60)
    assert plan.kept == (name(5), name(4))
    assert reasons(plan)[name(4)] == "until it is 25 min old"
    assert reasons(plan)[name(3)] == "30 min old, past 25 min"
    late = decided(known, policy(rule(lasting(25), at_least=2)), now=1000)
    assert late.kept == (name(5), name(4))
    assert reasons(late)[name(4)] == "one of the newest 2"
    assert late.freed == 30


def test_of_every_hour_the_newest_stays() -> None:
    known = [taken(number, 20 * number) for number in range(1, 10)]
    plan = decided(known, policy(rule(lasting(1000, every=60), lasting(30))), now=200)
    assert plan.kept == (name(9), name(8), name(5), name(2))
    assert reasons(plan)[name(5)] == "the newest of its 1 h, until it is 16 h 40 min old"
    assert reasons(plan)[name(4)] == "2 h old, not the newest of its 1 h"


def test_named_ones_stay_for_ever_and_a_name_that_is_not_there_is_told() -> None:
    known = [taken(1, 10), taken(2, 20)]
    plan = decided(known, policy(rule(lasting(1)), forever=[name(1), name(7)]), now=1000)
    assert plan.kept == (name(2), name(1))
    assert "by name" in reasons(plan)[name(1)]
    assert [each.subject for each in plan.findings] == [name(7)]


def test_what_no_rule_is_about_stays() -> None:
    known = [taken(1, 10), evolve(taken(2, 10), kind="dump"), taken(3, 20)]
    plan = decided(known, policy(rule(lasting(1))), now=1000)
    assert set(plan.kept) == {name(2), name(3)}
    assert reasons(plan)[name(2)] == "no rule is about memory dump"


def test_a_kept_incremental_one_keeps_all_that_it_builds_on() -> None:
    known = [taken(1, 10), taken(2, 20, parent=1), taken(3, 30, parent=2), taken(4, 40)]
    plan = decided(known, policy(rule(lasting(1)), rule(lasting(75), kind="incremental", at_least=0)), now=100)
    assert set(plan.kept) == {name(1), name(2), name(3), name(4)}
    assert reasons(plan)[name(2)] == f"{name(3)} builds on it"
    assert reasons(plan)[name(1)] == f"{name(2)} builds on it"


def test_a_broken_chain_is_told_and_is_not_counted_among_the_newest() -> None:
    known = [taken(1, 10), taken(3, 30, parent=2), taken(4, 40, parent=3)]
    plan = decided(known, policy(rule(lasting(1)), rule(lasting(1), kind="incremental")), now=100)
    assert plan.kept == (name(1),)
    assert "which the archive does not hold" in str(plan)


def test_which_is_newest_is_not_for_clocks_to_say() -> None:
    known = [taken(1, 10, ended=500), taken(2, 20, ended=1), taken(3, 30, ended=2)]
    assert [each.id for each in ranked(known)] == [name(1), name(2), name(3)]
    plan = decided(known, policy(rule(lasting(1), at_least=1)), now=1000)
    assert plan.kept == (name(3),)


def test_a_policy_that_would_keep_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="keeps no memory base at all"):
        rule(at_least=0)
    with pytest.raises(ValueError, match="lasting must be longer than nothing"):
        lasting(0)
    with pytest.raises(ValueError, match="more than one rule for memory base"):
        policy(rule(lasting(1)), rule(lasting(2)))
    with pytest.raises(Refused, match="the policy would keep nothing"):
        decided([taken(1, 10)], policy(rule(lasting(1), at_least=0)), now=100)
    assert decided([], policy(rule(lasting(1), at_least=0)), now=100).empty
    with pytest.raises(ValueError, match="naive"):
        plan_prune([], ArchiveFacts(target="orders", system=""), policy(), now=at(1).replace(tzinfo=None))


def left(number: int, written: float, **more: object) -> BackupObjects:
    return evolve(
        BackupObjects(id=name(number), kind="base", objects=3, bytes=7, newest=at(written)),
        **more,  # type: ignore[arg-type]
    )


def test_leftovers_go_after_a_grace_period_counted_from_the_newest_object() -> None:
    also = [
        left(1, 10),
        left(2, 96),
        left(3, 10, running=True),
        left(4, 96, running=True),
        left(5, 99, retired=True),
        left(6, 300),
        left(7, 10, held="legal hold"),
    ]
    plan = decided([taken(9, 90)], policy(rule(lasting(1))), now=100, also=also)
    assert {each.backup: each.stays for each in plan.leftovers} == {
        name(1): False,
        name(2): True,
        name(3): False,
        name(4): True,
        name(5): False,
        name(6): True,
        name(7): True,
    }
    assert plan.freed == 21


def test_what_a_running_backup_builds_on_stays() -> None:
    known = [taken(1, 10), taken(2, 20)]
    running = left(5, 99, objects=0, running=True, parent=name(1))
    how = policy(rule(lasting(1)))
    assert set(decided(known, how, now=100, also=[running]).kept) == {name(1), name(2)}
    assert set(decided(known, how, now=900, also=[running]).kept) == {name(2)}


def test_a_held_backup_stays_and_says_so() -> None:
    known = [taken(1, 10), taken(2, 20, parent=1), taken(3, 30)]
    facts = ArchiveFacts(
        target="orders",
        system="memory",
        backups=tuple(evolve(lies(each), held="legal hold" if each.id == name(2) else "") for each in known),
    )
    how = policy(rule(lasting(1)), rule(lasting(1), kind="incremental", at_least=0))
    plan = plan_prune(known, facts, how, now=at(100))
    assert set(plan.kept) == {name(1), name(2), name(3)}
    assert reasons(plan)[name(2)] == "held: legal hold"


def test_while_a_manifest_cannot_be_read_what_it_may_build_on_stays_and_all_of_the_log() -> None:
    known = [taken(1, 10), evolve(taken(2, 10), kind="dump"), taken(4, 40)]
    doubt = Doubt(backup=name(3), subject="key", text="it cannot be used")
    lost = left(3, 30, manifest=True)
    how = policy(rule(lasting(1)), rule(lasting(1), kind="dump", at_least=0))
    logs = [log({"1": [stored(0, 10), stored(10, 50)]})]
    plan = decided(known, how, now=100, also=[lost], doubts=[doubt], logs=logs)
    assert set(plan.kept) == {name(1), name(4)}
    assert plan.log == ()
    assert any("all of the log stays" in each.text for each in plan.findings)
    hidden = decided(known, how, now=100, also=[evolve(lost, manifest=False)], doubts=[doubt])
    assert [each.stays for each in hidden.leftovers] == [True]


def test_the_log_is_kept_from_the_oldest_kept_base_on_and_nothing_older() -> None:
    entries = [stored(each, each + 10) for each in range(0, 100, 10)]
    plan = decided([taken(1, 15), taken(2, 45)], policy(rule(lasting(1))), now=200, logs=[log({"1": entries})])
    (trim,) = plan.log
    assert [(each.begins.offset, each.ends.offset) for each in trim.stretches] == [(0, 40)]
    assert (trim.what, trim.objects, trim.bytes) == ("expired", 4, 40)
    (stays,) = plan.log_kept
    assert (stays.begins and stays.begins.offset, stays.bytes) == (44, 60)


def test_superseded_slices_go_once_the_segment_has_been_there_for_a_while() -> None:
    entries = [stored(0, 16, written=20), stored(0, 4, segment=0), stored(4, 16, segment=0), stored(16, 20, segment=16)]
    known = [taken(1, 1)]
    how = policy(rule(lasting(1)))
    assert decided(known, how, now=24, logs=[log({"1": entries})]).log == ()
    (trim,) = decided(known, how, now=40, logs=[log({"1": entries})]).log
    assert (trim.what, trim.objects) == ("superseded", 2)


def test_records_go_when_nothing_needs_them() -> None:
    gaps = [gap(5, 8), gap(62, 65)]
    old = [StoredRecord("a", 3, at(10)), StoredRecord("b", 4, at(99))]
    files = [StoredRecord("1.backup", 1, at(2)), StoredRecord("2.history", 1, at(2)), StoredRecord("9", 1, at(90))]
    entries = {"1": [stored(0, 30), stored(30, 60), stored(60, 90)]}
    one = evolve(log(entries, gaps=gaps), outdated={"1": old}, files=files)
    plan = decided([taken(1, 45), taken(2, 99)], policy(rule(lasting(60))), now=100, logs=[one])
    found = {each.what: each.objects for each in plan.log}
    assert found == {"expired": 1, "gaps": 1, "watermarks": 1, "files": 1}


def test_what_a_window_needs_stays_and_no_older_log() -> None:
    known = [taken(each, 20 * each) for each in range(1, 8)]
    entries = [stored(each, each + 10) for each in range(0, 150, 10)]
    how = policy(rule(lasting(1000, every=60), at_least=1), window=50)
    plan = decided(known, how, now=150, logs=[log({"1": entries})])
    assert set(plan.kept) == {name(2), name(5), name(7)}  # of the hours; 5 is also what 100 to 150 start from
    (trim,) = [each for each in plan.log if each.what == "expired"]
    assert trim.stretches[-1].ends.offset == 90


def test_a_hole_within_the_window_keeps_the_backup_behind_it() -> None:
    known = [taken(each, 20 * each) for each in range(1, 8)]
    entries = [stored(each, each + 10) for each in range(0, 150, 10) if each != 110]
    how = policy(rule(lasting(1), at_least=1), window=60)
    assert set(decided(known, how, now=150, logs=[log({"1": entries})]).kept) == {name(4), name(6), name(7)}


def test_only_what_two_looks_agree_on_goes() -> None:
    entries = [stored(each, each + 10) for each in range(0, 100, 10)]
    known = [taken(1, 15), taken(2, 45), taken(3, 85)]
    how = policy(rule(lasting(1)))
    shown = decided(known, how, now=200, logs=[log({"1": entries})])
    later = decided([*known, taken(4, 86, parent=2)], how, now=200, logs=[log({"1": entries})])
    both = common(shown, later)
    assert both.removed == (name(1),)
    assert f"{name(4)} builds on it" in reasons(both)[name(2)]
    assert [each.stretches[-1].ends.offset for each in both.log] == [40]
    assert common(shown, shown) == shown


def test_the_end_of_a_log_stays_however_long_nothing_was_written() -> None:
    entries = [stored(each, each + 10) for each in range(0, 60, 10)]
    how = policy(rule(lasting(30)), window=30)
    plan = decided([taken(1, 15)], how, now=900, logs=[log({"1": entries})])
    assert [trim.stretches[-1].ends.offset for trim in plan.log] == [10]
    idle = Watermark(begins=place(0, "2"), ends=place(60, "2"), complete_at=at(899))
    older = {"1": entries, "2": [stored(50, 60, written=55)]}
    one = evolve(log(older, fork("2", 55)), watermarks=(idle,))
    plan = decided([taken(1, 15), taken(2, 58, ended=899)], how, now=900, logs=[one])
    assert name(1) in plan.kept  # timeline 1 is left; 2 is idle, and its latest starts there
    assert [(trim.branch, trim.stretches[-1].ends.offset) for trim in plan.log] == [("1", 10)]


def test_what_leads_to_the_timeline_that_is_written_stays_after_a_recovery_to_a_moment() -> None:
    entries = {
        "1": [stored(each, each + 10) for each in range(0, 100, 10)],
        "2": [stored(50, 60, written=120), stored(60, 70, written=130)],
    }
    known = [taken(1, 45), taken(2, 95)]
    plan = decided(known, policy(rule(lasting(30))), now=200, logs=[log(entries, fork("2", 55))])
    assert set(plan.kept) == {name(1), name(2)}
    assert reasons(plan)[name(1)] == "the newest that leads to timeline 2, which was written last"
    assert [(trim.branch, trim.stretches[-1].ends.offset) for trim in plan.log] == [("1", 40)]


def test_what_builds_on_a_manifest_that_cannot_be_read_now_stays() -> None:
    known = [taken(1, 10), taken(4, 40, parent=3), taken(5, 50, parent=4)]
    doubt = Doubt(backup=name(3), subject="key", text="it is sealed with a key that is not here")
    how = policy(rule(lasting(1)), rule(lasting(1), kind="incremental"))
    plan = decided(known, how, now=100, also=[left(3, 30, manifest=True)], doubts=[doubt])
    assert set(plan.kept) == {name(1), name(4), name(5)}
    assert reasons(plan)[name(5)] == f"{name(3)}, which it builds on, cannot be read now"


@pytest.mark.parametrize("manifest", [True, False], ids=["damaged", "hidden"])
def test_which_came_first_is_not_only_for_the_hosts_clocks_to_say(manifest: bool) -> None:
    known = [taken(4, 10), taken(5, 50)]
    doubt = Doubt(backup=name(3), subject="key", text="it cannot be used")
    lost = left(3, 30, manifest=manifest, kind="incremental")
    plan = decided(known, policy(rule(lasting(1))), now=100, also=[lost], doubts=[doubt])
    assert name(4) in plan.kept


def test_a_backup_whose_manifest_was_deleted_stays_as_long_as_it_would_have() -> None:
    also = [left(1, 10, published=True), left(2, 60, published=True), left(3, 10, retired=True), left(6, 1)]
    known = [taken(4, 99)]
    plan = decided(known, policy(rule(lasting(60)), forever=[name(6)]), now=100, also=also)
    assert {each.backup: each.stays for each in plan.leftovers} == {
        name(1): False,
        name(2): True,
        name(3): False,
        name(6): True,
    }
    assert {name(2), name(6)} <= {each.subject for each in plan.findings}
    assert [each.stays for each in decided(known, policy(), now=100, also=also[:1]).leftovers] == [True]


def test_a_plan_shows_one_line_a_backup_and_turns_into_json() -> None:
    known = [taken(number, 10 * number) for number in range(1, 4)]
    plan = decided(known, policy(rule(lasting(35))), now=50)
    lines = str(plan).splitlines()
    assert lines[0] == "prune orders, as of 2026-11-21 12:50:00 UTC: 1 of 3 backups go, 10 B are freed"
    assert lines[-1] == f"  GOES  base {name(1)} (10 B): 40 min old, past 35 min"
    assert f'"backup":"{name(1)}"' in plan.to_json()
    assert name(1) in plan._repr_html_()
    many = decided([taken(number, number) for number in range(1, 500)], policy(rule(lasting(1))), now=900)
    assert len(str(many).splitlines()) < 70
    assert "… 439 more …" in str(many)


@pytest.mark.usefixtures("uncounted")
def test_a_hundred_thousand_backups_are_planned() -> None:
    known, entries = [], []
    for number in range(100_000):
        parent = None if number % 24 == 0 else name(number - 1)
        kind = "base" if parent is None else "incremental"
        known.append(evolve(taken(number, 100 * number, ended=60 * number), parent=parent, kind=kind))
        entries.append(stored(100 * number, 100 * number + 100, written=60 * number))
    how = policy(rule(lasting(60 * 24 * 90)), rule(lasting(60 * 24 * 30), kind="incremental"), window=60 * 24 * 14)
    plan = decided(known, how, now=60 * 100_000, logs=[log({"1": entries})])
    assert 90 + 30 * 23 <= len(plan.kept) <= 91 + 31 * 23
    assert len(plan.removed) == 100_000 - len(plan.kept)


@frozen
class Past:
    """A history that may have been: branches, what is there of the log, and backups in the order they were taken."""

    parents: tuple[tuple[str, str, int], ...]
    bytes_of: Mapping[str, Sequence[tuple[int, int]]]
    slices_of: Mapping[str, Sequence[tuple[int, int, int]]]
    lost: tuple[tuple[str, int, int], ...]
    backups: tuple[Manifest, ...]
    now: int = field(default=410)


SEGMENT = 8
LAST = 64
WRITTEN = 400 / LAST


@st.composite
def pasts(draw: st.DrawFn) -> Past:
    parents: list[tuple[str, str, int]] = []
    begins = {"1": 0}
    for branch in ("2", "3", "4")[: draw(st.integers(0, 3))]:
        parent = draw(st.sampled_from(sorted(begins)))
        at_offset = draw(st.integers(begins[parent], LAST - 1))
        parents.append((branch, parent, at_offset))
        begins[branch] = at_offset
    whole, slices = {}, {}
    for branch, first in begins.items():
        starts = range(first // SEGMENT * SEGMENT, LAST, SEGMENT)
        whole[branch] = [(start, start + SEGMENT) for start in starts if draw(st.integers(0, 5))]
        slices[branch] = [
            (start + a, start + b, start)
            for start in starts
            for a, b in draw(st.sampled_from([(), (), ((0, 4), (4, 8)), ((0, 3),), ((2, 5), (5, 8))]))
        ]
    lost = tuple(
        (branch, start, start + draw(st.integers(1, 10)))
        for branch in begins
        for start in draw(st.lists(st.integers(begins[branch], LAST - 1), max_size=1))
    )
    return Past(tuple(parents), whole, slices, lost, tuple(draw(backups(begins))))


@st.composite
def backups(draw: st.DrawFn, begins: Mapping[str, int]) -> list[Manifest]:
    found: list[Manifest] = []
    places = draw(st.lists(st.tuples(st.integers(0, LAST), st.sampled_from(sorted(begins))), min_size=1, max_size=10))
    for number, (offset, branch) in enumerate(sorted(places), 1):
        offset = max(offset, begins[branch])
        here = [each for each in found if each.recovery_point.position.branch == branch and each.kind != "dump"]
        kind = draw(st.sampled_from(["base", "base", "incremental", "incremental", "dump"]))
        parent = draw(st.sampled_from(here)).id if kind == "incremental" and here else None
        kind = "base" if kind == "incremental" and parent is None else kind
        if kind == "incremental" and not draw(st.integers(0, 8)):
            parent = name(99)
        ended = WRITTEN * offset + number / 2
        one = taken(number, offset, branch, ended=ended)
        back = draw(st.integers(0, 3))
        point = evolve(one.recovery_point.position, offset=max(begins[branch], offset - back))
        found.append(evolve(one, kind=kind, parent=parent, begins=point, started_at=at(ended - 1)))
    return found


def facts_of(past: Past) -> LogObjects:
    entries = {
        branch: [stored(a, b, written=WRITTEN * b) for a, b in past.bytes_of[branch]]
        + [stored(a, b, segment=segment, written=WRITTEN * b) for a, b, segment in past.slices_of[branch]]
        for branch in past.bytes_of
    }
    forks = [fork(branch, offset, parent) for branch, parent, offset in past.parents]
    roots = [evolve(fork("1", 0), parent=None, forked_at=None)]
    return log(entries, *roots, *forks, gaps=[gap(a, b, branch) for branch, a, b in past.lost])


keeps = st.lists(st.builds(lasting, st.integers(1, 400), st.one_of(st.none(), st.integers(1, 200))), max_size=2).map(
    tuple
)


@st.composite
def policies(draw: st.DrawFn) -> RetentionPolicy:
    rules = []
    for kind in draw(st.sets(st.sampled_from(["base", "incremental", "dump"]), min_size=1)):
        keep = draw(keeps)
        rules.append(rule(*keep, kind=kind, at_least=draw(st.integers(0 if keep else 1, 3))))
    named = draw(st.sets(st.integers(1, 10), max_size=2))
    return policy(*rules, grace=draw(st.integers(0, 60)), forever=[name(number) for number in named])


def ways(past: Past, branch: str) -> list[tuple[str, int]]:
    """The branches from the first to one, each with where it is left; walked by hand."""
    way, at_most = [(branch, 10**9)], 10**9
    known = {name: (parent, offset) for name, parent, offset in past.parents}
    while way[0][0] in known:
        parent, offset = known[way[0][0]]
        at_most = min(at_most, offset)
        way.insert(0, (parent, at_most))
    return way


def restorable(
    past: Past,
    backups: Sequence[Manifest],
    log: Mapping[str, Sequence[tuple[int, int]]],
    lost: Sequence[tuple[str, int, int]],
) -> dict[str, set[tuple[str, int]]]:
    """To which bytes of which branch each backup that can be restored leads: a byte at a time."""
    there = {each.id: each for each in backups}
    held = {branch: {byte for a, b in some for byte in range(a, b)} for branch, some in log.items()}
    for branch, a, b in lost:
        held[branch] -= set(range(a, b))
    reached: dict[str, set[tuple[str, int]]] = {}
    for each in backups:
        at_hand: Manifest | None = each
        while at_hand is not None and at_hand.parent is not None:
            at_hand = there.get(at_hand.parent)
        if at_hand is None:
            continue
        reached[each.id] = set()
        point = each.recovery_point.position
        for branch in held if each.kind != "dump" else ():
            way = ways(past, branch)
            mine = [number for number, (leg, left) in enumerate(way) if leg == point.branch and point.offset <= left]
            byte = int(point.offset)
            while mine and any(byte in held[leg] and byte < left for leg, left in way[mine[0] :]):
                reached[each.id].add((branch, byte))
                byte += 1
    return reached


def after(
    past: Past, plan: PrunePlan
) -> tuple[list[Manifest], dict[str, list[tuple[int, int]]], list[tuple[str, int, int]]]:
    """What is left when a plan was carried out, to the letter."""
    gone = {"segments": {}, "slices": {}}  # type: dict[str, dict[str, list[tuple[int, int]]]]
    lost = list(past.lost)
    for trim in plan.log:
        spans = [(int(each.begins.offset), int(each.ends.offset)) for each in trim.stretches]
        if trim.what == "expired":
            gone["segments"][trim.branch] = spans
        if trim.what in ("expired", "superseded"):
            gone["slices"].setdefault(trim.branch, []).extend(spans)
        if trim.what == "gaps":
            lost = [(name, a, b) for name, a, b in lost if name != trim.branch or (a, b) not in spans]

    def left(what: str, branch: str, a: int, b: int) -> bool:
        return not any(c <= a and b <= d for c, d in gone[what].get(branch, ()))

    log = {
        branch: [(a, b) for a, b in past.bytes_of[branch] if left("segments", branch, a, b)] for branch in past.bytes_of
    }
    for branch, some in past.slices_of.items():
        whole = [(a, b) for a, b in past.bytes_of[branch]]
        log[branch] += [
            (a, b)
            for a, b, _ in some
            if left("slices", branch, a, b)
            or not (left("segments", branch, a, b) is False or any(c <= a and b <= d for c, d in whole))
        ]
    return [each for each in past.backups if each.id in plan.kept], log, lost


def wanted(past: Past, how: RetentionPolicy) -> set[str]:
    """What a policy wants, each backup compared with each."""
    there = {each.id: each for each in past.backups}

    def whole(each: Manifest) -> bool:
        return each.parent is None or (each.parent in there and whole(there[each.parent]))

    def minutes(moment: datetime) -> float:
        return (moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() / 60

    found = set()
    for each in past.backups:
        found_rule = [one for one in how.rules if one.kind == each.kind]
        if not found_rule or each.id in how.forever:
            found.add(each.id)
            continue
        same = [one for one in past.backups if one.kind == each.kind and whole(one)]
        later = [one for one in same if one.ended_at > each.ended_at]
        if whole(each) and len(later) < found_rule[0].at_least:
            found.add(each.id)
        for keep in found_rule[0].keep:
            if at(past.now) - each.ended_at > keep.lasting:
                continue
            if keep.every is None:
                found.add(each.id)
                continue
            span = keep.every.total_seconds() / 60
            period = minutes(each.started_at) // span
            if whole(each) and not [one for one in later if minutes(one.started_at) // span == period]:
                found.add(each.id)
    return found


def latest(past: Past, how: RetentionPolicy) -> set[str]:
    """What the latest is restored from: the newest on the way to the branch that was written last."""
    there = {each.id: each for each in past.backups}

    def whole(each: Manifest) -> bool:
        return each.parent is None or (each.parent in there and whole(there[each.parent]))

    usable = [each for each in past.backups if each.kind != "dump" and whole(each)]
    written = [(at(WRITTEN * b), branch) for branch, some in past.bytes_of.items() for _, b in some]
    written += [(at(WRITTEN * b), branch) for branch, some in past.slices_of.items() for _, b, _ in some]
    written += [(each.ended_at, each.recovery_point.position.branch) for each in usable]
    if not written:
        return set()
    legs = list(enumerate(ways(past, max(written)[1])))
    points = [(each, each.recovery_point.position) for each in usable]
    found = [
        (number, point.offset, each.ended_at, each.id)
        for each, point in points
        for number, (leg, left) in legs
        if leg == point.branch and point.offset <= left
    ]
    newest = [there[max(found)[-1]]] if found else []
    return {each.id for each in newest if all(one.at_least for one in how.rules if one.kind == each.kind)}


@pytest.mark.usefixtures("uncounted")
@settings(max_examples=400, deadline=None)
@given(pasts(), policies())
def test_every_kept_recovery_point_stays_restorable_whatever_the_history(past: Past, how: RetentionPolicy) -> None:
    try:
        plan = decided(past.backups, how, now=past.now, logs=[facts_of(past)])
    except Refused:
        assert not wanted(past, how) | latest(past, how)
        return
    needed = wanted(past, how) | latest(past, how)
    there = {each.id: each for each in past.backups}
    for backup in [*needed]:
        parent = there[backup].parent
        while parent in there:
            needed.add(parent)
            parent = there[parent].parent
    assert set(plan.kept) == needed
    log_before = {
        branch: [*past.bytes_of[branch], *((a, b) for a, b, _ in past.slices_of[branch])] for branch in past.bytes_of
    }
    before = restorable(past, past.backups, log_before, past.lost)
    kept, log_after, lost = after(past, plan)
    reached = restorable(past, kept, log_after, lost)
    for each in kept:
        if each.id in before:
            assert before[each.id] <= reached[each.id]
    assert_nothing_older(past, plan, kept, log_after, set(before))


def assert_nothing_older(
    past: Past,
    plan: PrunePlan,
    kept: Sequence[Manifest],
    log: Mapping[str, Sequence[tuple[int, int]]],
    usable: set[str],
) -> None:
    bases = [each for each in kept if each.kind != "dump" and each.id in usable]
    for branch, some in log.items():
        way = ways(past, branch)
        firsts = [
            int(each.begins.offset)
            for each in bases
            for leg, left in way
            if each.recovery_point.position.branch == leg and each.recovery_point.position.offset <= left
        ]
        if firsts:
            assert all(b > min(firsts) for _, b in some), (branch, min(firsts), some)
        elif bases:
            limit = min(min(each.started_at for each in bases), at(past.now) - plan.policy.grace)
            # From the front on, as far as all is older: the first that is left is younger.
            assert not some or at(WRITTEN * min(some)[1]) >= limit


@pytest.mark.usefixtures("uncounted")
@settings(max_examples=300, deadline=None)
@given(pasts(), policies(), st.integers(1, 400))
def test_every_moment_of_a_window_stays_restorable_whatever_the_history(
    past: Past, how: RetentionPolicy, window: int
) -> None:
    how = evolve(how, window=window * MINUTE)
    try:
        plan = decided(past.backups, how, now=past.now, logs=[facts_of(past)])
    except Refused:
        return
    log_before = {
        branch: [*past.bytes_of[branch], *((a, b) for a, b, _ in past.slices_of[branch])] for branch in past.bytes_of
    }
    kept, log_after, lost = after(past, plan)

    def moments(reached: Mapping[str, set[tuple[str, int]]]) -> set[tuple[str, int]]:
        found = set()
        for each in past.backups:
            for branch, byte in reached.get(each.id, ()):
                if WRITTEN * byte > past.now - window and each.ended_at <= at(WRITTEN * byte):
                    found.add((branch, byte))
        return found

    before = moments(restorable(past, past.backups, log_before, past.lost))
    assert before <= moments(restorable(past, kept, log_after, lost))


def test_the_platforms_policy_is_what_its_objectives_promise() -> None:
    days = {(each.system, each.kind): [keep.lasting.days for keep in each.keep] for each in reference.RETENTION.rules}
    assert days == {
        ("postgresql", "base"): [120],
        ("postgresql", "incremental"): [120],
        ("postgresql", "dump"): [120],
        ("redis", "rdb"): [7],
        ("redis", "aof"): [7],
        ("redis", "cluster"): [7],
        ("mongodb", "dump"): [90],
        ("etcd", "snapshot"): [7],
        ("app-configuration", "snapshot"): [30],
    }


def test_a_backup_that_begins_before_a_promotion_and_ends_after_it_needs_the_log_of_both_timelines() -> None:
    followed = evolve(taken(1, 65, "2"), begins=taken(1, 43).recovery_point.position)
    entries = {"1": [stored(each, each + 10) for each in range(0, 60, 10)], "2": [stored(50, 60), stored(60, 70)]}
    plan = decided([followed], policy(rule(lasting(1))), now=900, logs=[log(entries, fork("2", 55))])
    assert [(each.branch, each.stretches[-1].ends.offset) for each in plan.log] == [("1", 40)]


def test_a_timeline_that_was_left_behind_goes_once_every_kept_backup_is_younger() -> None:
    entries = {
        "1": [stored(0, 50, written=50), stored(50, 100, written=100)],
        "2": [stored(50, 100, written=150), stored(100, 200, written=250)],
        "3": [stored(50, 90, written=260)],
    }
    logs = [log(entries, fork("2", 60), fork("3", 60))]
    known = [taken(1, 110, "2", ended=200)]
    plan = decided(known, policy(rule(lasting(1))), now=900, logs=logs)
    assert {each.branch: each.objects for each in plan.log} == {"1": 2, "2": 1}
    assert [each.branch for each in plan.log_kept] == ["2", "3"]
    assert decided([], policy(rule(lasting(1))), now=900, logs=logs).log == ()
