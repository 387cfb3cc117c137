"""prune() and plan_prune(), on a system in memory: nothing goes that was not shown, and what stays can be restored."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from datetime import timedelta

import pytest
from attrs import evolve

from resilience import Archive, coverage, restore, verify
from resilience.archive import layout
from resilience.keys import KeyFile
from resilience.model.capture import Captured, Part
from resilience.model.errors import Conflict, NoBackup, Refused, StorageFailed
from resilience.model.events import Event
from resilience.model.findings import Doubt
from resilience.model.ids import new_id
from resilience.model.json import Offset
from resilience.model.log import LogEntry
from resilience.model.manifests import Manifest
from resilience.model.plans import BackupPlan
from resilience.model.positions import Position, RecoveryPoint
from resilience.model.pruning import PrunePlan, PruneReport
from resilience.model.retention import Keep, RetentionPolicy, RetentionRule
from resilience.operations.prune import plan_prune, prune
from resilience.primitives import ObjectStore
from resilience.stores import MemoryStore
from resilience.testing.cancellation import cancellations, nothing_left_running
from resilience.testing.faults import WatchedStore, change, flipped
from resilience.testing.memory import MemoryDestination

from .histories import History, at

MINUTE = timedelta(minutes=1)


def policy(minutes: float = 15, *, grace: float = 1, incremental: float | None = None) -> RetentionPolicy:
    kinds = {"base": minutes} if incremental is None else {"base": minutes, "incremental": incremental}
    rules = tuple(
        RetentionRule(system="memory", kind=kind, keep=(Keep(lasting=span * MINUTE),), at_least=kind == "base")
        for kind, span in kinds.items()
    )
    return RetentionPolicy(rules=rules, grace=grace * MINUTE)


async def pruned(history: History, how: RetentionPolicy | PrunePlan, minute: float = 30) -> PruneReport:
    history.now = minute
    chosen = {"policy": how} if isinstance(how, RetentionPolicy) else {"plan": how}
    return await prune(history.archive, "orders", **chosen, clock=lambda: at(minute))


async def planned(history: History, how: RetentionPolicy, minute: float = 30) -> PrunePlan:
    history.now = minute
    return await plan_prune(history.archive, "orders", policy=how, clock=lambda: at(minute))


async def full() -> History:
    """Backups in minutes 2, 10 and 20.5, a change in a few others up to 29."""
    history = History()
    await history.write(0, 1)
    await history.back_up(2)
    await history.write(3)
    await history.back_up(10)
    await history.write(11, 20)
    await history.back_up(20.5)
    await history.write(22, 25, 29)
    return history


async def keys(archive: Archive, prefix: str = "memory/") -> list[str]:
    return [info.key async for info in archive.store.list(prefix)]


async def ids(archive: Archive) -> list[str]:
    return [manifest.id async for manifest in archive.manifests("orders")]


async def values(history: History) -> dict[float, bytes]:
    """What the last minutes come back as, the oldest that can be had among them."""
    found: dict[float, bytes] = {}
    for minute in (21, 25, 29):
        into = MemoryDestination()
        await restore(history.archive, "orders", into=into, until=at(minute))
        found[minute] = into.values["minute"]
    return found


async def write(
    archive: Archive, minute: float, *, kind: str = "base", parent: str | None = None, number: int = 0
) -> Manifest:
    """Write a backup of a kind that the system in memory does not know."""
    plan = draft_of(minute, kind=kind, parent=parent, number=number)
    async with archive.draft(plan) as draft:
        await draft.store(Part(name="one", chunks=_chunks(b"some" * 300)))
        return await draft.publish(captured(minute))


def draft_of(minute: float, *, kind: str = "base", parent: str | None = None, number: int = 0) -> BackupPlan:
    return BackupPlan(
        id=f"{at(minute):%Y%m%dT%H%M%S}.000Z-{number:06x}",
        target="orders",
        system="memory",
        kind=kind,
        lineage="7400000000000000001",
        parent=parent,
        made_at=at(minute),
    )


def captured(minute: float) -> Captured:
    here = Position(branch="1", offset=Offset(int(minute * 100)), text=str(minute))
    return Captured(begins=here, recovery_point=RecoveryPoint(position=here))


async def _chunks(data: bytes) -> AsyncGenerator[bytes]:
    yield data


def simple(store: ObjectStore | None = None, **more: object) -> tuple[Archive, History]:
    """An archive of backups without a log; small objects, so that every backup has several."""
    history = History()
    history.archive = Archive(
        MemoryStore(clock=lambda: at(history.now)) if store is None else store,
        workers=1,
        object_size=50,
        frame_size=400,
        clock=lambda: at(history.now),
        **more,  # type: ignore[arg-type]
    )
    return history.archive, history


async def chain(history: History, *minutes: float, start: float = 0) -> list[Manifest]:
    """Write a base backup and incremental ones on top of each other."""
    made: list[Manifest] = []
    for number, minute in enumerate(minutes):
        history.now = minute
        parent = made[-1].id if made else None
        kind = "incremental" if made else "base"
        made.append(await write(history.archive, minute, kind=kind, parent=parent, number=number))
    return made


async def test_what_the_policy_no_longer_wants_goes_and_every_kept_moment_comes_back() -> None:
    history = await full()
    before = await values(history)
    plan = await planned(history, policy())
    first, second, third = await ids(history.archive)
    assert (plan.removed, plan.kept) == ((second, first), (third,))
    stored = await keys(history.archive)
    report = await pruned(history, plan)
    assert await ids(history.archive) == [third]
    assert set(report.removed) == {first, second}
    assert report.freed == plan.freed
    assert (report.held, report.spared) == ((), ())
    assert await values(history) == before
    gone = set(stored) - set(await keys(history.archive))
    assert not [key for key in gone if "/history/" in key]
    assert (await planned(history, policy())).empty
    assert (await coverage(history.archive, "orders")).holes == ()


async def test_a_plan_writes_nothing_and_an_empty_one_is_carried_out_without_a_trace() -> None:
    history = await full()
    before = await keys(history.archive)
    await planned(history, policy())
    assert await keys(history.archive) == before
    await pruned(history, policy())
    before = await keys(history.archive)
    report = await pruned(history, policy(), 31)
    assert await keys(history.archive) == before
    assert (report.removed, report.objects) == ((), 0)
    nothing = await plan_prune(history.archive, "nobody", policy=policy())
    assert nothing.empty


async def test_who_did_it_and_why_is_kept() -> None:
    history, events = await full(), list[Event]()
    history.now = 30
    report = await prune(
        history.archive,
        "orders",
        policy=policy(),
        actor="Ada",
        reason="the schedule",
        observer=events.append,
        clock=lambda: at(30),
        new_id=lambda _: "20261121T123000.000Z-abcdef",
    )
    assert (report.actor, report.reason) == ("Ada", "the schedule")
    assert "by Ada, the schedule" in str(report)
    run = "memory/orders/runs/20261121T123000.000Z-abcdef/"
    started, ended = [
        json.loads(await read(history.archive.store, f"{run}{each}.json")) for each in ("started", "ended")
    ]
    assert (started["kind"], started["actor"], started["reason"]) == ("prune", "Ada", "the schedule")
    assert ended["outcome"] == "succeeded"
    retired = layout.retired("memory", "orders", report.removed[0])
    assert json.loads(await read(history.archive.store, retired))["retired"]["actor"] == "Ada"
    assert [each.stage for each in events][:: len(events) - 1] == ["started", "completed"]
    assert {(each.actor, each.reason) for each in events} == {("Ada", "the schedule")}
    assert events[-1].done == events[-1].total == report.freed


async def read(store: ObjectStore, key: str) -> bytes:
    async with store.get(key) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def test_misuse_is_told() -> None:
    history = await full()
    plan = await planned(history, policy())
    with pytest.raises(TypeError, match="either a policy, or a plan"):
        await prune(history.archive, "orders")
    with pytest.raises(TypeError, match="either a policy, or a plan"):
        await prune(history.archive, "orders", policy=policy(), plan=plan)
    with pytest.raises(ValueError, match="the plan is for orders, not for others"):
        await prune(history.archive, "others", plan=plan)
    with pytest.raises(NoBackup):
        async with history.archive.pruning("nobody", id=new_id(at(1))):
            pass


async def test_a_clock_that_is_ahead_of_the_stores_removes_nothing() -> None:
    history = await full()
    plan = await plan_prune(history.archive, "orders", policy=policy(), clock=lambda: at(30 * 24 * 60))
    assert len(plan.removed) == 2
    with pytest.raises(Refused, match="29 d 23 h ahead of the store's"):
        await prune(history.archive, "orders", plan=plan)
    assert len(await ids(history.archive)) == 3


async def test_what_appears_between_plan_and_prune_stays_and_so_does_what_it_builds_on() -> None:
    archive, history = simple()
    first, second, last = await chain(history, 1), await chain(history, 2), await chain(history, 40)
    plan = await planned(history, policy(incremental=1), 41)
    assert set(plan.removed) == {first[0].id, second[0].id}
    history.now = 42
    child = await write(archive, 42, kind="incremental", parent=second[0].id, number=7)
    report = await pruned(history, plan, 43)
    assert report.removed == (first[0].id,)
    assert await ids(archive) == [second[0].id, last[0].id, child.id]
    (spared,) = report.spared
    assert (spared.backup, spared.reason) == (second[0].id, f"meanwhile: {child.id} builds on it")


async def test_what_appears_while_it_removes_stays_and_so_does_what_it_builds_on() -> None:
    archive, history = simple()
    first, second, last = await chain(history, 1), await chain(history, 2), await chain(history, 40)
    store, children = archive.store, list[Manifest]()

    async def before(operation: str, key: str) -> None:
        if operation == "delete" and first[0].id in key and not children:
            children.append(await write(archive, 42, kind="incremental", parent=second[0].id, number=7))

    archive.store = WatchedStore(store, lambda *_: asyncio.sleep(0))
    watched, _ = simple(WatchedStore(store, before))
    history.now = 43
    report = await prune(watched, "orders", policy=policy(incremental=1), clock=lambda: at(43))
    assert report.removed == (first[0].id,)
    assert [each.reason for each in report.spared] == [f"meanwhile {children[0].id} builds on it"]
    assert await ids(archive) == [second[0].id, last[0].id, children[0].id]


async def test_a_held_object_is_reported_and_the_others_go() -> None:
    archive, history = simple()
    one, two, three = await chain(history, 1), await chain(history, 2), await chain(history, 40)
    held = two[0].parts[0].objects[0].key
    holding, _ = simple(refusing(archive.store, lambda key: key == held))
    history.now = 60
    report = await prune(holding, "orders", policy=policy(), clock=lambda: at(60))
    assert set(report.removed) == {one[0].id, two[0].id}
    assert [(each.key, each.why) for each in report.held] == [(held, "under legal hold")]
    assert f"HELD  {held}: under legal hold" in str(report)
    assert [key for key in await keys(archive) if "/base/" in key and three[0].id not in key] == [held]
    plan = await planned(history, policy(), 70)
    assert [(each.backup, each.stays) for each in plan.leftovers] == [(two[0].id, False)]
    await pruned(history, plan, 70)
    assert held not in await keys(archive)


async def test_a_held_manifest_keeps_its_backup_whole_and_all_that_it_builds_on() -> None:
    archive, history = simple()
    base, middle, last = await chain(history, 1, 2, 3)
    await chain(history, 40)
    held = layout.manifest("memory", "orders", middle.id)
    holding, _ = simple(refusing(archive.store, lambda key: key == held))
    stored = {each for each in await keys(archive) if base.id in each or middle.id in each}
    history.now = 60
    report = await prune(holding, "orders", policy=policy(incremental=1), clock=lambda: at(60))
    assert report.removed == (last.id,)
    assert {each.backup: each.reason for each in report.spared} == {
        middle.id: "held: under legal hold",
        base.id: f"{middle.id} builds on it and stays: held: under legal hold",
    }
    assert stored <= set(await keys(archive))


def refusing(store: ObjectStore, which: Callable[[str], bool]) -> WatchedStore:
    async def before(operation: str, key: str) -> None:
        if operation == "delete" and which(key):
            raise Refused("under legal hold", operation="delete", subject=key)

    return WatchedStore(store, before)


async def left_behind(archive: Archive, minute: float, number: int = 1) -> str:
    """Fail a backup when its objects are there."""
    plan = draft_of(minute, number=number)
    with pytest.raises(StorageFailed):
        async with archive.draft(plan) as draft:
            await draft.store(Part(name="one", chunks=_chunks(b"some" * 300)))
            raise StorageFailed("the disk is full")
    return plan.id


async def test_leftovers_of_a_failed_attempt_go_after_the_grace_period() -> None:
    archive, history = simple()
    await chain(history, 1)
    history.now = 20
    failed = await left_behind(archive, 10)
    assert [each.stays for each in (await planned(history, policy(grace=15), 30)).leftovers] == [True]
    report = await pruned(history, policy(grace=15), 36)
    assert report.objects > 1
    assert [key for key in await keys(archive) if failed in key and "/runs/" not in key] == []
    assert report.removed == ()


async def test_a_run_that_writes_is_left_alone_however_long_ago_it_began() -> None:
    archive, history = simple()
    await chain(history, 1)
    history.now = 2
    async with archive.draft(draft_of(2, number=3)) as draft:
        await draft.store(Part(name="one", chunks=_chunks(b"some" * 300)))
        history.now = 500
        await draft.store(Part(name="two", chunks=_chunks(b"more")))
        report = await pruned(history, policy(grace=15), 510)
        assert report.objects == 0
        manifest = await draft.publish(captured(510))
    assert await ids(archive) == sorted(await ids(archive))
    assert manifest.id in await ids(archive)


async def test_a_run_that_was_given_up_can_no_longer_publish() -> None:
    archive, history = simple()
    await chain(history, 1)
    history.now = 2
    with pytest.raises(Conflict, match="a prune has given it up"):
        async with archive.draft(draft_of(2, number=3)) as draft:
            await draft.store(Part(name="one", chunks=_chunks(b"some" * 300)))
            await pruned(history, policy(grace=15), 500)
            await draft.publish(captured(2))
    ended = json.loads(await read(archive.store, layout.run("memory", "orders", draft.plan.id, "ended")))
    assert ended["outcome"] == "abandoned"
    assert len(await ids(archive)) == 1


async def test_a_run_that_is_given_up_while_it_publishes_leaves_no_manifest_without_objects() -> None:
    archive, history = simple()
    await chain(history, 1)
    history.now, published = 2, asyncio.Event()

    async def publishes(operation: str, key: str) -> None:
        if operation == "delete" and "/base/" in key and not published.is_set():
            published.set()
            go_on.set()
            with pytest.raises(Conflict, match="a prune has given it up"):
                await publish

    async def gives_up(operation: str, key: str) -> None:
        if operation == "put" and key == layout.manifest("memory", "orders", plan.id):
            looked.set()
            await go_on.wait()

    looked, go_on, store = asyncio.Event(), asyncio.Event(), archive.store
    plan = draft_of(2, number=3)
    archive.store = WatchedStore(store, gives_up)
    with pytest.raises(Conflict):
        async with archive.draft(plan) as draft:
            await draft.store(Part(name="one", chunks=_chunks(b"some" * 300)))
            publish = asyncio.create_task(draft.publish(captured(2)))
            await looked.wait()
            archive.store = WatchedStore(store, publishes)
            await pruned(history, policy(grace=15), 500)
            assert published.is_set()
            await publish
    archive.store = store
    assert plan.id not in await ids(archive)
    assert not [key for key in await keys(archive) if f"/base/{plan.id}" in key]


async def test_what_a_running_incremental_backup_builds_on_stays() -> None:
    archive, history = simple()
    (old,), _ = await chain(history, 1), await chain(history, 400)
    history.now = 499
    async with archive.draft(draft_of(499, kind="incremental", parent=old.id, number=3)) as draft:
        assert (await pruned(history, policy(incremental=1, grace=15), 500)).removed == ()
        await draft.store(Part(name="one", chunks=_chunks(b"some")))
        await draft.publish(captured(5))
    assert old.id in await ids(archive)


async def test_a_backup_that_cannot_be_read_is_told_and_nothing_goes_that_it_may_need() -> None:
    archive, history = simple()
    (one,), (two,), (three,) = await chain(history, 1), await chain(history, 2), await chain(history, 40)
    await change(archive.store, layout.manifest("memory", "orders", two.id), flipped(-20))
    report = await pruned(history, policy(), 60)
    assert report.removed == ()
    assert two.id in str(report.plan)
    doubts: list[Doubt] = []
    assert [each.id async for each in archive.manifests("orders", doubts=doubts)] == [one.id, three.id]
    assert [key for key in await keys(archive) if f"/base/{two.id}" in key]


@pytest.mark.usefixtures("uncounted")
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_killed_at_every_operation_of_the_store_and_run_again_it_comes_to_the_same_end(after: bool) -> None:
    """Every kept backup can be restored all the while, and at the end nothing is left of what was to go."""
    number, completed = 0, False
    while not completed:
        number += 1
        history = await slicing()
        expected = await values(history)
        whole = history.archive.store
        history.archive.store = killed_at(whole, number, after=after)
        history.archive.__attrs_post_init__()
        try:
            await pruned(history, policy())
            completed = True
        except StorageFailed:
            pass
        history.archive.store = whole
        history.archive.__attrs_post_init__()
        assert await values(history) == expected
        await pruned(history, policy(), 40)
        assert await values(history) == expected
        (kept,) = await ids(history.archive)
        stored = [key for key in await keys(history.archive) if "/base/" in key or "/manifests/" in key]
        assert all(kept in key for key in stored)
        assert (await planned(history, policy(), 40)).empty
    assert number > 30


def killed_at(store: ObjectStore, number: int, *, after: bool) -> ObjectStore:
    """From the operation of that number on nothing is answered any more; `after`: it was carried out all the same."""
    done = 0

    async def before(operation: str, key: str) -> None:
        nonlocal done
        done += 1
        if done >= number:
            if after and done == number and operation == "delete":
                await store.delete(key)
            raise StorageFailed("killed")

    return WatchedStore(store, before)


async def slicing() -> History:
    """As `full`, with slices that a whole segment supersedes, leftovers of a failed attempt, and records of gaps."""
    history = await full()
    history.now = 3
    await left_behind(history.archive, 3, number=9)
    async with history.log() as log:
        whole = [entry async for entry in log.entries("1")]
        for entry in (whole[0], whole[-1]):
            data = b"".join(await log.read(entry))
            middle = evolve(entry.begins, offset=entry.begins.offset + 5)
            piece = LogEntry(begins=entry.begins, ends=middle, segment=entry.begins)
            await log.append(piece, [data[:5]])
        history.now = 29
        for minute in (26, 27, 28):
            history.now = minute
            await log.record((await log.survey()).watermarks[0])
    return history


async def put_back(history: History, key: str, data: bytes) -> None:
    await history.archive.store.delete(key)
    await history.archive.store.put(key, [data])


async def test_a_backup_whose_manifest_somebody_deleted_can_be_had_back() -> None:
    archive, history = simple()
    (one,), _ = await chain(history, 1), await chain(history, 90)
    key = layout.manifest("memory", "orders", one.id)
    taken = await read(archive.store, key)
    await archive.store.delete(key)
    plan = await planned(history, policy(60 * 24), 100)
    assert [(each.backup, each.stays) for each in plan.leftovers] == [(one.id, True)]
    assert (await pruned(history, plan, 100)).objects == 0
    await archive.store.put(key, [taken])
    assert one.id in await ids(archive)
    assert (await verify(archive, one)).passed
    await archive.store.delete(key)
    assert (await pruned(history, policy(60), 200)).objects > 0


async def test_superseded_slices_and_watermarks_go_and_a_damaged_segment_keeps_its_slices() -> None:
    history = await slicing()
    assert len([key for key in await keys(history.archive) if "/slices/" in key]) == 2
    how = policy(grace=0.5)
    assert {each.what for each in (await planned(history, how)).log} == {"expired", "superseded", "watermarks"}
    segment = [key for key in await keys(history.archive) if "/log/" in key][-1]
    taken = await change(history.archive.store, segment, flipped(60))
    await pruned(history, how)
    assert len([key for key in await keys(history.archive) if "/slices/" in key]) == 1
    assert len([key for key in await keys(history.archive) if "/watermarks/" in key]) == 1
    await put_back(history, segment, taken)
    await change(history.archive.store, segment, flipped(-1))
    await pruned(history, how)
    assert len([key for key in await keys(history.archive) if "/slices/" in key]) == 1
    await put_back(history, segment, taken)
    await pruned(history, how, 40)
    assert [key for key in await keys(history.archive) if "/slices/" in key] == []


@pytest.mark.usefixtures("uncounted")
async def test_cancelled_anywhere_it_leaves_nothing_running_and_every_kept_moment() -> None:
    async with nothing_left_running():
        for attempt in cancellations(step=7):
            history = await full()
            expected = await values(history)
            await attempt(pruned(history, policy()))
            assert await values(history) == expected


async def test_another_timeline_and_another_history_keep_their_log() -> None:
    history = History()
    await history.write(0, 1)
    await history.back_up(2)
    await history.write(3, 4)
    promoted = history.target.promoted("2")
    await history.write(5, 6)
    await history.write(7, 8, target=promoted)
    await history.back_up(9, promoted)
    await history.write(10, 11, target=promoted)
    await history.write(40, 41, target=promoted)
    other = History(lineage="8")
    other.archive = history.archive
    await other.write(42)
    await pruned(history, policy(), 50)
    left = await keys(history.archive, "memory/orders/log/")
    assert [key for key in left if "/7400000000000000001/1/" in key] == []
    assert len([key for key in left if "/7400000000000000001/2/" in key]) == 4
    assert len(await keys(history.archive, "memory/orders/history/")) == 3
    into = MemoryDestination()
    await restore(history.archive, "orders", into=into, until=at(10))
    assert into.values["minute"] == b"10"


async def test_a_sealed_archive_knows_what_was_retired_and_by_whom(tmp_path: object) -> None:
    key = KeyFile.create(f"{tmp_path}/key")
    archive, history = simple(key=key)
    made = [(await chain(history, minute))[0] for minute in (1, 2, 3, 40)]
    history.now = 50
    report = await prune(archive, "orders", policy=policy(), actor="Ada", clock=lambda: at(50))
    assert set(report.removed) == {each.id for each in made[:3]}
    doubts: list[Doubt] = []
    assert [each.id async for each in archive.manifests("orders", doubts=doubts)] == [made[3].id]
    assert doubts == []
    await archive.store.delete(layout.manifest("memory", "orders", made[3].id))
    assert [each async for each in archive.manifests("orders", doubts=doubts)] == []
    assert [each.backup for each in doubts] == [made[3].id]
    history.now = 5000
    plan = await plan_prune(archive, "orders", policy=policy(), clock=lambda: at(5000))
    assert [each.stays for each in plan.leftovers] == [True]
    assert "nobody has retired it" in plan.leftovers[0].reason


async def test_somebody_without_the_key_cannot_make_it_remove_a_running_backups_objects(tmp_path: object) -> None:
    archive, history = simple(key=KeyFile.create(f"{tmp_path}/key"))
    await chain(history, 1)
    history.now = 30
    async with archive.draft(draft_of(30, number=3)) as draft:
        await draft.store(Part(name="one", chunks=_chunks(b"some" * 300)))
        forged = layout.retired("memory", "orders", draft.plan.id)
        await archive.store.put(forged, [b'{"format":1}'])
        assert (await pruned(history, policy(grace=15), 31)).objects == 0
        await draft.publish(captured(31))
