"""coverage(): from when to when one can come back, on which timelines, and where the holes are."""

from __future__ import annotations

import json

import pytest

from resilience import coverage, restore
from resilience.model.capture import Captured
from resilience.model.errors import NotRecoverable
from resilience.model.plans import BackupPlan
from resilience.model.reports import MANY, Coverage, RestorableMoment
from resilience.model.targets import RecoveryTarget
from resilience.planning.coverage import holes, ranges, unusable
from resilience.testing.memory import MemoryDestination, MemoryTarget

from .histories import History, at, said
from .plans import entries, fork, gap, held, name, taken, view


async def shown(history: History) -> list[str]:
    return str(await coverage(history.archive, "orders")).splitlines()


async def test_an_empty_archive_restores_nothing() -> None:
    history = History()
    nothing = "orders: nothing can be restored, the archive holds no backup of it"
    assert await shown(history) == [nothing]
    await history.write(1)
    first, finding = await shown(history)
    assert first == nothing
    assert finding.startswith("  warning: orders: the archive holds a log of 7400000000000000001, and no backup")


async def test_backups_without_a_log_are_single_moments() -> None:
    history = History()
    taken = [await history.back_up(minute) for minute in (1, 5)]
    found = await coverage(history.archive, "orders")
    assert [moment.backup for moment in found.moments] == [manifest.id for manifest in taken]
    assert (found.ranges, found.holes, found.findings) == ((), (), ())
    assert await shown(history) == [
        "orders: 2 restorable moments",
        f"  1 on 1 (base {taken[0].id})",
        f"  1 on 1 (base {taken[1].id})",
    ]


async def test_a_log_makes_every_moment_restorable_from_the_first_backup_on() -> None:
    history = History()
    await history.write(0, 1)
    first = await history.back_up(2)
    await history.write(3, 4)
    await history.back_up(5)
    await history.write(6, 7)
    found = await coverage(history.archive, "orders")
    (only,) = found.ranges
    assert (only.branch, only.begins.time, only.ends.time) == ("1", at(2), at(7))
    assert only.begins.position == first.recovery_point.position
    assert (found.holes, found.findings) == ((), ())
    lines = await shown(history)
    assert lines[0] == f"orders: from {said(2)} to {said(7)}, 2 backups"
    assert lines[1].startswith(
        f"  timeline 1: any moment from {said(2)} ({first.recovery_point.position.text}) to {said(7)}"
    )
    assert [line.endswith(")") for line in lines[2:]] == [True, True]


@pytest.mark.parametrize("reason", ["", "the disk was full"])
async def test_a_hole_is_an_interval_and_what_lies_after_it_needs_a_backup(reason: str) -> None:
    history = History()
    await history.write(0)
    await history.back_up(1)
    await history.write(2, 3)
    await history.write(4, 5, ship=False)
    await history.lose(reason=reason)
    await history.write(6, 7)
    found = await coverage(history.archive, "orders")
    assert [(each.begins.time, each.ends.time) for each in found.ranges] == [(at(1), at(3))]
    (hole,) = found.holes
    assert (hole.after, hole.before, hole.reason) == (at(3), at(6), reason)
    (useless,) = found.findings
    assert (useless.severity, useless.hint) == ("warning", "take a backup now")
    assert "is of no use: no backup leads to it" in useless.text
    lines = await shown(history)
    assert lines[0] == f"orders: from {said(1)} to {said(3)}, with 1 hole, 1 backup"
    assert lines[2].startswith("  HOLE: ")
    assert f"written after {said(3)} and before {said(6)}" in lines[2]
    assert (f"acknowledged as lost: {reason}" in lines[2]) == bool(reason)

    await history.back_up(8)
    await history.write(9)
    found = await coverage(history.archive, "orders")
    assert [(each.begins.time, each.ends.time) for each in found.ranges] == [(at(1), at(3)), (at(8), at(9))]
    assert found.findings == ()
    assert len(found.holes) == 1


async def test_timelines_are_shown_with_their_forks() -> None:
    history = History()
    await history.write(0)
    await history.back_up(1)
    await history.write(2, 3)
    promoted = history.target.promoted("2")
    await history.write(4, 5)
    await history.write(6, 7, target=promoted)
    found = await coverage(history.archive, "orders")
    assert [(each.branch, each.ends.time) for each in found.ranges] == [("1", at(5)), ("2", at(7))]
    assert [branch.name for branch in found.branches] == ["1", "2"]
    forked = promoted.branch.forked_at
    assert forked is not None
    lines = await shown(history)
    assert lines[0] == f"orders: from {said(1)} to {said(7)}, 1 backup"
    assert lines[2].startswith(f"  timeline 2: any moment from {forked.text}, where it left timeline 1, to {said(7)}")


async def test_several_histories_are_told_apart() -> None:
    history = History()
    await history.write(0)
    await history.back_up(1)
    other = MemoryTarget("orders", {"minute": b"other"}, lineage="99")
    await history.write(2, target=other)
    await history.back_up(3, other)
    await history.write(4, target=other)
    await history.write(5)
    lines = await shown(history)
    assert [line.split(":")[0] for line in lines] == [
        "orders", "  history 7400000000000000001", "  history 99", "  history 7400000000000000001", "  history 99",
    ]  # fmt: skip


async def test_it_becomes_json_and_a_table() -> None:
    history = History()
    await history.write(0)
    await history.back_up(1)
    await history.write(2)
    found = await coverage(history.archive, "orders")
    written = json.loads(found.to_json())
    assert written["ranges"][0]["ends"]["time"] == at(2).isoformat().replace("+00:00", "Z")
    assert isinstance(written["ranges"][0]["ends"]["position"]["offset"], str)
    assert "<caption>Coverage</caption>" in found._repr_html_()


def test_of_a_long_list_of_backups_the_middle_is_left_out() -> None:
    manifest = taken(1, 4)
    moments = tuple(
        RestorableMoment(
            backup=str(number),
            kind="base",
            lineage="1",
            point=manifest.recovery_point,
            taken_at=manifest.started_at,
        )
        for number in range(700)
    )
    lines = str(Coverage(target="orders", moments=moments)).splitlines()
    assert len(lines) == MANY + 2
    assert f"… {700 - MANY} more …" in lines[1 + MANY // 2]


async def test_every_moment_that_is_covered_can_be_restored_and_no_other() -> None:
    history = History()
    await history.write(0)
    await history.back_up(1)
    await history.write(2, 3)
    await history.write(4, ship=False)
    await history.lose(reason="")
    await history.write(5, 6)
    await history.back_up(7)
    await history.write(8, 9)
    found = await coverage(history.archive, "orders")
    for minute in range(11):
        until = RecoveryTarget.time(at(minute))
        covered = any(
            each.begins.time <= at(minute) <= each.ends.time
            for each in found.ranges
            if each.begins.time and each.ends.time
        )
        if covered:
            await restore(history.archive, "orders", into=MemoryDestination(), until=until)
        else:
            with pytest.raises(NotRecoverable):
                await restore(history.archive, "orders", into=MemoryDestination(), until=until)


def test_a_loss_that_nothing_follows_yet_is_a_hole_too() -> None:
    (hole,) = holes(held(view({"1": entries(0, 4, 8)}, gaps=[gap(8, 12)]), taken(1, 4)))
    assert (hole.begins.offset, hole.ends.offset, hole.reason, hole.lineage) == (8, 12, "the slot was lost", "1")


def test_of_holes_that_lie_in_each_other_the_widest_is_shown() -> None:
    log = view({"1": [*entries(0, 4, 8), *entries(16, 20)]}, gaps=[gap(9, 12)])
    (hole,) = holes(held(log, taken(1, 4), taken(2, 10)))
    assert (hole.begins.offset, hole.ends.offset) == (8, 16)


def test_a_parent_that_nothing_leads_over_has_a_hole_before_the_childs_log() -> None:
    log = view({"1": entries(0, 4), "2": entries(8, 12, branch="2", later=9)}, fork("2", 10))
    (hole,) = holes(held(log, taken(1, 2)))
    assert (hole.begins.branch, hole.begins.offset, hole.branch, hole.ends.offset) == ("1", 4, "2", 8)
    assert [each.branch for each in ranges(held(log, taken(1, 2)))] == ["1"]


def test_the_log_before_the_first_backup_is_no_loss_but_newer_log_without_one_is() -> None:
    old = held(view({"1": [*entries(0, 4), *entries(8, 12, 16)]}), taken(1, 10))
    assert [each.severity for each in unusable(old, ranges(old))] == ["note"]
    new = held(view({"1": [*entries(0, 4), *entries(8, 12, 16)]}), taken(1, 2))
    assert [each.severity for each in unusable(new, ranges(new))] == ["warning"]
    overtaken = held(view({"1": [*entries(0, 4), *entries(8, 12, 16)]}), taken(1, 2), taken(2, 20))
    assert [each.severity for each in unusable(overtaken, ranges(overtaken))] == ["note"]


async def test_a_backup_whose_parent_is_missing_leads_nowhere_and_is_said() -> None:
    history = History()
    await history.write(0)
    made, lost = await history.back_up(1), await history.back_up(1.5)
    await history.write(2)
    plan = BackupPlan(
        id=name(7),
        target="orders",
        system="memory",
        kind="incremental",
        lineage=history.lineage,
        parent=lost.id,
        made_at=at(2),
    )
    captured = Captured(begins=made.begins, recovery_point=made.recovery_point)
    async with history.archive.draft(plan) as draft:
        await draft.publish(captured)
    await history.archive.store.delete(f"memory/orders/manifests/{lost.id}.json")
    found = await coverage(history.archive, "orders")
    assert [(each.severity, each.subject) for each in found.findings] == [("warning", name(7))]
    assert str(found).endswith(f"not usable: {name(7)} builds on {lost.id}, which the archive does not hold")
    assert len(found.ranges) == 1
