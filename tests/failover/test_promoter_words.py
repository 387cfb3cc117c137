"""How PostgreSQL writes whom it waits for and whom it receives from, read and written."""

from __future__ import annotations

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from resilience.model.errors import TimedOut, Unreachable
from resilience.postgres import PostgresMember, PostgresPromoter
from resilience.postgres.failover.conninfo import NOWHERE, Upstream
from resilience.postgres.failover.group import Seen
from resilience.postgres.failover.looking import branches_of
from resilience.postgres.failover.members import HUNG_SECONDS, Members
from resilience.postgres.failover.owners import owner
from resilience.postgres.failover.sync_names import SyncNames, sync_names

NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("setting", "read"),
    [
        ("", SyncNames()),
        ("b", SyncNames(("b",), 1)),
        ("b, c", SyncNames(("b", "c"), 1)),
        ("2 (b, c)", SyncNames(("b", "c"), 2)),
        ("FIRST 2 (b, c, d)", SyncNames(("b", "c", "d"), 2)),
        ("any 1(b,c)", SyncNames(("b", "c"), 1, "ANY")),
        ('ANY 1 ("b-1", "say ""b""")', SyncNames(("b-1", 'say "b"'), 1, "ANY")),
        ("*", SyncNames(("*",), 1)),
    ],
)
def test_whom_commits_wait_for_is_read_as_the_server_reads_it(setting: str, read: SyncNames) -> None:
    assert SyncNames.parse(setting) == read


@given(st.lists(NAMES, min_size=1, max_size=4, unique=True), st.data())
def test_what_is_written_is_read_again(names: list[str], data: st.DataObject) -> None:
    wanted = sync_names(names, data.draw(st.integers(1, len(names))))
    assert SyncNames.parse(str(wanted)) == wanted


def test_nobody_waits_for_more_than_there_are() -> None:
    assert str(sync_names(["b"], 0)) == ""
    with pytest.raises(ValueError, match="2 of 1 members"):
        sync_names(["b"], 2)


def test_a_frozen_standby_keeps_all_but_the_way() -> None:
    upstream = Upstream.parse("host=db1 port=5433 user=repl password=hunter2 sslmode=verify-full application_name=b")
    frozen = Upstream.parse(upstream.to_nowhere(epoch=7).text())
    assert frozen.frozen
    assert frozen.epoch == 7
    assert frozen.places == upstream.places == (("db1", "5433"),)
    assert frozen.parameters["hostaddr"] == NOWHERE
    back = frozen.to(("db2", "5432"), name="b", epoch=8)
    assert not back.frozen
    assert back.parameters["password"] == "hunter2"
    assert back.credentials == upstream.credentials
    assert "hunter2" not in f"{upstream!r}{frozen!r}{back!r}"


def test_a_standby_that_knew_an_address_only_still_knows_it_frozen() -> None:
    frozen = Upstream.parse("hostaddr=10.0.0.1 user=repl").to_nowhere(epoch=1)
    assert frozen.places == (("10.0.0.1", "5432"),)


def test_a_history_names_all_branches_oldest_first() -> None:
    text = "1\t0/3000000\tno recovery target specified\n\n2\t0/5000000\tno recovery target specified\n"
    found = branches_of(3, text)
    assert [(each.name, each.parent, each.forked_at and each.forked_at.text) for each in found] == [
        ("1", None, None),
        ("2", "1", "0/3000000"),
        ("3", "2", "0/5000000"),
    ]
    assert found[-1].text == text


@pytest.mark.parametrize(
    ("traces", "named"),
    [
        ({}, ""),
        ({"applications": ["Patroni restapi"]}, "Patroni"),
        ({"settings": {"cnpg.config_sha256": "ab"}}, "CloudNativePG"),
        ({"libraries": "pg_stat_statements, $libdir/repmgr"}, "repmgr"),
        ({"slots": ["repmgr_slot_2"]}, "repmgr"),
        ({"libraries": "pgautofailover"}, "pg_auto_failover"),
        ({"slots": ["stolon_ab12"]}, "Stolon"),
        ({"applications": ["my repmgr report", "walreceiver"]}, ""),
    ],
)
def test_managers_are_known_by_their_traces(traces: dict[str, object], named: str) -> None:
    given = {"settings": {}, "libraries": "", "applications": [], "slots": [], **traces}
    settings = given.pop("settings")
    assert owner(settings, **given) == named  # type: ignore[arg-type]  # a table of keyword arguments


def test_a_member_is_one_server_and_has_one_name() -> None:
    with pytest.raises(ValueError, match="names several hosts"):
        PostgresMember("a", dsn="host=one,two")
    with pytest.raises(ValueError, match="is no name"):
        PostgresMember("A B", dsn="host=one")
    with pytest.raises(ValueError, match="two members have one name"):
        PostgresPromoter(members=[PostgresMember("a", dsn="host=one"), PostgresMember("a", dsn="host=two")])
    assert PostgresMember("a-b.c", dsn="host=one").slot == "a_b_c"


def test_who_hung_is_hardly_waited_for_but_now_and_then() -> None:
    member = PostgresMember("a", dsn="host=one")
    members = Members((member,), 2.0)
    silent = Seen(member=member, error=TimedOut("no answer", operation="survey", subject="a"))
    waited = [members.deadline("a")]
    for _ in range(12):
        members.remember(silent)
        waited.append(members.deadline("a"))
    assert waited == [2.0, *[HUNG_SECONDS] * 9, 2.0, *[HUNG_SECONDS] * 2]
    members.remember(evolve(silent, error=Unreachable("refused", operation="survey", subject="a")))
    assert members.deadline("a") == 2.0
