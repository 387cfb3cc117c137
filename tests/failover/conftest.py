"""Fixtures of failovers: PgBouncer, and the servers it leads to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Protocol

import pytest

from resilience.testing.pgbouncer import MissingPgBouncer, TestPgBouncer, running_pgbouncer

from ..conftest import missing


class NewPgBouncer(Protocol):
    """Runs a PgBouncer of the test's own; see `new_pgbouncer`."""

    def __call__(self, databases: Mapping[str, str], **settings: str) -> TestPgBouncer: ...


@pytest.fixture
def new_pgbouncer() -> Iterator[NewPgBouncer]:
    """`new_pgbouncer({"orders": "host=… port=…"}, pool_mode="session")` is a running PgBouncer of the test's own."""
    with ExitStack() as stack:

        def started(databases: Mapping[str, str], **settings: str) -> TestPgBouncer:
            try:
                return stack.enter_context(running_pgbouncer(databases, settings=settings))
            except MissingPgBouncer as error:
                missing(str(error))
                raise

        yield started
