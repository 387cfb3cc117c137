"""Roles and tablespaces: which statements of `pg_dumpall --globals-only` a destination needs, and running them.

A role or tablespace that exists on the destination is left as it is: its attributes, its password, its memberships. It
may be another one of the same name. What is missing is created with everything the backup knows of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import asyncpg
from attrs import field, frozen

from resilience.model.errors import Conflict, Corrupt, Refused, ResilienceError, Unsupported
from resilience.postgres.client import Dsn, from_server, sql

from .sql_text import Statement, spliced, statements

# What a role has that was just created. To name some of these takes a superuser, to leave them out does not.
_DEFAULTS = {"NOSUPERUSER", "INHERIT", "NOCREATEROLE", "NOCREATEDB", "NOLOGIN", "NOREPLICATION", "NOBYPASSRLS"}

_COMPLETE = "\n-- PostgreSQL database cluster dump complete\n"
_TAIL = 1000
_NO_FOLDER = "58P01"
_JUST_CREATED = ("42710", "23505")

# Passwords are in these statements: a superuser can keep them out of the server's log.
_UNLOGGED = """
select set_config(name, value, true)
from (values ('log_statement', 'none'), ('log_min_error_statement', 'panic'), ('log_min_duration_statement', '-1'))
     as setting (name, value)
where current_setting('is_superuser') = 'on'
"""


@frozen(kw_only=True)
class Present:
    """What the destination has already."""

    roles: frozenset[str] = frozenset()
    tablespaces: frozenset[str] = frozenset()


@frozen(kw_only=True)
class Step:
    """One statement to run. `what` may be shown, the SQL may hold a password."""

    what: str
    sql: str = field(repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)
    tablespace: bool = False


@frozen
class _Subject:
    kind: str
    name: str


def steps(script: str, *, present: Present, bootstrap_role: str, tablespaces: bool = True) -> Iterator[Step]:
    """Choose the statements that create what is missing; `bootstrap_role` is the source's first superuser.

    Without `tablespaces` none is created. Raises Corrupt if the script is damaged, Unsupported if it says other things.
    """
    for statement in statements(script):
        subject = _subject(statement)
        kept = {"role": present.roles, "tablespace": present.tablespaces}.get(subject.kind, frozenset())
        if subject.name in kept or (subject.kind == "tablespace" and not tablespaces) or subject.kind == "encoding":
            continue
        text = _without_defaults(statement, bootstrap_role)
        if text:
            yield Step(
                what=_what(statement, subject),
                sql=text,
                secrets=_secrets(statement),
                tablespace=subject.kind == "tablespace",
            )


def decoded(script: bytes) -> str:
    """Return the script as text. Raises Corrupt if it is not what pg_dumpall wrote to its end."""
    try:
        text = script.decode()
    except UnicodeDecodeError as error:
        raise Corrupt(f"the globals are not in UTF-8: {error}") from error
    if _COMPLETE not in text[-_TAIL:]:
        raise Corrupt("the globals end early")
    return text


def _subject(statement: Statement) -> _Subject:
    """Find out whom a statement is about: for a membership the member, for a privilege who gets it."""
    if statement.word(0) in ("GRANT", "REVOKE"):
        kind = statement.word(statement.find("ON") + 1)
        if kind == "TABLESPACE":
            return _named("tablespace", statement, "TABLESPACE")
        return _named("role", statement, "TO", "FROM")
    if statement.begins(2) == "SET CLIENT_ENCODING":
        return _Subject("encoding", "")
    if statement.begins(1) in ("SET", "RESET"):
        return _Subject("session", "")
    if statement.find("TABLESPACE") < statement.find("ROLE"):
        return _named("tablespace", statement, "TABLESPACE")
    return _named("role", statement, "ROLE")


def _named(kind: str, statement: Statement, *after: str) -> _Subject:
    """Return the subject whose name comes after one of the words."""
    at = statement.find(*after) + 1
    if at >= len(statement.tokens):
        raise Unsupported(f"the globals hold a statement about neither role nor tablespace: {statement.begins(2)}")
    return _Subject(kind, statement.tokens[at].identifier)


def _secrets(statement: Statement) -> tuple[str, ...]:
    if statement.find("PASSWORD") == len(statement.tokens):
        return ()
    return tuple(text for token in statement.tokens if token.kind == "string" and (text := token.text.strip("'")))


def _what(statement: Statement, subject: _Subject) -> str:
    """Say what a statement does, without its values."""
    return f'{statement.begins(2)} "{subject.name}"' if subject.name else statement.begins(2)


def _without_defaults(statement: Statement, bootstrap_role: str) -> str:
    """Return the statement without what needs rights and changes nothing; empty if nothing is left."""
    tokens = statement.tokens
    drop = set()
    if statement.begins(2) == "ALTER ROLE" and statement.word(3) == "WITH":
        drop = {at for at in range(4, len(tokens)) if statement.word(at) in _DEFAULTS}
        if len(drop) == len(tokens) - 4:
            return ""
    granted = statement.find("GRANTED")
    if statement.word(0) == "GRANT" and granted + 2 < len(tokens) and tokens[granted + 2].identifier == bootstrap_role:
        # It is the grantor anyway unless another is named, and may have another name on the destination.
        drop |= {granted, granted + 1, granted + 2}
    return spliced(statement, dict.fromkeys(drop, ""))


async def run(wanted: Sequence[Step], dsn: Dsn) -> None:
    """Run the steps: the roles all or none, then one by one the tablespaces, which cannot be made in a transaction.

    Raises what the server's error means, naming the statement but never its text. Cancelled: as if the server had
    failed there.
    """
    first = next((at for at, step in enumerate(wanted) if step.tablespace), len(wanted))
    async with sql(dsn, operation="restore") as connection:
        async with connection.transaction():
            await connection.execute(_UNLOGGED)
            for step in wanted[:first]:
                await _execute(connection, step, dsn)
        for step in wanted[first:]:
            await _execute(connection, step, dsn)


async def _execute(connection: asyncpg.Connection, step: Step, dsn: Dsn) -> None:
    try:
        await connection.execute(step.sql)
    except asyncpg.PostgresError as error:
        raise _failed(error, step, dsn) from None  # the driver's error may repeat the statement


def _failed(error: asyncpg.PostgresError, step: Step, dsn: Dsn) -> ResilienceError:
    message = str(error.message)
    for secret in step.secrets:
        message = message.replace(secret, "…")
    state, hint = str(error.sqlstate or ""), str(error.hint or "")
    if state in _JUST_CREATED:
        what, hint = f"{step.what} failed: somebody else has just created it", "restore again: it is then left as it is"
        return Conflict(what, operation="restore globals", subject=dsn.where, hint=hint)
    if state == _NO_FOLDER:
        hint = "make it, owned by the server's account, or leave tablespaces out with tablespaces=False"
        return Refused(f"{step.what} failed: {message}", operation="restore globals", subject=dsn.where, hint=hint)
    return from_server(state, f"{step.what} failed: {message}", hint, dsn=dsn, operation="restore globals")
