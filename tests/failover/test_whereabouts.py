"""A standby may know its primary by another name than we do: it is a witness all the same, or that is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attrs import evolve

from resilience.postgres import PostgresMember, PostgresPromoter
from resilience.postgres.failover import whereabouts
from resilience.postgres.failover.conninfo import Upstream
from resilience.postgres.failover.looking import Look
from resilience.postgres.failover.members import Members
from resilience.postgres.failover.whereabouts import Place, Whereabouts
from resilience.testing.replication import TestGroup, running_group


@pytest.fixture
def group(tmp_owned: Path, postgres_bin: Callable[[int], Path]) -> Iterator[TestGroup]:
    with running_group(tmp_owned / "group", postgres_bin(17), 1) as made:
        yield made


def reached_by(group: TestGroup, host: str) -> list[PostgresMember]:
    """The members, of which `a` is reached by another way than its standby takes."""
    _, b = group.members()
    return [PostgresMember("a", dsn=group.primary.dsn().replace("127.0.0.1", host)), b]


async def test_a_standby_that_knows_its_primary_by_an_address_is_a_witness_where_we_know_its_name(
    group: TestGroup,
) -> None:
    members = reached_by(group, "localhost")
    async with PostgresPromoter("orders", members=members) as promoter:
        facts = await promoter.survey()
        b = facts.member("b")
        assert b is not None and b.upstream == "a" and not b.findings, str(facts)
        assert {each.vantage for each in facts.sightings} == {"here", "b"}
    group.kill("a")
    async with PostgresPromoter("orders", members=members) as promoter:  # one that has never seen it alive
        facts = await promoter.survey()
    assert facts.primary == "a"
    assert {each.vantage for each in facts.sightings} == {"here", "b"}


async def test_a_standby_that_receives_from_where_no_member_is_is_told_before_the_day(group: TestGroup) -> None:
    async with PostgresPromoter("orders", members=reached_by(group, str(group.primary.folder))) as promoter:
        facts = await promoter.survey()
    b = facts.member("b")
    assert b is not None and b.upstream == ""
    where = f"it receives from 127.0.0.1:{group.primary.port}, which is no member's address"
    assert [each.severity for each in b.findings if each.text == where] == ["warning"], str(b.findings)


async def test_of_several_hosts_those_are_meant_that_are_members(group: TestGroup) -> None:
    look = await look_at_b(group)
    where = Whereabouts((*group.members(), PostgresMember("c", dsn="host=127.0.0.7 port=5433")))
    a, b = group.servers["a"].port, group.servers["b"].port

    async def named(conninfo: str) -> tuple[str, ...]:
        return await where.sources("b", evolved(look, conninfo))

    assert await named(f"host=127.0.0.1,127.0.0.1,localhost port={a},{b},{a}") == ("a",), "it is none of its own"
    assert await named("host=elsewhere.invalid,127.0.0.7 port=5433") == ("c",)
    assert await named("host=db1 hostaddr=127.0.0.7 port=5433") == ("c",)
    assert await named("host=/nowhere port=5433") == ()


async def test_an_address_that_two_members_share_is_neithers(group: TestGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    async def resolved(place: Place) -> set[Place]:
        asked.append(place)
        return {("10.0.0.9", place[1])}

    monkeypatch.setattr(whereabouts, "_resolved", resolved)
    where = Whereabouts((PostgresMember("a", dsn="host=one"), PostgresMember("c", dsn="host=two")))
    look = evolved(await look_at_b(group), "host=10.0.0.9")
    assert await where.sources("b", look) == ()
    assert asked
    asked.clear()
    assert await where.sources("b", look) == ()
    assert not asked, "what is nobody's is not looked up with every look"
    assert await where.sources("b", evolved(look, "host=two")) == ("c",)
    assert not asked, "what is known as it is written is never looked up"


async def look_at_b(group: TestGroup) -> Look:
    """What a standby says of itself, but that it receives from nobody just now."""
    members = Members(group.members(), 2.0)
    try:
        return evolve(await members.look("b", operation="survey"), sender=None)
    finally:
        await members.aclose()


def evolved(look: Look, conninfo: str) -> Look:
    return evolve(look, upstream=Upstream.parse(conninfo))
