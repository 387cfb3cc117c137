"""What the doctor says of a Redis server: the rules' findings, and a table of what was read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime

from resilience.model.diagnosis import Checkup, Reading, judged, worst_first
from resilience.model.objectives import Objective
from resilience.model.show import as_bytes, as_span
from resilience.redis.client import Url
from resilience.redis.rdb import at
from resilience.redis.survey import SYSTEM
from resilience.reference import REDIS_SETTINGS

from .rules import server_findings
from .vitals import MORE, Vitals, look


async def diagnose(url: Url, objective: Objective, *, target: str, clock: Callable[[], datetime]) -> Checkup:
    """Examine a server against the reference and an objective. It takes a second, a minute at most; writes nothing.

    Raises Unreachable, TimedOut, or Refused if the server lets nobody in.
    """
    return examined(await look(url, clock=clock), objective, target=target, where=url.where)


def examined(vitals: Vitals, objective: Objective, *, target: str, where: str) -> Checkup:  # noqa: ARG001
    """Judge what was seen; pure. The objective is for what an archive holds: see `planning.health`."""
    info = vitals.info
    findings = worst_first(server_findings(vitals))
    # Without replicas a server counts nothing, or commands instead of bytes.
    counts = info.number("repl_backlog_active") > 0
    return Checkup(
        target=target,
        system=SYSTEM,
        where=where,
        description=f"{info.product.capitalize()} {info.version}, {info.text('role')}, {info.mode}",
        lineage=target,
        now=vitals.now,
        position=at(info.text("master_replid"), info.number("master_repl_offset")) if counts else None,
        writes=info.master,
        readings=judged(_readings(vitals), findings),
        findings=findings,
    )


def _readings(vitals: Vitals) -> Iterator[Reading]:
    info = vitals.info
    for name in (*REDIS_SETTINGS, *MORE):
        reference = REDIS_SETTINGS[name].value if name in REDIS_SETTINGS else ""
        if vitals.settings is None:
            yield Reading(name=name, value="", reference=reference, standing="unseen")
        elif name in vitals.settings:
            yield Reading(name=name, value=vitals.text(name) or "(empty)", reference=reference)
    saved, changes = vitals.saved, info.number("rdb_changes_since_last_save")
    age = as_span(vitals.now - saved) if saved else "never"
    yield Reading(
        name="rdb_last_bgsave_status", value=f"{info.text('rdb_last_bgsave_status')}, {age} ago", reference="ok"
    )
    yield Reading(name="changes since", value=str(changes))
    if info.number("aof_enabled"):
        yield Reading(name="aof_last_write_status", value=info.text("aof_last_write_status"), reference="ok")
        yield Reading(name="aof_last_bgrewrite_status", value=info.text("aof_last_bgrewrite_status"), reference="ok")
        yield Reading(name="append-only file", value=as_bytes(info.number("aof_current_size")))
    memory = f"{as_bytes(info.number('used_memory'))} of {as_bytes(info.number('total_system_memory'))}"
    yield Reading(name="used_memory", value=memory, reference="at most half")
    yield Reading(name="keys", value=str(info.keys))
    where = "local" if vitals.local else "over the network"
    yield Reading(name="tls", value=f"{'yes' if vitals.tls else 'none'}, {where}", reference="1.2 or 1.3")
    yield Reading(name="clock", value=f"{vitals.skew:+.1f} s from ours", reference="within 5 s")
