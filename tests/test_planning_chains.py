"""Which backups build on which, and what an incremental one may build on: decisions without I/O."""

from __future__ import annotations

from datetime import timedelta
from itertools import permutations

import pytest
from attrs import evolve

from resilience.model.errors import NotIncremental, NotRecoverable, Refused
from resilience.model.facts import TargetFacts
from resilience.model.findings import Finding
from resilience.model.manifests import Manifest
from resilience.model.positions import Position, RecoveryPoint
from resilience.planning.backup import plan_backup, plan_full
from resilience.planning.chains import chain_of, children_of, refuse_to_orphan

from .test_model import MANIFEST, NOW

FACTS = TargetFacts(target="orders", system="memory", kind="base", lineage="1", branch="1", only_full="", size=77)
ID = "20261130T000000.000Z-ffffff"


def taken(number: int, parent: Manifest | None = None, *, branch: str = "1", lineage: str = "1") -> Manifest:
    """Make the backup of that number: an incremental one if it has a parent."""
    time = NOW + timedelta(hours=number)
    return evolve(
        MANIFEST,
        id=f"{time:%Y%m%dT%H%M%S}.000Z-{number:06x}",
        kind="incremental" if parent else "base",
        parent=parent.id if parent else None,
        lineage=lineage,
        started_at=time,
        ended_at=time,
        recovery_point=RecoveryPoint(position=Position(branch=branch, offset=number, text=str(number))),
    )


def chain(length: int) -> list[Manifest]:
    """Make a full backup and the incremental ones after it, so many in all."""
    made = [taken(1)]
    while len(made) < length:
        made.append(taken(len(made) + 1, made[-1]))
    return made


def parent(known: list[Manifest], facts: TargetFacts = FACTS, *, max_chain: int = 24) -> str | None:
    """Return what an incremental backup would build on."""
    return plan_backup(facts, id=ID, now=NOW, incremental=True, known=known, max_chain=max_chain).parent


def reason(known: list[Manifest], facts: TargetFacts = FACTS, *, max_chain: int = 24) -> Finding:
    """Return why a full one is taken instead, and see that one that is required is refused for the same reason."""
    plan = plan_backup(facts, id=ID, now=NOW, incremental=True, known=known, max_chain=max_chain)
    assert (plan.kind, plan.parent) == ("base", None)
    (finding,) = plan.findings
    said = finding.text.removeprefix("a full backup instead of an incremental one: ")
    with pytest.raises(NotIncremental) as refused:
        plan_backup(facts, id=ID, now=NOW, incremental="required", known=known, max_chain=max_chain)
    assert str(refused.value) == f"backup orders: {said} (take a full backup)"
    return evolve(finding, text=said)


def test_a_chain_is_found_whatever_the_order_in_which_its_backups_are_listed() -> None:
    made = chain(3)
    for listed in permutations([*made, taken(9)]):
        assert list(chain_of(made[2], listed)) == made
        assert list(chain_of(made[0], listed)) == made[:1]
        assert list(children_of(made[0], listed)) == made[1:2]
        assert children_of(made[2], listed) == ()


def test_a_chain_with_a_link_missing_is_refused_and_the_missing_one_is_named() -> None:
    made = chain(4)
    with pytest.raises(NotRecoverable, match=f"{made[2].id} builds on {made[1].id}, which the archive does not hold"):
        chain_of(made[3], [made[0], made[2], made[3]])


def test_a_chain_that_leads_in_a_circle_or_elsewhere_is_refused() -> None:
    first, second = taken(1), taken(2)
    first, second = evolve(first, parent=second.id), evolve(second, parent=first.id)
    with pytest.raises(NotRecoverable, match="builds on itself"):
        chain_of(second, [first, second])
    stranger = taken(1, lineage="2")
    child = taken(2, stranger)
    with pytest.raises(NotRecoverable, match="which is a backup of something else"):
        chain_of(child, [stranger, child])


def test_what_others_build_on_is_not_retired_and_they_are_named() -> None:
    first, second, third = taken(1), taken(2, taken(1)), taken(3, taken(1))
    known = [first, second, third]
    with pytest.raises(Refused, match=f"{second.id}, {third.id} would be worth nothing without it"):
        refuse_to_orphan(first, known)
    refuse_to_orphan(second, known)
    refuse_to_orphan(first, [first])


def test_an_incremental_backup_builds_on_the_newest_one_whatever_the_clocks_say() -> None:
    made = chain(3)
    late = evolve(made[2], id="20200101T000000.000Z-000000", ended_at=NOW - timedelta(days=999))
    assert parent([*made[:2], late]) == late.id
    plan = plan_backup(evolve(FACTS, details={"version": "17.1"}), id=ID, now=NOW, incremental=True, known=made)
    assert (plan.kind, plan.parent, plan.lineage, plan.size) == ("incremental", made[2].id, "1", None)
    assert plan.details == {"version": "17.1"}
    assert plan.findings == ()


def test_a_newer_full_backup_is_built_on_rather_than_an_older_chain() -> None:
    assert parent([*chain(3), taken(9)]) == taken(9).id


def test_a_full_backup_is_planned_where_none_was_asked_for() -> None:
    plan = plan_backup(FACTS, id=ID, now=NOW, known=chain(2))
    assert (plan.kind, plan.parent, plan.size, plan.findings) == ("base", None, 77, ())


def test_the_first_backup_is_a_full_one_and_nothing_to_worry_about() -> None:
    finding = reason([evolve(taken(1), kind="dump"), evolve(taken(2), system="other")])
    assert (finding.severity, finding.text) == ("note", "there is none to build on yet")


def test_a_chain_that_is_long_enough_is_followed_by_a_full_backup_and_that_is_as_it_should_be() -> None:
    assert parent(chain(24)) == chain(24)[-1].id
    finding = reason(chain(25))
    assert (finding.severity, finding.text) == ("note", "24 follow the last full one already")
    assert parent(chain(1), max_chain=1) == chain(1)[0].id
    assert reason(chain(2), max_chain=1).text == "1 follow the last full one already"
    with pytest.raises(ValueError, match="max_chain"):
        plan_backup(FACTS, id=ID, now=NOW, max_chain=0)


def test_a_target_that_cannot_says_why() -> None:
    finding = reason(chain(2), evolve(FACTS, only_full="summarize_wal is off"))
    assert (finding.severity, finding.text) == ("warning", "summarize_wal is off")


def test_another_branch_or_another_lineage_needs_a_full_backup() -> None:
    made = chain(2)
    assert reason(made, evolve(FACTS, branch="2")).text == "its history is on branch 2 now, and no backup is"
    assert reason(made, evolve(FACTS, lineage="9")).text == "no backup is of its lineage, 9"
    here = taken(7, branch="2")
    assert parent([*made, here], evolve(FACTS, branch="2")) == here.id
    assert parent([*made, here]) == made[-1].id


def test_a_chain_that_is_broken_is_not_built_on() -> None:
    made = chain(4)
    older = taken(0)
    broken = [older, made[0], made[2], made[3]]
    assert parent(broken) == made[0].id
    assert reason(broken[2:]).text.startswith(f"no chain is whole: {made[2].id} builds on {made[1].id}, which")
    headless = evolve(made[1], parent=None)
    assert reason([headless]).text == f"no chain is whole: {headless.id} has no parent"


def test_what_stands_in_the_way_is_refused_before_anything_else_is_considered() -> None:
    blocked = evolve(FACTS, findings=(Finding(severity="blocker", subject="orders", text="it is asleep"),))
    with pytest.raises(Refused, match="it is asleep"):
        plan_backup(blocked, id=ID, now=NOW, incremental="required", known=chain(2))


def test_a_full_backup_after_all_says_why() -> None:
    plan = plan_full(FACTS, id=ID, now=NOW, instead="the summaries are gone")
    assert [str(finding) for finding in plan.findings] == [
        "warning: orders: a full backup instead of an incremental one: the summaries are gone"
    ]


def test_behind_very_many_broken_chains_the_newest_whole_one_is_built_on() -> None:
    whole = chain(2)
    broken = [evolve(taken(number), kind="incremental", parent="gone") for number in range(3, 5003)]
    assert parent([*whole, *broken]) == whole[-1].id
