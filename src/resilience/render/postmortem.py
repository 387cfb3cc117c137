"""The post-mortem of a failover (R39) as Markdown: what happened, how long it took, what was lost, what is left."""

from __future__ import annotations

from collections.abc import Iterator

from resilience.model.failover import FailoverReport
from resilience.model.show import as_span, as_times, when

PHASES = {
    "detection": "from the failure until it was looked at",
    "decision": "from the look until somebody confirmed",
    "promotion": "hold, fence, settle, decide, promote",
    "propagation": "until the routes led to the new primary, and a connection through each had reached it",
    "reconnect": "until clients that find the primary by themselves had found it",
    "validation": "a mark written and read back, and the checklist after it",
}


def post_mortem(report: FailoverReport) -> str:
    """Return the post-mortem of a failover as Markdown; what only people know is left for them to fill in."""
    return "\n".join(_lines(report)).rstrip() + "\n"


def _lines(report: FailoverReport) -> Iterator[str]:
    yield f"# {report.kind.capitalize()} of {report.group}, {when(report.began_at)}"
    yield ""
    yield from _summary(report)
    yield from _section("What it took", _phases(report))
    yield from _section("What was lost", _loss(report))
    yield from _section("Timeline", _timeline(report))
    yield from _section("To be looked at", [f"- {_escaped(str(each))}" for each in report.findings])
    yield from _section("What people know", ["- What failed first, and why:", "- What helped:", "- What we change:"])


def _summary(report: FailoverReport) -> Iterator[str]:
    rows = [
        ("ended", f"{report.ending}, {when(report.ended_at)}"),
        ("primary before", report.plan.primary or "nobody known"),
        ("primary now", report.primary or "nobody known"),
        ("cause", report.cause or "not seen by us"),
        ("stopped because", report.why),
        ("done by", f"{report.actor or 'somebody'}, because: {report.reason or 'no reason was given'}"),
        ("epoch", str(report.epoch)),
        ("taken over", as_times(report.resumed) if report.resumed else ""),
        *(("fenced", str(fence)) for fence in report.fences),
    ]
    yield "| | |"
    yield "|---|---|"
    yield from (f"| {name} | {_escaped(text)} |" for name, text in rows if text)
    yield ""


def _phases(report: FailoverReport) -> Iterator[str]:
    if not report.phases:
        return
    yield "| phase | seconds | |"
    yield "|---|---|---|"
    for phase, seconds in report.phases:
        yield f"| {phase} | {seconds:.3f} | {PHASES[phase]} |"
    total = sum(seconds for _, seconds in report.phases)
    objective = report.plan.policy.rto
    against = f"; the objective is {as_span(objective)}" if objective is not None else ""
    known = "from the failure on" if report.rto is not None else "without detection: nobody told when it failed"
    yield f"| **RTO** | **{total:.3f}** | {known}{against} |"


def _loss(report: FailoverReport) -> Iterator[str]:
    if report.promoted is None:
        yield "Nothing: nobody was promoted."
        return
    yield f"{str(report.loss).capitalize()}."
    yield ""
    yield from (f"- {_escaped(each)}" for each in report.loss.evidence)


def _timeline(report: FailoverReport) -> Iterator[str]:
    yield "| at | step | outcome | seconds | |"
    yield "|---|---|---|---|---|"
    for each in report.steps:
        name = " ".join(filter(None, [each.step.kind, each.step.subject]))
        at = f"{each.at:%H:%M:%S}.{each.at.microsecond // 1000:03d}"
        yield f"| {at} | {name} | {each.outcome} | {each.seconds:.3f} | {_escaped(each.text)} |"


def _section(title: str, lines: Iterator[str] | list[str]) -> Iterator[str]:
    body = list(lines)
    if body:
        yield from (f"## {title}", "", *body, "")


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
