"""Objectives: what the reference promises, and what makes no sense."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from resilience.model.json import from_json
from resilience.model.objectives import Objective
from resilience.reference import OBJECTIVES, POSTGRESQL, POSTGRESQL_SETTINGS

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


@pytest.mark.parametrize(
    ("kind", "rpo", "rto", "every", "kept", "priority"),
    [
        ("postgresql", 15 * MINUTE, 2 * HOUR, HOUR, 30 * DAY, "critical"),
        ("workflows", 15 * MINUTE, 2 * HOUR, None, 30 * DAY, "critical"),
        ("redis", HOUR, 30 * MINUTE, HOUR, 7 * DAY, "high"),
        ("mongodb", DAY, 4 * HOUR, DAY, 90 * DAY, "medium"),
        ("blobs", HOUR, HOUR, None, None, "critical"),
        ("etcd", 12 * HOUR, 4 * HOUR, 6 * HOUR, 7 * DAY, "high"),
        ("app-configuration", DAY, HOUR, DAY, 30 * DAY, "medium"),
    ],
)
def test_the_references_objectives_are_the_declared_ones(
    kind: str, rpo: timedelta, rto: timedelta, every: timedelta | None, kept: timedelta | None, priority: str
) -> None:
    known = OBJECTIVES[kind]
    assert (known.rpo, known.rto, known.every, known.kept, known.priority) == (rpo, rto, every, kept, priority)
    assert from_json(known.to_json().encode(), Objective) == known


def test_the_reference_leaves_75_minutes_to_the_recovery_itself() -> None:
    assert POSTGRESQL.recovery == 75 * MINUTE and POSTGRESQL.archived == 90 * DAY
    assert POSTGRESQL.full_every == DAY and POSTGRESQL.incremental and POSTGRESQL.needs_log
    assert str(POSTGRESQL) == (
        "RPO 15 min, RTO 2 h (recovery 1 h 15 min), log kept continuously, a backup every 1 h, a full one every 1 d"
    )


def test_the_references_settings_say_why() -> None:
    values = {name: setting.value for name, setting in POSTGRESQL_SETTINGS.items()}
    assert values == {
        "wal_level": "replica",
        "archive_timeout": "900",
        "max_wal_senders": "5",
        "wal_keep_size": "1GB",
    }
    assert str(POSTGRESQL_SETTINGS["wal_keep_size"]).startswith("wal_keep_size = 1GB: how far a reader of WAL")


@pytest.mark.parametrize(
    "wrong",
    [
        {"rpo": timedelta(0)},
        {"rto": -HOUR},
        {"every": timedelta(0)},
        {"archived": -DAY},
        {"overhead": 2 * HOUR},
        {"full_every": DAY},
        {"every": DAY, "full_every": HOUR},
        {"outage": timedelta(0)},
    ],
)
def test_an_objective_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)) if "every" not in wrong else "full_every|every"):
        Objective(**{"rpo": HOUR, "rto": HOUR, **wrong})


@pytest.mark.parametrize(("every", "needs"), [(None, True), (2 * HOUR, True), (HOUR, False), (MINUTE, False)])
def test_backups_alone_keep_to_an_rpo_that_they_are_as_frequent_as(every: timedelta | None, *, needs: bool) -> None:
    assert Objective(rpo=HOUR, rto=HOUR, every=every).needs_log is needs
