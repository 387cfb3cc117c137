"""Journals, reports and post-mortems as a tired person reads them: kept word by word in tests/golden/journals.

`GOLDEN=write pytest tests/failover/test_golden_journals.py` writes them anew; then read them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import pytest
from attrs import evolve

from resilience.model.errors import Interrupted
from resilience.model.failover import FailoverReport
from resilience.model.journal import Record
from resilience.model.json import from_json
from resilience.operations.failback import failback
from resilience.operations.failover import failover
from resilience.operations.resume import resume
from resilience.operations.switchover import switchover
from resilience.render.postmortem import post_mortem

from .staged import Died, Stage

GOLDEN = Path(__file__).parent.parent / "golden" / "journals"


async def a_failover_of_a_killed_primary(stage: Stage) -> FailoverReport:
    """The primary is killed; the words are typed; nothing is lost."""
    stage.world.kill("a")
    failed_at = stage.world.clock()
    stage.world.now += timedelta(seconds=20)
    plan = await stage.plan()
    stage.world.now += timedelta(seconds=40)
    return await failover(
        stage.group,
        plan,
        confirm=plan.confirmation,
        actor="Ada Lovelace",
        reason="incident 4711",
        failed_at=failed_at,
        clock=stage.world.clock,
    )


async def a_switchover(stage: Stage) -> FailoverReport:
    """A maintenance window: the role goes to b, and the old primary comes back as a standby."""
    return await switchover(
        stage.group, to="b", actor="Ada Lovelace", reason="a new kernel for a", clock=stage.world.clock
    )


async def killed_in_the_middle_and_resumed(stage: Stage) -> FailoverReport:
    """The operator's machine dies while he promotes; somebody else goes on, and promotes nobody a second time."""
    stage.world.kill("a")
    plan = await stage.plan()

    async def dies(point: str) -> None:
        if point == "after promote b":
            raise Died

    stage.world.watch = dies
    with pytest.raises(Died):
        await stage.fail_over(plan)
    stage.fate()
    return await resume(stage.group, actor="Grace Hopper", reason="took over from Ada", clock=stage.world.clock)


async def stopped_because_nobody_could_prove_the_fence(stage: Stage) -> FailoverReport:
    """The machine of the primary does not answer, so nobody can prove that it does not write: all is undone."""
    stage.world.kill("a")
    plan = await stage.plan()
    stage.fencer.beyond.add("a")
    return await stage.fail_over(plan)


async def split_brain_accepted_by_name(stage: Stage) -> FailoverReport:
    """The same, and somebody takes it upon himself."""
    stage.world.kill("a")
    plan = await stage.plan(max_loss=timedelta(days=1))
    stage.fencer.beyond.add("a")
    return await stage.fail_over(plan, accept_split_brain=True)


async def a_route_that_would_not_move(stage: Stage) -> FailoverReport:
    """The pool does not answer after the promotion; it is asked three times, left to a resume, and led there then."""
    stage.world.kill("a")
    plan = await stage.plan()

    async def silent(point: str) -> None:
        if point.startswith("before switch"):
            raise Interrupted("its console hangs", operation="switch", subject="pool")

    stage.world.watch = silent
    with pytest.raises(Interrupted):
        await stage.fail_over(plan)
    stage.fate()
    return await resume(stage.group, actor="Ada Lovelace", reason="the pool is back", clock=stage.world.clock)


async def a_failback(stage: Stage) -> FailoverReport:
    """The old primary has what nobody else has; it is rewound, and gets its role back."""
    stage.world.kill("a")
    await stage.fail_over(await stage.plan())
    stage.world.servers["a"].log.append("never acknowledged")
    plan = await stage.failback_plan("a")
    return await failback(
        stage.group, plan, confirm=plan.confirmation, actor="Ada Lovelace", reason="home", clock=stage.world.clock
    )


STORIES = [
    a_failover_of_a_killed_primary,
    a_switchover,
    killed_in_the_middle_and_resumed,
    stopped_because_nobody_could_prove_the_fence,
    split_brain_accepted_by_name,
    a_route_that_would_not_move,
    a_failback,
]


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
async def test_a_journal_reads_like_a_story(
    story: Callable[[Stage], Awaitable[FailoverReport]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resilience.operations.executing.PAUSE", 0.001)
    stage = await Stage.of("a", "b", "c")
    report = await story(stage)
    journal = await stage.story()
    text = f"{story.__doc__}\n\n{journal}\n\n{'-' * 80}\n\n{report}\n\n{'-' * 80}\n\n{post_mortem(report)}"
    kept(story.__name__.replace("_", "-"), _timeless(text))
    assert from_json(report.to_json().encode(), FailoverReport) == report
    for record in [each async for each in stage.journal.history()]:
        assert from_json(record.to_json().encode(), Record) == record


def kept(name: str, text: str) -> None:
    """Compare with what is kept, or keep it."""
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("GOLDEN") == "write":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert path.read_text() == text, f"{path.name} reads differently now: GOLDEN=write writes it anew; then read it"


def test_every_file_of_the_golden_folder_belongs_to_a_story() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == {story.__name__.replace("_", "-") for story in STORIES}


async def test_a_report_shows_itself_in_a_notebook_and_says_what_was_measured() -> None:
    stage = await Stage.of("a", "b", "c")
    report = await a_failover_of_a_killed_primary(stage)
    assert "<table>" in report._repr_html_()
    phases = dict(report.phases)
    assert list(phases) == ["detection", "decision", "promotion", "propagation", "reconnect", "validation"]
    assert 19 < phases["detection"] < 21 and 39 < phases["decision"] < 41
    assert report.rto == pytest.approx(sum(phases.values()))
    assert evolve(report, phases=report.phases[1:]).rto is None


def _timeless(text: str) -> str:
    """Leave out what a computer measured: how long steps took."""
    text = re.sub(r"(?<=[ |*])\d+\.\d{3} s\b", "0.000 s", text)
    return re.sub(r"(?<=\| )(\**)\d+\.\d{3}(\**)(?= \|)", r"\g<1>0.000\g<2>", text)
