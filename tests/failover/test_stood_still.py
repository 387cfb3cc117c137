"""An operator who stands still after any of his records, while another finishes his work, touches nothing any more."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from resilience.model.errors import FencedOff, JournalConflict
from resilience.operations.resume import resume

from .staged import Stage


@pytest.mark.parametrize("number", range(1, 8))
@pytest.mark.parametrize("stop", [False, True], ids=["finished", "undone"])
async def test_who_stood_still_touches_nothing_any_more(
    monkeypatch: pytest.MonkeyPatch, number: int, stop: bool
) -> None:
    stage = await Stage.of()
    stage.world.kill("a")
    plan = await stage.plan()
    later, done, asleep = [0.0], [0], [False]
    after: list[tuple[object, ...]] = []
    now = SimpleNamespace(time=lambda: time.time() + later[0], monotonic=time.monotonic)
    monkeypatch.setattr("resilience.operations.executing.time", now)

    def touched() -> tuple[object, ...]:
        servers = stage.world.servers.values()
        return (
            tuple(stage.world.effects), tuple(stage.switch.switches), stage.switch.to, stage.switch.held,
            tuple((each.name, each.alive, each.fenced, each.starts, each.epoch) for each in servers),
        )  # fmt: skip

    async def watch(point: str) -> None:
        done[0] += point == "after put" and not asleep[0]
        if done[0] == number and not asleep[0]:
            asleep[0] = True  # stopped, as by SIGSTOP, just after the record was durable
            execution = await stage.execution()
            assert execution is not None
            await resume(stage.group, stop=stop and execution.undoable, clock=stage.world.clock)
            after.append(touched())
            later[0] = 2.0

    stage.world.watch = stage.store.watch = watch
    with pytest.raises((JournalConflict, FencedOff)):
        await stage.fail_over(plan)
    assert after == [touched()]
    stage.assert_safe()
