"""Real Redis servers of both majors; see the fixtures of the same kind for PostgreSQL in tests/conftest.py."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from resilience.testing.redis import MissingRedis, TestRedis, find_redis, reachable_program, running_redis
from resilience.testing.sentinels import TestSentinels, running_sentinels

from ..conftest import TESTBED, missing
from .certificates import certificates
from .cluster import filled, new_cluster

MAJORS = (7, 8)


class NewRedis(Protocol):
    """Makes a server of the test's own; see `new_redis`."""

    def __call__(self, major: int = 7, /, **settings: str) -> TestRedis: ...


@pytest.fixture(scope="session")
def redis_program(session_folder: Path) -> Callable[[int], Path]:
    """`redis_program(7)` is that major's redis-server, reachable by the account servers run as."""

    def program(major: int) -> Path:
        try:
            return reachable_program(find_redis(TESTBED, major), session_folder)
        except MissingRedis as error:
            missing(str(error))
            raise

    return program


@pytest.fixture
def new_redis(session_folder: Path, redis_program: Callable[[int], Path]) -> Iterator[NewRedis]:
    """`new_redis(7, appendonly="yes")` is a running server of the test's own, to be broken at will (`_` for `-`)."""
    with ExitStack() as stack:

        def started(major: int = 7, /, **settings: str) -> TestRedis:
            folder = Path(tempfile.mkdtemp(prefix=f"redis-{major}-", dir=session_folder))
            named: Mapping[str, str] = {name.replace("_", "-"): value for name, value in settings.items()}
            return stack.enter_context(running_redis(folder, redis_program(major), settings=named))

        yield started


@pytest.fixture(scope="session")
def cluster7(session_folder: Path, redis_program: Callable[[int], Path]) -> Iterator[list[TestRedis]]:
    """A cluster that no test changes: it takes seconds until one takes writes."""
    with ExitStack() as stack:

        def started(major: int = 7, /, **settings: str) -> TestRedis:
            folder = Path(tempfile.mkdtemp(prefix="cluster-", dir=session_folder))
            named: Mapping[str, str] = {name.replace("_", "-"): value for name, value in settings.items()}
            return stack.enter_context(running_redis(folder, redis_program(major), settings=named))

        yield filled(new_cluster(started))


@pytest.fixture(params=MAJORS, ids=lambda major: f"redis{major}")
def every_redis(request: pytest.FixtureRequest, new_redis: NewRedis) -> TestRedis:
    """A server of every major in turn."""
    major: int = request.param
    return new_redis(major)


@pytest.fixture
def redis7(new_redis: NewRedis) -> TestRedis:
    """A server of the test's own."""
    return new_redis(7)


@pytest.fixture(scope="session")
def tls(session_folder: Path) -> dict[str, str]:
    """The settings of a server that speaks TLS."""
    folder = session_folder / "certificates"
    folder.mkdir()
    return certificates(folder)


@pytest.fixture
def watched(
    tmp_owned: Path, redis_program: Callable[[int], Path], request: pytest.FixtureRequest
) -> Iterator[TestSentinels]:
    """A master `a`, its replicas `b` and `c`, and three Sentinels; of Redis 7 unless parametrized with a kind."""
    kind = getattr(request, "param", "redis7")
    tls = request.getfixturevalue("tls") if kind == "tls" else None
    program = redis_program(7 if tls else int(kind[-1]))
    with running_sentinels(tmp_owned / "group", program, tls=tls) as group:
        yield group
