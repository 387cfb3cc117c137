"""What is held in a storage account is told before anything is removed; `FakeBlobAccount` plays what Azurite lacks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from resilience import Archive, backup, plan_prune, prune
from resilience.model.errors import Refused
from resilience.model.manifests import Manifest
from resilience.model.retention import RetentionPolicy, RetentionRule
from resilience.stores import AzureBlobStore
from resilience.testing import MemoryTarget
from resilience.testing.fake_blob_account import FakeBlobAccount
from resilience.testing.http_faults import Fault
from resilience.testing.stores import listed

NEWEST = RetentionPolicy(rules=(RetentionRule(system="memory", kind="base", keep=()),), grace=timedelta(hours=1))
LATER = datetime(2100, 1, 2, 3, 4, tzinfo=UTC)


def blob(store: AzureBlobStore, key: str) -> str:
    return f"{store.container_url.rpartition('/')[2]}/{key}"


async def two(store: AzureBlobStore) -> tuple[Archive, Manifest, Manifest]:
    archive, target = Archive(store, workers=1), MemoryTarget("orders", {"minute": b"12" * 500})
    return archive, (await backup(target, archive)).manifest, (await backup(target, archive)).manifest


async def test_an_object_says_that_it_is_held(proxy: FakeBlobAccount, behind: AzureBlobStore) -> None:
    for key in ("free", "held", "immutable", "past"):
        await behind.put(key, [b"data"])
    proxy.held.add(blob(behind, "held"))
    proxy.immutable = {blob(behind, "immutable"): LATER, blob(behind, "past"): datetime(2020, 1, 1, tzinfo=UTC)}
    said = {"free": "", "held": "it is under legal hold", "immutable": "it is immutable until 2100-01-02 03:04Z"}
    said["past"] = ""
    assert {info.key: info.held for info in await listed(behind)} == said
    assert {key: info.held for key in said if (info := await behind.stat(key))} == said


@pytest.mark.parametrize("which", ["manifest", "object"])
async def test_a_held_backup_is_told_by_the_plan_and_stays_whole(
    proxy: FakeBlobAccount, behind: AzureBlobStore, which: str
) -> None:
    archive, old, _ = await two(behind)
    assert (await plan_prune(archive, "orders", policy=NEWEST)).removed == (old.id,)
    key = old.parts[0].objects[0].key if which == "object" else f"memory/orders/manifests/{old.id}.json"
    proxy.held.add(blob(behind, key))
    there = await listed(behind)
    plan = await plan_prune(archive, "orders", policy=NEWEST)
    assert plan.empty
    assert [each.reason for each in plan.backups if each.backup == old.id] == ["held: it is under legal hold"]
    await prune(archive, "orders", policy=NEWEST)
    assert await listed(behind) == there
    proxy.held.clear()
    assert (await prune(archive, "orders", policy=NEWEST)).removed == (old.id,)


async def test_a_hold_that_no_list_tells_is_reported_and_stops_nothing(
    proxy: FakeBlobAccount, behind: AzureBlobStore
) -> None:
    archive, old, _ = await two(behind)
    key = f"memory/orders/manifests/{old.id}.json"
    proxy.held.add(blob(behind, key))
    proxy.silent = True
    report = await prune(archive, "orders", policy=NEWEST)
    assert ([each.key for each in report.held], report.removed) == ([key], ())
    assert old.id in [each.id async for each in archive.manifests("orders")]


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "InvalidQueryParameterValue"), (409, "FeatureNotSupported"), (403, "AuthorizationPermissionMismatch")],
)
async def test_an_account_that_does_not_tell_holds_is_listed_all_the_same(
    proxy: FakeBlobAccount, behind: AzureBlobStore, status: int, code: str
) -> None:
    await behind.put("object", [b"data"])
    proxy.script = lambda asked: Fault(status=status, code=code) if "include=" in asked.raw_path else None
    assert [(info.key, info.held) for info in await listed(behind)] == [("object", "")]
    proxy.asked.clear()
    assert len(await listed(behind)) == len(proxy.asked) == 1
    proxy.script = lambda _: Fault(status=403, code="AuthorizationPermissionMismatch")
    with pytest.raises(Refused, match="list: not permitted"):
        await listed(behind)
