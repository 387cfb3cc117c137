"""The calendar of drills (R17) is data that programs can ask."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from resilience.model.drills import DrillSchedule
from resilience.model.json import from_json
from resilience.reference import DRILLS

WEDNESDAY = datetime(2026, 11, 25, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("kind", "a_year", "rto", "rpo"),
    [
        ("pod", 12, timedelta(seconds=30), timedelta(0)),
        ("node", 4, timedelta(minutes=2), timedelta(0)),
        ("redis", 4, timedelta(seconds=10), timedelta(seconds=1)),
        ("database", 2, timedelta(minutes=5), timedelta(0)),
        ("region", 1, timedelta(hours=4), timedelta(minutes=15)),
    ],
)
def test_what_fails_how_often_and_what_it_must_come_to(kind: str, a_year: int, rto: timedelta, rpo: timedelta) -> None:
    planned = DRILLS[kind]
    assert planned.kind == kind
    assert timedelta(days=365) // planned.every == a_year
    assert (planned.criterion.rto, planned.criterion.rpo) == (rto, rpo)
    assert planned.participants
    assert from_json(planned.to_json().encode(), DrillSchedule) == planned


def test_customers_are_told_before_a_region_fails() -> None:
    assert "customers" in DRILLS["region"].told
    assert not DRILLS["pod"].told


def test_a_window_is_in_utc_wherever_one_is() -> None:
    window = DRILLS["database"].window
    assert WEDNESDAY in window
    assert WEDNESDAY.astimezone(timezone(timedelta(hours=-8))) in window
    assert WEDNESDAY.replace(hour=15) not in window, "its end is not part of it"
    assert WEDNESDAY + timedelta(days=2) not in window
    assert str(window) == "Tuesday, Wednesday, Thursday 09:00 to 15:00 UTC"


def test_one_that_was_never_held_is_overdue() -> None:
    planned = DRILLS["database"]
    assert planned.overdue(None, WEDNESDAY)
    assert planned.overdue(WEDNESDAY - timedelta(days=183), WEDNESDAY)
    assert not planned.overdue(WEDNESDAY - timedelta(days=181), WEDNESDAY)
    assert planned.due(WEDNESDAY) == WEDNESDAY + timedelta(days=182)


def test_a_line_of_it_reads_well() -> None:
    assert str(DRILLS["region"]) == (
        "region every 365 d: the primary region is cut off; served again within 4 h, at most 15 min of writes lost; "
        "Saturday 06:00 to 14:00 UTC; DBA, SRE, DevOps, support, manager, CTO; told beforehand: customers, support"
    )
