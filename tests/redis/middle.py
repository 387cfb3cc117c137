"""A TCP proxy before a Redis server: it cuts, spoils and answers in its place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

from attrs import define, field

from resilience.concurrency import stop_tasks
from resilience.testing.redis import TestRedis

ARRIVES_SECONDS = 0.05


@define
class Middle:
    """Forwards connections to a server.

    `cut_after` and `spoil_at` count the bytes that a connection got from the server; `answers` are given in the
    server's place to commands that hold such a word. Those that hold `cut_at` arrive, and are never answered: all
    connections break. `sent` is how many bytes the server has sent in all.
    """

    server: TestRedis
    cut_after: int | None = None
    spoil_at: int | None = None
    answers: Mapping[bytes, bytes] = field(factory=dict)
    cut_at: bytes = b""
    port: int = 0
    sent: int = 0
    muted: bool = False
    _writers: list[asyncio.StreamWriter] = field(factory=list)
    _tasks: set[asyncio.Task[None]] = field(factory=set)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"redis://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one connection both ways."""
        if self.muted:
            writer.transport.abort()
            return
        answers, questions = await asyncio.open_connection("127.0.0.1", self.server.port)
        self._writers += [writer, questions]
        for task in (self._ask(reader, questions, writer), self._answer(answers, writer)):
            self._tasks.add(asyncio.create_task(task))

    def cut(self) -> None:
        """Break all connections, without a word to either side."""
        for writer in self._writers:
            if not writer.transport.is_closing():
                writer.transport.abort()

    def mute(self) -> None:
        """Break all connections, and every new one, until `speak`."""
        self.muted = True
        self.cut()

    def speak(self) -> None:
        """Forward again."""
        self.muted = False

    async def close(self) -> None:
        """Break all connections and wait until nothing is forwarded any more."""
        self.cut()
        await stop_tasks(self._tasks)

    async def _ask(self, reader: asyncio.StreamReader, to: asyncio.StreamWriter, back: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                answer = next((answer for word, answer in self.answers.items() if word in data), None)
                if self.cut_at and self.cut_at in data:
                    self.muted = True
                if answer is None:
                    to.write(data)
                    await to.drain()
                else:
                    back.write(answer)
                if self.muted:
                    await asyncio.sleep(ARRIVES_SECONDS)
                    self.cut()
        to.close()

    async def _answer(self, reader: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        count = 0
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                if self.muted:
                    continue
                self.sent += len(data)
                at = None if self.spoil_at is None else self.spoil_at - count
                if at is not None and 0 <= at < len(data):
                    data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
                count += len(data)
                if self.cut_after is not None and count > self.cut_after:
                    to.write(data[: len(data) - (count - self.cut_after)])
                    await to.drain()
                    break
                to.write(data)
                await to.drain()
        to.close()


@asynccontextmanager
async def middle(
    server: TestRedis,
    *,
    cut_after: int | None = None,
    spoil_at: int | None = None,
    answers: Mapping[bytes, bytes] | None = None,
    cut_at: bytes = b"",
) -> AsyncIterator[Middle]:
    """Run a proxy before a server; all its connections are broken on leaving."""
    proxy = Middle(server, cut_after, spoil_at, answers or {}, cut_at)
    listening = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = listening.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        listening.close()
        await proxy.close()
