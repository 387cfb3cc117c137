"""A standby that settled receives again from whoever is primary in the end, or somebody hears that it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attrs import define, evolve

from resilience.model.errors import TimedOut
from resilience.operations.switchover import switchover
from resilience.planning.transitions import TRIES
from resilience.postgres import LocalFencer, LocalServer
from resilience.testing.machine import unprivileged
from resilience.testing.replication import TestGroup, running_group

from .staged import Stage


@define
class Stalling:
    """A standby stalls once it has settled, and answers again at a point of the story (`until`)."""

    stage: Stage
    name: str
    until: str
    times: int = 1

    async def __call__(self, point: str) -> None:
        server = self.stage.world.servers[self.name]
        if point.startswith("after settle"):
            server.reachable = False
        if point.startswith(self.until):
            self.times -= 1
            server.reachable = server.reachable or self.times == 0


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resilience.operations.executing.PAUSE", 0.001)


async def test_one_that_did_not_answer_as_it_settled_follows_the_new_primary() -> None:
    stage = await Stage.of("a", "b", "c")
    stage.world.watch = Stalling(stage, "c", "after promote b")
    report = await switchover(stage.group, to="b", clock=stage.world.clock)
    assert report.ending == "completed" and stage.world.servers["c"].upstream == "b"
    stage.assert_failed_over("b")


async def test_one_that_stalls_for_a_while_follows_the_old_primary_once_all_is_undone() -> None:
    stage = await Stage.of("a", "b", "c")
    stage.world.watch = Stalling(stage, "b", "before follow b", times=TRIES)
    report = await switchover(stage.group, to="b", clock=stage.world.clock)
    assert report.ending == "stopped" and "nobody can look at it any more" in report.why
    stage.assert_as_before()
    assert {name: stage.world.servers[name].upstream for name in "bc"} == {"b": "a", "c": "a"}
    assert not [each for each in report.findings if "follow" in each.text]


async def test_one_that_is_gone_does_not_keep_it_from_its_end_and_is_named() -> None:
    stage = await Stage.of("a", "b", "c")
    stage.world.watch = Stalling(stage, "b", "never")
    report = await switchover(stage.group, to="b", clock=stage.world.clock)
    assert report.ending == "stopped"
    stage.assert_as_before()
    (found,) = [each for each in report.findings if "follow" in each.text]
    assert found.subject == "b" and "plan_failback" in found.hint
    assert [each.step.subject for each in report.steps if each.step.kind == "follow"].count("b") == TRIES


@pytest.fixture
def group(tmp_owned: Path, postgres_bin: Callable[[int], Path]) -> Iterator[TestGroup]:
    with running_group(tmp_owned / "group", postgres_bin(17), 0) as made:
        yield made


def begun_by(group: TestGroup, seconds: float) -> LocalServer:
    """Started by a command that returns before the server is there, as an init system's may."""
    primary = group.primary
    account = unprivileged()
    as_whom = f"setpriv --reuid={account.uid} --regid={account.gid} --clear-groups " if account else ""
    start = f"{as_whom}{group.bin_dir}/pg_ctl start -w -D {primary.data} -l {primary.data}/start.log"
    return LocalServer(
        primary.data, bin_dir=group.bin_dir, start_with=["sh", "-c", f"(sleep {seconds}; {start}) >/dev/null 2>&1 &"]
    )


async def test_lifting_waits_for_a_server_whose_command_returned_early(group: TestGroup) -> None:
    (a,) = group.members()
    member = evolve(a, server=begun_by(group, 0.3))
    fencer = LocalFencer([member])
    await fencer.fence("a", epoch=1)
    await fencer.lift("a", epoch=1)
    assert group.primary.psql("select not pg_is_in_recovery()") == "t"
    await begun_by(group, 0).start()  # it runs
    await fencer.fence("a", epoch=2)
    with pytest.raises(TimedOut, match="takes no connections after"):
        await LocalServer(group.primary.data, start_with=["true"]).start(seconds=0.1)
