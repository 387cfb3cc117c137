"""Backups and a log in a real Azurite: planned, pruned, killed half-way and pruned again; sealed, and not."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from resilience import Archive, plan_prune, prune, restore
from resilience.keys import KeyFile
from resilience.model.errors import NotRecoverable, StorageFailed
from resilience.model.moments import utc_now
from resilience.model.retention import RetentionPolicy, RetentionRule
from resilience.stores import AzureBlobStore
from resilience.testing.faults import WatchedStore
from resilience.testing.memory import MemoryDestination
from resilience.testing.stores import listed

from .. import histories
from ..histories import History, at

NEWEST = RetentionPolicy(rules=(RetentionRule(system="memory", kind="base", keep=()),), grace=timedelta())


@pytest.fixture(autouse=True)
def just_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the history end now: the store's clock is the real one."""
    monkeypatch.setattr(histories, "START", utc_now() - timedelta(minutes=30))


async def write(store: AzureBlobStore, key: KeyFile | None) -> None:
    """Write two backups, with a log before, between and after."""
    written = History()
    written.archive = Archive(store, workers=1, key=key, clock=lambda: at(written.now))
    await written.write(0, 1)
    await written.back_up(2)
    await written.write(*range(3, 6))
    await written.back_up(10)
    await written.write(*range(11, 14))


async def restored(archive: Archive, minute: float | None = None) -> bytes:
    destination = MemoryDestination()
    await restore(archive, "orders", into=destination, until=None if minute is None else at(minute))
    return destination.values["minute"]


def killed(store: AzureBlobStore, deletes: int) -> WatchedStore:
    """Make a store whose process dies once so many objects are gone."""
    done = 0

    async def before(operation: str, _: str) -> None:
        nonlocal done
        if operation == "delete":
            done += 1
            if done > deletes:
                raise StorageFailed("killed")

    return WatchedStore(store, before)


@pytest.mark.parametrize("sealed", [False, True], ids=["unsealed", "sealed"])
@pytest.mark.parametrize("deletes", [0, 1, 3])
async def test_a_prune_that_is_killed_half_way_is_finished_by_the_next(
    store: AzureBlobStore, tmp_path: Path, sealed: bool, deletes: int
) -> None:
    key = KeyFile.create(tmp_path / "key") if sealed else None
    await write(store, key)
    archive = Archive(store, workers=1, key=key)
    assert [await restored(archive, minute) for minute in (4, 12)] == [b"4", b"12"]
    before = await listed(store)
    plan = await plan_prune(archive, "orders", policy=NEWEST)
    assert (len(plan.removed), len(plan.log)) == (1, 1), plan
    assert await listed(store) == before

    with pytest.raises(StorageFailed, match="killed"):
        await prune(Archive(killed(store, deletes), workers=1, key=key), "orders", plan=plan)
    assert [await restored(archive, 12), await restored(archive)] == [b"12", b"13"]
    report = await prune(Archive(store, workers=1, key=key), "orders", policy=NEWEST)
    assert (report.held, report.spared) == ((), ())
    assert (await plan_prune(archive, "orders", policy=NEWEST)).empty
    left = {info.key for info in await listed(store)}
    assert {info.key for info in before} - left and not any(plan.removed[0] in key for key in left if "/base/" in key)
    assert [await restored(archive, 12), await restored(archive)] == [b"12", b"13"]
    with pytest.raises(NotRecoverable):
        await restored(archive, 4)
