"""A spool and the little program that asks: fast to start, and sure of nothing that it was not told."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import define, field

from resilience.model.errors import StorageFailed, Unreachable
from resilience.postgres.wal import ask
from resilience.postgres.wal.spool import ABSENT, UNKNOWN, Answer, Request, Spool, config_line
from resilience.testing.cancellation import cancellations, nothing_left_running

NAME = "000000010000000000000007"


@define
class Asked:
    """A spool, and the restore_command that PostgreSQL would run in `home`."""

    home: Path
    spool: Spool
    requests: list[Request] = field(factory=list)

    async def fetch(self, name: str = NAME, *, seconds: float = 60, fallback: tuple[str, ...] = ()) -> int:
        command = self.spool.command(seconds=seconds, fallback=fallback)
        filled = command.replace("%%", "\0").replace("%f", name).replace("%p", "RECOVERYXLOG").replace("\0", "%")
        process = await asyncio.create_subprocess_exec("/bin/sh", "-c", filled, cwd=self.home, stderr=-1)
        _, said = await process.communicate()
        self.said = said.decode()
        return process.returncode or 0

    said: str = ""

    @property
    def given(self) -> bytes:
        return (self.home / "RECOVERYXLOG").read_bytes()

    async def handle(self, request: Request) -> Answer:
        self.requests.append(request)
        await self.spool.put(request.name, [b"fetched"])
        return Answer(0)


@pytest.fixture(params=["spool", "it's 100% " + "x" * 200], ids=["short", "long"])
def asked(request: pytest.FixtureRequest, tmp_path: Path) -> Asked:
    return Asked(tmp_path, Spool(tmp_path / request.param))


def test_the_program_that_asks_imports_next_to_nothing() -> None:
    code = f"import sys\nbefore = set(sys.modules)\nexec(compile(open({ask.__file__!r}).read(), 'ask', 'exec'), {{}})\n"
    code += "print(*sorted(set(sys.modules) - before))"
    printed = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    allowed = {"_socket", "os", "os.path", "posixpath", "genericpath", "stat", "_stat", "_collections_abc", "errno"}
    assert set(printed.stdout.split()) <= allowed


async def test_what_is_in_the_spool_is_taken_without_asking(asked: Asked) -> None:
    await asked.spool.put(NAME, [b"one ", b"two"])
    assert await asked.spool.names() == {NAME} and await asked.spool.size() == 7
    assert await asked.fetch() == 0
    assert asked.given == b"one two"
    assert await asked.spool.names() == frozenset()


async def test_what_is_not_there_is_asked_for(asked: Asked) -> None:
    async with asked.spool.serving(asked.handle):
        assert await asked.fetch() == 0
    assert asked.given == b"fetched"
    assert asked.requests == [Request("fetch", NAME)]


@pytest.mark.parametrize(
    ("answer", "status"), [(Answer(ABSENT), 1), (Answer(UNKNOWN, "no idea"), 130), (Answer(7, "what?"), 130)]
)
async def test_only_proven_absence_ends_with_1(asked: Asked, answer: Answer, status: int) -> None:
    async def handle(_: Request) -> Answer:
        return answer

    async with asked.spool.serving(handle):
        assert await asked.fetch() == status
    assert answer.text in asked.said


async def test_an_error_is_answered_with_its_sentence(asked: Asked) -> None:
    async def handle(_: Request) -> Answer:
        raise Unreachable("the store\nis down", operation="get", subject="it")

    async with asked.spool.serving(handle):
        assert await asked.fetch() == 130
    assert "get it: the store is down" in asked.said


async def test_what_was_answered_but_is_not_there_is_not_known(asked: Asked) -> None:
    async def handle(_: Request) -> Answer:
        return Answer(0)

    async with asked.spool.serving(handle):
        assert await asked.fetch() == 130


@pytest.mark.parametrize("how", ["no spool", "no socket", "nobody listens", "hangs up", "is silent", "goes away"])
async def test_one_who_gets_no_answer_knows_nothing_or_falls_back(tmp_path: Path, how: str) -> None:
    asked = Asked(tmp_path, Spool(tmp_path / "spool"))
    script = tmp_path / "ask.py"
    script.write_bytes(Path(ask.__file__).read_bytes())
    if how != "no spool":
        await asked.spool.prepare()
    silent = asyncio.Event()

    async def handle(_: Request) -> Answer:
        if how == "hangs up":
            raise asyncio.CancelledError
        silent.set()
        await asyncio.sleep(60)
        return Answer(ABSENT)

    async def both(seconds: float) -> None:
        if how != "no spool":  # where the program itself is gone too
            assert await asked.fetch(seconds=seconds) == 130
        command = [sys.executable, "-I", "-S", str(script), str(asked.spool.folder), f"{seconds}", "fetch", NAME, "x"]
        process = await asyncio.create_subprocess_exec(*command, "/bin/sh", "-c", f"exit {ABSENT}")
        assert await process.wait() == ABSENT

    if how in ("no spool", "no socket"):
        await both(60)
    elif how == "nobody listens":
        async with asked.spool.serving(handle):
            (asked.spool.folder / ask.SOCKET).rename(tmp_path / "kept")
        (tmp_path / "kept").rename(asked.spool.folder / ask.SOCKET)
        await both(60)
    elif how == "goes away":
        async with asked.spool.serving(handle):
            waiting = asyncio.create_task(asked.fetch())
            await silent.wait()
        assert await waiting == 130
    else:
        async with asked.spool.serving(handle):
            await both(0.2 if how == "is silent" else 60)


async def test_who_serves_last_is_asked_and_who_leaves_first_takes_nothing_with_him(asked: Asked) -> None:
    async def nobody(_: Request) -> Answer:
        return Answer(ABSENT)

    async with asked.spool.serving(nobody):
        later = asked.spool.serving(asked.handle)
        await later.__aenter__()
    assert await asked.fetch() == 0
    await later.__aexit__(None, None, None)
    assert not (asked.spool.folder / ask.SOCKET).exists()


async def test_a_file_is_put_whole_or_not_at_all(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")

    def broken() -> Iterator[bytes]:
        yield b"half"
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageFailed, match="No space left"):
        await spool.put(NAME, broken())
    assert [path.name for path in spool.folder.iterdir()] == ["ask.py"]
    for attempt in cancellations():
        await spool.drop(NAME)
        async with nothing_left_running():
            await attempt(spool.put(NAME, [b"one", b"two"]))
        assert await spool.names() in ({NAME}, frozenset())
        assert {path.name for path in spool.folder.iterdir()} == {"ask.py"} | await spool.names()
        if await spool.names():
            assert (spool.folder / NAME).read_bytes() == b"onetwo"


@pytest.mark.parametrize("name", ["", "../x", ".hidden", "ask", "ask.py", "a/b"])
async def test_a_name_stays_in_the_spool(tmp_path: Path, name: str) -> None:
    spool = Spool(tmp_path / "spool")
    with pytest.raises(ValueError, match="no name for a file"):
        await spool.put(name, [b"x"])


async def test_a_spool_is_removed_with_all_it_holds(asked: Asked) -> None:
    async with asked.spool.serving(asked.handle):
        await asked.spool.put(NAME, [b"x"])
        await asked.spool.remove()
    await asked.spool.remove()
    assert not asked.spool.folder.exists()
    assert await asked.spool.names() == frozenset()


def test_a_line_for_postgresql_conf_is_quoted() -> None:
    assert config_line("restore_command", r"it's \n") == r"restore_command = 'it''s \\n'"
