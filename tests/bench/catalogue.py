"""A catalogue of many backups: how long it takes to list them, and to plan with them.

`nox -s bench -- catalogue [--backups 100000]`. A local archive is filled with the manifests of one target, a full
backup and 23 increments a day, as they would be there after years, and with a log of a segment an hour; the objects of
the backups are not there, nobody looks at them. Each step runs in a process of its own, with a cold interpreter and a
warm page cache.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ours import peak_rss_mib, watch_loop
from resilience import Archive, Keep, RecoveryTarget, RetentionPolicy, RetentionRule, coverage, plan_prune, plan_restore
from resilience.archive import layout
from resilience.archive.entries import described, stored
from resilience.archive.envelope import wrap
from resilience.model.json import Offset
from resilience.model.log import Branch, LogEntry
from resilience.model.manifests import Manifest, StoredObject, StoredPart
from resilience.model.positions import Position, RecoveryPoint
from resilience.stores import LocalStore
from resilience.streams.frames import FRAME_SIZE, Compressor
from resilience.testing.memory import MemoryDestination

ROOT = Path(__file__).parents[2]
TARGET = "orders"
LINEAGE = "7400000000000000001"
FIRST = datetime(2015, 1, 1, tzinfo=UTC)
A_DAY = 24
PARTS = ("base.tar", "16384.tar", "backup_manifest")
SEGMENT = 16 << 20
FRAMES = 16
"""An object of 64 MiB has about that many frames of 4 MiB."""


def manifest(number: int) -> Manifest:
    """Make the manifest of a backup of 192 MiB: every 24th is a full one, the others build on the one before."""
    at = FIRST + timedelta(hours=number)
    here = Position(branch="1", offset=Offset(number << 24), text=f"{number:X}")
    kind = "incremental" if number % A_DAY else "base"
    prefix = layout.backup("memory", TARGET, kind, name(number))
    return Manifest(
        id=name(number),
        target=TARGET,
        system="memory",
        kind=kind,
        lineage=LINEAGE,
        parent=name(number - 1) if number % A_DAY else None,
        started_at=at,
        ended_at=at + timedelta(minutes=5),
        begins=here,
        recovery_point=RecoveryPoint(position=here, time=at),
        parts=tuple(
            StoredPart(
                name=part,
                size=FRAMES << 22,
                frame_size=1 << 22,
                objects=(
                    StoredObject(
                        key=layout.data(prefix, part, 0),
                        size=FRAMES << 20,
                        sha256=f"{number:064x}",
                        frames=(1 << 20,) * FRAMES,
                    ),
                ),
            )
            for part in PARTS
        ),
    )


def name(number: int) -> str:
    """Return the id of a backup."""
    return f"{FIRST + timedelta(hours=number):%Y%m%dT%H%M%S}.000Z-{number:06x}"


def fill(root: Path, count: int) -> None:
    """Write the manifests where a LocalStore has them; nothing is synced, nobody will miss it."""
    (root / "targets").mkdir(parents=True)
    (root / layout.registration(TARGET)).write_text('{"system":"memory"}')
    folder = root / layout.manifests("memory", TARGET)
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{name(number)}.json").write_bytes(wrap(manifest(number)))


def fill_log(root: Path, count: int) -> None:
    """Write a log of a segment for every backup, as it is stored: what is in it does not matter."""
    frame = Compressor(1)([bytes(FRAME_SIZE)])
    frames = [frame] * (SEGMENT // FRAME_SIZE)
    branch = root / layout.history("memory", TARGET, LINEAGE, "1")
    branch.parent.mkdir(parents=True)
    branch.write_bytes(wrap(Branch(name="1")))
    folder = root / layout.segments("memory", TARGET, LINEAGE, "1")
    for number in range(count):
        at = FIRST + timedelta(hours=number)
        begins, ends = (Position(branch="1", offset=Offset(each * SEGMENT), text="") for each in (number, number + 1))
        entry = LogEntry(begins=begins, ends=ends, latest=at, complete_at=at)
        head = described(entry, frames, FRAME_SIZE, target=TARGET, lineage=LINEAGE, sealing=None)
        path = folder / layout.segment(begins.offset, ends.offset)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join([stored(head), *frames]))


class Destination(MemoryDestination):
    """Takes increments too; nothing is restored into it."""

    accepts = ("base", "incremental")
    replays = ("base", "incremental")


async def listed(archive: Archive) -> str:
    """List all."""
    return str(len([each.id async for each in archive.manifests(TARGET)]))


async def planned(archive: Archive) -> str:
    """Plan to restore the newest."""
    plan = await plan_restore(archive, TARGET, into=Destination("there"))
    return f"a chain of {len(plan.chain)}"


async def planned_old(archive: Archive) -> str:
    """Plan to restore one by its id, the third of its day."""
    plan = await plan_restore(archive, TARGET, into=Destination("there"), until=RecoveryTarget.backup(name(50)))
    return f"a chain of {len(plan.chain)}"


async def covered(archive: Archive) -> str:
    """Say what can be restored."""
    return f"{len((await coverage(archive, TARGET)).moments)} moments"


async def pruned(archive: Archive) -> str:
    """Plan to keep a year of them."""
    rules = (
        RetentionRule(system="memory", kind=kind, keep=(Keep(lasting=timedelta(days=365)),))
        for kind in ("base", "incremental")
    )
    plan = await plan_prune(archive, TARGET, policy=RetentionPolicy(rules=tuple(rules)))
    return f"{len(plan.kept)} stay"


STEPS: dict[str, Callable[[Archive], Awaitable[str]]] = {
    "list": listed,
    "plan the newest": planned,
    "plan an old one": planned_old,
    "coverage": covered,
    "plan a prune": pruned,
}


async def run(step: str, root: str, into: str) -> None:
    """Do one step with the loop watched, and write what it took to a file."""
    worst = [0.0]
    watching = asyncio.create_task(watch_loop(worst))
    began = time.monotonic()
    said = await STEPS[step](Archive(LocalStore(root)))
    seconds = time.monotonic() - began
    watching.cancel()
    took = {"seconds": seconds, "loop_stall_ms": worst[0] * 1000, "peak_rss_mib": peak_rss_mib(), "said": said}
    Path(into).write_text(json.dumps(took))


def main() -> None:
    """Fill an archive, time the steps, print and write the numbers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--backups", type=int, default=100_000)
    parser.add_argument("--step", nargs=3, metavar=("STEP", "ROOT", "INTO"))
    arguments = parser.parse_args()
    if arguments.step:
        asyncio.run(run(*arguments.step))
        return
    results = {}
    with tempfile.TemporaryDirectory(prefix="resilience-catalogue-") as folder:
        root, into = Path(folder) / "archive", Path(folder) / "took.json"
        fill(root, arguments.backups)
        fill_log(root, arguments.backups)
        print(f"{arguments.backups} backups, {len(wrap(manifest(1)))} bytes a manifest", flush=True)
        for step in STEPS:
            subprocess.run([sys.executable, __file__, "--step", step, str(root), str(into)], check=True)
            results[step] = json.loads(into.read_text())
            took = results[step]
            print(
                f"{step:16} {took['seconds']:6.2f} s, loop stalls of {took['loop_stall_ms']:.0f} ms at most, "
                f"peak {took['peak_rss_mib']:.0f} MiB: {took['said']}",
                flush=True,
            )
    written = {"backups": arguments.backups, "bytes_a_manifest": len(wrap(manifest(1))), "steps": results}
    (ROOT / ".bench").mkdir(exist_ok=True)
    (ROOT / ".bench" / "catalogue.json").write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
