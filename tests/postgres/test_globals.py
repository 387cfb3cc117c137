"""Roles and tablespaces: what is missing is created whole, what is there is left alone, no password ever shows."""

from __future__ import annotations

import traceback
from collections.abc import Iterator

import pytest

from resilience import Conflict, Corrupt, ResilienceError, Unsupported
from resilience.postgres.client import Dsn
from resilience.postgres.dumps.globals import Present, Step, decoded, run, steps
from resilience.testing.postgres import TestServer

from .dumps import ask

SCRIPT = r"""
--
-- PostgreSQL database cluster dump
--

\restrict Xy
SET default_transaction_read_only = off;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
CREATE ROLE "boss";
ALTER ROLE "boss" WITH SUPERUSER INHERIT CREATEROLE CREATEDB LOGIN REPLICATION BYPASSRLS PASSWORD 'SCRAM-boss';
CREATE ROLE "new";
ALTER ROLE "new" WITH NOSUPERUSER INHERIT NOCREATEROLE NOCREATEDB LOGIN NOREPLICATION NOBYPASSRLS PASSWORD 'SCRAM-new';
COMMENT ON ROLE "new" IS 'it is; new';
CREATE ROLE "old";
ALTER ROLE "old" WITH NOSUPERUSER INHERIT NOCREATEROLE NOCREATEDB LOGIN NOREPLICATION NOBYPASSRLS PASSWORD 'SCRAM-old';
COMMENT ON ROLE "old" IS 'it is old';
SECURITY LABEL FOR "selinux" ON ROLE "old" IS 'x';
CREATE ROLE "plain";
ALTER ROLE "plain" WITH NOSUPERUSER INHERIT NOCREATEROLE NOCREATEDB NOLOGIN NOREPLICATION NOBYPASSRLS;
ALTER ROLE "new" SET "work_mem" TO '5MB';
ALTER ROLE "old" SET "work_mem" TO '5MB';
GRANT "old" TO "new" WITH ADMIN OPTION, INHERIT TRUE GRANTED BY "boss";
GRANT "new" TO "old" WITH INHERIT TRUE GRANTED BY "boss";
GRANT "plain" TO "new" WITH INHERIT FALSE GRANTED BY "plain";
GRANT SET ON PARAMETER "work_mem" TO "old";
GRANT SET ON PARAMETER "work_mem" TO "new";
CREATE TABLESPACE "cold" OWNER "new" LOCATION '/cold';
CREATE TABLESPACE "warm" OWNER "new" LOCATION '/warm';
ALTER TABLESPACE "warm" SET (random_page_cost=1.1);
SET SESSION AUTHORIZATION "new";
GRANT CREATE ON TABLESPACE "cold" TO "new";
GRANT CREATE ON TABLESPACE "warm" TO "new";
RESET SESSION AUTHORIZATION;
\unrestrict Xy

--
-- PostgreSQL database cluster dump complete
--

"""


def chosen(script: str = SCRIPT, *, tablespaces: bool = True, **present: set[str]) -> list[Step]:
    """Choose statements for a destination that has these roles and tablespaces."""
    has = Present(roles=frozenset(present.get("roles", ())), tablespaces=frozenset(present.get("spaces", ())))
    return list(steps(script, present=has, bootstrap_role="boss", tablespaces=tablespaces))


def test_an_empty_destination_gets_everything() -> None:
    assert [step.what for step in chosen()] == [
        "SET DEFAULT_TRANSACTION_READ_ONLY",
        "SET STANDARD_CONFORMING_STRINGS",
        'CREATE ROLE "boss"',
        'ALTER ROLE "boss"',
        'CREATE ROLE "new"',
        'ALTER ROLE "new"',
        'COMMENT ON "new"',
        'CREATE ROLE "old"',
        'ALTER ROLE "old"',
        'COMMENT ON "old"',
        'SECURITY LABEL "old"',
        'CREATE ROLE "plain"',
        'ALTER ROLE "new"',
        'ALTER ROLE "old"',
        'GRANT "new"',
        'GRANT "old"',
        'GRANT "new"',
        'GRANT SET "old"',
        'GRANT SET "new"',
        'CREATE TABLESPACE "cold"',
        'CREATE TABLESPACE "warm"',
        'ALTER TABLESPACE "warm"',
        "SET SESSION",
        'GRANT CREATE "cold"',
        'GRANT CREATE "warm"',
        "RESET SESSION",
    ]


def test_a_role_that_exists_is_left_as_it_is_with_its_memberships() -> None:
    said = [step.sql for step in chosen(roles={"old", "boss"})]
    assert not [
        text for text in said if text.startswith(('CREATE ROLE "old', 'ALTER ROLE "old', 'COMMENT ON ROLE "old'))
    ]
    assert not [text for text in said if 'TO "old"' in text or "SECURITY LABEL" in text]
    assert 'GRANT "old" TO "new" WITH ADMIN OPTION, INHERIT TRUE   ' in said


def test_tablespaces_that_exist_are_left_and_none_is_created_if_not_wanted() -> None:
    assert [step.what for step in chosen(spaces={"cold"}) if step.tablespace] == [
        'CREATE TABLESPACE "warm"',
        'ALTER TABLESPACE "warm"',
        'GRANT CREATE "warm"',
    ]
    assert not [step for step in chosen(tablespaces=False) if step.tablespace]


def test_what_a_new_role_has_anyway_is_not_said_and_takes_no_superuser() -> None:
    said = [step.sql.split() for step in chosen(roles={"boss"}) if step.what == 'ALTER ROLE "new"']
    assert said[0] == ["ALTER", "ROLE", '"new"', "WITH", "LOGIN", "PASSWORD", "'SCRAM-new'"]


def test_only_the_first_superuser_is_left_out_as_a_grantor() -> None:
    grants = [step.sql for step in chosen() if step.what.startswith('GRANT "')]
    assert ["GRANTED BY" in text for text in grants] == [False, False, True]


def test_no_step_shows_its_text() -> None:
    assert "SCRAM" not in repr(chosen())


def test_other_statements_are_refused() -> None:
    with pytest.raises(Unsupported, match="about neither role nor tablespace: DROP TABLE"):
        chosen("DROP TABLE x;")


def test_globals_that_end_early_are_corrupt() -> None:
    whole = SCRIPT.encode()
    assert decoded(whole) == SCRIPT
    for damaged in (whole[:-60], b"", whole.replace(b"5MB", b"\xff\xff\xff")):
        with pytest.raises(Corrupt, match="the globals"):
            decoded(damaged)


@pytest.fixture
def helper(postgres17: TestServer) -> Iterator[TestServer]:
    """A server where `helper` may make roles and is no superuser."""
    ask(postgres17, "create role helper login createrole")
    yield postgres17
    for role in ("fresh", "helper"):
        ask(postgres17, f"drop role if exists {role}")


def step(what: str, text: str, **more: object) -> Step:
    return Step(what=what, sql=text, **more)  # type: ignore[arg-type]


async def test_no_superuser_is_needed_for_ordinary_roles(helper: TestServer) -> None:
    script = 'CREATE ROLE "fresh"; ALTER ROLE "fresh" WITH NOSUPERUSER LOGIN NOREPLICATION NOBYPASSRLS;'
    await run(chosen(script), Dsn.parse(helper.dsn("helper")))
    assert ask(helper, "select rolcanlogin from pg_roles where rolname = 'fresh'") == "t"


async def test_roles_are_created_all_or_none(helper: TestServer) -> None:
    script = 'CREATE ROLE "fresh"; CREATE ROLE "postgres";'
    with pytest.raises(
        Conflict, match=r'restore globals .*CREATE ROLE "postgres" failed: somebody else has just created'
    ):
        await run(chosen(script), Dsn.parse(helper.dsn()))
    assert ask(helper, "select count(*) from pg_roles where rolname = 'fresh'") == "0"


async def test_a_failing_statement_is_named_and_its_password_is_not(helper: TestServer) -> None:
    text = "ALTER ROLE helper VALID UNTIL 'SCRAM-SHA-256$secret' PASSWORD 'SCRAM-SHA-256$secret'"
    with pytest.raises(ResilienceError, match='ALTER ROLE "helper" failed') as failed:
        await run(chosen(text + ";"), Dsn.parse(helper.dsn()))
    shown = "".join(traceback.format_exception(failed.value))
    assert "invalid input syntax for type timestamp" in shown
    assert "secret" not in shown.replace('text = "ALTER', "")


async def test_passwords_do_not_reach_the_servers_log(helper: TestServer) -> None:
    ask(helper, "alter role postgres set log_statement = 'all'")
    try:
        script = 'CREATE ROLE "fresh"; ALTER ROLE "fresh" WITH LOGIN PASSWORD \'never-in-a-log\';'
        await run(chosen(script), Dsn.parse(helper.dsn()))
    finally:
        ask(helper, "alter role postgres reset log_statement")
    assert "never-in-a-log" not in helper.log.read_text()
    assert ask(helper, "select rolpassword is not null from pg_authid where rolname = 'fresh'") == "t"
