"""Clients that know every host: what is said about their connection string, and what they meet."""

from __future__ import annotations

import pytest

from resilience.model.errors import TimedOut
from resilience.postgres import MultiHostRoute
from resilience.testing.postgres import TestServer, free_port

from .routes import at, instance


def dsn(*ports: int, more: str = "target_session_attrs=read-write connect_timeout=2") -> str:
    hosts = ",".join("127.0.0.1" for _ in ports)
    return f"host={hosts} port={','.join(map(str, ports))} user=postgres {more}"


async def test_what_keeps_clients_from_finding_the_primary_is_a_blocker(
    postgres16: TestServer, postgres17: TestServer
) -> None:
    members = {"a": at(postgres16), "b": at(postgres17)}
    route = MultiHostRoute("orders", dsn=dsn(postgres16.port, more=""), members=members)
    facts = await route.survey()
    assert facts.to == "a" and facts.instance == instance(postgres16)
    said = {finding.severity + finding.text[:21] for finding in facts.findings}
    assert said == {"blockerclients take any serv", "blockerclients do not know b", "warningclients wait for minu"}
    (floor,) = await route.floor()
    assert floor.seconds == 0, "there is no other host to ask"


async def test_a_host_that_is_down_is_passed_over(postgres16: TestServer) -> None:
    down = free_port()
    members = {"a": f"127.0.0.1:{down}", "b": at(postgres16)}
    route = MultiHostRoute("orders", dsn=dsn(down, postgres16.port), members=members)
    facts = await route.survey()
    assert (facts.to, facts.instance, facts.findings) == ("b", instance(postgres16), ())
    assert (await route.switch("b", expected=facts.version)).to == "b"
    (floor,) = await route.floor()
    assert floor.phase == "reconnect" and floor.seconds == 2 and "connect_timeout" in floor.why


async def test_a_switch_waits_and_then_says_where_clients_arrive(postgres16: TestServer) -> None:
    down = free_port()
    members = {"a": f"127.0.0.1:{down}", "b": at(postgres16)}
    route = MultiHostRoute("orders", dsn=dsn(down, postgres16.port), members=members, deadline=0.2)
    with pytest.raises(TimedOut, match="do not arrive at a within 0.2 s, but at b, which takes writes"):
        await route.switch("a", expected=(await route.survey()).version)


async def test_that_nobody_answers_is_a_finding_and_a_switch_says_so() -> None:
    down = free_port()
    route = MultiHostRoute("orders", dsn=dsn(down), members={"a": f"127.0.0.1:{down}"}, deadline=0.2)
    facts = await route.survey()
    assert facts.to is None and not facts.instance and "nobody answers" in str(facts.findings)
    with pytest.raises(TimedOut, match="but nowhere"):
        await route.switch("a", expected=facts.version)
