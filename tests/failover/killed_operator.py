"""An operator of real servers who ends himself with kill -9 (or hangs) before or after the n-th thing that he does.

Reads what to do as lines of JSON, each with the group, the verb and the number, and answers each with how it ended. It
forks: importing everything anew for every boundary would take minutes.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

from attrs import define

from resilience.model.failover import FailoverPlan, FailoverReport
from resilience.operations.failback import failback
from resilience.operations.failover import failover
from resilience.operations.group import FailoverGroup
from resilience.operations.plan_failover import plan_failback, plan_failover
from resilience.operations.recorder import StateRecorder
from resilience.operations.resume import resume
from resilience.operations.switchover import switchover
from resilience.pgbouncer import PgBouncerSwitch
from resilience.postgres import LocalFencer, PostgresPromoter
from resilience.postgres.failover.server import LocalServer
from resilience.postgres.members import PostgresMember
from resilience.primitives import Fencer, ObjectStore, TrafficSwitch
from resilience.stores import LocalStore

EFFECTS = ("put", "prepare", "switch", "fence", "lift", "settle", "promote", "verify", "follow", "rejoin", "require")
NOTICED_SECONDS = 20.0
PAUSE = 0.02
PR_SET_CHILD_SUBREAPER = 36
hanging: list[tuple[int, int]] = []


@define
class Mortal:
    """Dies at point number `at`: one is before, and one after, each effect."""

    at: int
    points: list[str]
    end: signal.Signals = signal.SIGKILL

    def __call__(self, point: str) -> None:
        self.points.append(point)
        if len(self.points) == self.at:
            os.kill(os.getpid(), self.end)

    def of(self, real: object) -> Any:  # noqa: ANN401  # whatever it is, it does the same as before
        return _Watched(real, self)


class _Watched:
    def __init__(self, real: object, point: Callable[[str], None]) -> None:
        self._real, self._point = real, point

    def __getattr__(self, name: str) -> object:
        found = getattr(self._real, name)
        if name not in EFFECTS:
            return found

        async def effect(*args: object, **options: object) -> object:
            self._point(f"before {name}")
            result = await cast("Callable[..., Awaitable[object]]", found)(*args, **options)
            self._point(f"after {name}")
            return result

        return effect


@asynccontextmanager
async def grouped(given: dict[str, Any], mortal: Mortal):  # type: ignore[no-untyped-def]  # noqa: ANN201
    """Make the group of what a line says of it."""
    members = [
        PostgresMember(name, dsn=dsn, server=LocalServer(Path(data), bin_dir=Path(given["bin"])))
        for name, (dsn, data) in given["members"].items()
    ]
    switch = PgBouncerSwitch("pool", **given["pool"])
    async with PostgresPromoter("orders", members=members) as promoter:
        yield FailoverGroup(
            "orders",
            promoter=mortal.of(promoter),
            fencers=[cast("Fencer", mortal.of(LocalFencer(members)))],
            switches=[cast("TrafficSwitch", mortal.of(switch))],
            journal=cast("ObjectStore", mortal.of(LocalStore(given["journal"]))),
        )


async def recorded(request: dict[str, Any]) -> str:
    """Write down what a recorder would have, once it is sure of who is waited for."""
    async with grouped(request["group"], Mortal(-1, [])) as group:
        recorder = StateRecorder(group)
        for _ in range(2):
            sample = await recorder.once()
            await asyncio.sleep(PAUSE)
    return "recorded" if sample.sync is not None and sample.sync.needed else "not yet"


async def done(request: dict[str, Any], mortal: Mortal) -> FailoverReport:
    """Do what is asked for."""
    async with grouped(request["group"], mortal) as group:
        match request["verb"]:
            case "failover":
                plan = await noticed(group)
                return await failover(group, plan, confirm=plan.confirmation, actor="anna", reason="it was killed")
            case "switchover":
                return await switchover(group, to=request["to"], actor="anna", reason="maintenance")
            case "failback":
                plan = await plan_failback(group)
                return await failback(group, plan, confirm=plan.confirmation, actor="anna", reason="it is dead")
            case _:
                return await resume(group, actor="bert", reason="anna's machine is dead")


async def noticed(group: FailoverGroup) -> FailoverPlan:
    """Plan until nothing stands in the way."""
    async with asyncio.timeout(NOTICED_SECONDS):
        while (plan := await plan_failover(group)).blockers:
            await asyncio.sleep(PAUSE)
    return plan


def answer(request: dict[str, Any]) -> dict[str, object]:
    """Run a request in a child, and say how that ended."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        mortal = Mortal(request["at"], [], signal.SIGSTOP if request["hangs"] else signal.SIGKILL)
        try:
            said: dict[str, object] = {}
            if request["verb"] == "record":
                said = {"ending": asyncio.run(recorded(request))}
            else:
                report = asyncio.run(done(request, mortal))
                said = {"ending": report.ending, "why": report.why, "primary": report.primary}
        except BaseException:  # noqa: BLE001  # told to the test
            said = {"ending": traceback.format_exc()}
        os.write(writing, json.dumps({**said, "points": len(mortal.points)}).encode())
        os._exit(0)
    os.close(writing)
    return ended(child, reading)


def ended(child: int, reading: int) -> dict[str, object]:
    """Say how a child ended, or that it hangs."""
    _, status = os.waitpid(child, os.WUNTRACED)
    if os.WIFSTOPPED(status):
        hanging.append((child, reading))
        return {"ending": "hangs"}
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    return {"ending": "killed"} if os.WIFSIGNALED(status) else json.loads(told)


def woken() -> dict[str, object]:
    """Wake the one who hangs, and say how that ended."""
    child, reading = hanging.pop()
    os.kill(child, signal.SIGCONT)
    return ended(child, reading)


def reaped() -> dict[str, object]:
    """Take note of the end of the servers that our children had started: PostgreSQL takes a zombie for alive."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue
    return {"ending": "reaped"}


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        match asked["verb"]:
            case "reap":
                said = reaped()
            case "wake":
                said = woken()
            case _:
                said = answer(asked)
        print(json.dumps(said), flush=True)
