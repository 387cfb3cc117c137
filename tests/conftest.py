"""Fixtures for everybody: real servers, and folders that the account servers run as can reach.

A missing server skips with its reason at home and fails where the environment variable CI is set. Servers are stopped
and folders removed at the end, however it came.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

pytest.register_assert_rewrite("resilience.testing")  # before it is imported

from resilience.testing.postgres import (  # noqa: E402
    MissingServer,
    TestServer,
    find_binaries,
    owned_folder,
    reachable_copy,
    running_server,
)

TESTBED = Path(__file__).parent.parent / ".testbed"
MAJORS = (15, 16, 17, 18)
FAST = {"fsync": "off"}


class NewServer(Protocol):
    """Makes a server of the test's own; see `new_server`."""

    def __call__(self, major: int, *initdb: str, settings: Mapping[str, str] | None = None) -> TestServer: ...


def missing(reason: str) -> None:
    """Skip the test for want of something, or fail it in CI, where everything has to be there."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def session_folder() -> Iterator[Path]:
    """A folder for the session that everybody may enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="tests-"))
    folder.chmod(0o711)
    TestServer.copies = folder / "copies"
    yield folder
    TestServer.copies = None
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def tmp_owned(session_folder: Path) -> Iterator[Path]:
    """An empty folder that belongs to the account servers run as; removed afterwards."""
    folder = owned_folder(Path(tempfile.mkdtemp(prefix="owned-", dir=session_folder)))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def uncounted() -> Iterator[None]:
    """For tests that go through the same lines a million times: counting these would take most of their time.

    The marker of pytest-cov does nothing in a worker of pytest-xdist, where coverage has been started twice.
    """
    counting = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(counting)


@pytest.fixture(scope="session")
def postgres_bin(session_folder: Path) -> Callable[[int], Path]:
    """`postgres_bin(16)` is the folder with that major's programs, reachable by the account servers run as."""

    def binaries(major: int) -> Path:
        try:
            return reachable_copy(find_binaries(TESTBED, major), session_folder)
        except MissingServer as error:
            missing(str(error))
            raise

    return binaries


@pytest.fixture(scope="session")
def server(session_folder: Path, postgres_bin: Callable[[int], Path]) -> Iterator[Callable[[int], TestServer]]:
    """`server(16)` is the session's running server of that major. Shared: leave it as it was found."""
    running: dict[int, TestServer] = {}
    with ExitStack() as stack:

        def started(major: int) -> TestServer:
            if major not in running:
                folder = session_folder / f"server-{major}"
                entered = running_server(folder, postgres_bin(major), settings=FAST)
                running[major] = stack.enter_context(entered)
            return running[major]

        yield started


@pytest.fixture
def new_server(session_folder: Path, postgres_bin: Callable[[int], Path]) -> Iterator[NewServer]:
    """`new_server(16, settings={…})` is a running server of the test's own, to be broken at will."""
    with ExitStack() as stack:

        def started(major: int, *initdb: str, settings: Mapping[str, str] | None = None) -> TestServer:
            folder = Path(tempfile.mkdtemp(prefix=f"server-{major}-", dir=session_folder))
            owned_folder(folder)
            entered = running_server(folder, postgres_bin(major), *initdb, settings={**FAST, **(settings or {})})
            return stack.enter_context(entered)

        yield started


@pytest.fixture(scope="session")
def postgres15(server: Callable[[int], TestServer]) -> TestServer:
    """The session's PostgreSQL 15."""
    return server(15)


@pytest.fixture(scope="session")
def postgres16(server: Callable[[int], TestServer]) -> TestServer:
    """The session's PostgreSQL 16."""
    return server(16)


@pytest.fixture(scope="session")
def postgres17(server: Callable[[int], TestServer]) -> TestServer:
    """The session's PostgreSQL 17."""
    return server(17)


@pytest.fixture(scope="session")
def postgres18(server: Callable[[int], TestServer]) -> TestServer:
    """The session's PostgreSQL 18."""
    return server(18)


@pytest.fixture(params=MAJORS, ids=lambda major: f"postgres{major}")
def every_postgres(request: pytest.FixtureRequest, server: Callable[[int], TestServer]) -> TestServer:
    """The session's server of every major in turn."""
    major: int = request.param
    return server(major)
