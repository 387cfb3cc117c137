"""A connection that is kept to one server or Sentinel: every question has a deadline, and nothing is asked twice."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import redis
from attrs import define, field
from redis import asyncio as aioredis

from resilience.concurrency import finish, stop_tasks
from resilience.model.errors import Interrupted, TimedOut, Unreachable
from resilience.redis.client import Url, ask, connect, mapped


@define(eq=False)
class Link:
    """Opened when it is first used, and again when it broke."""

    url: Url
    _client: aioredis.Redis | None = field(default=None, init=False, repr=False)

    async def ask(self, *words: str | bytes | int, seconds: float, operation: str) -> Any:  # noqa: ANN401
        """Run one command. Raises what `mapped` makes of errors; TimedOut after `seconds`: it may have been run."""
        with mapped(self.url.where, operation):
            async with asyncio.timeout(seconds):
                return await ask(self._connected(seconds), *words)

    async def tell(self, *words: str | bytes | int, seconds: float, operation: str) -> Any:  # noqa: ANN401
        """Run one command that changes something. Raises Interrupted if it was sent, and no answer came.

        Whatever else is raised says that it was not run: there was no connection, or the server refused it.
        """
        with mapped(self.url.where, operation):
            async with asyncio.timeout(seconds):
                with suppress(redis.ResponseError):  # it answers, whatever it allows
                    await ask(self._connected(seconds), "PING")  # a connection may have ended unnoticed
        try:
            return await self.ask(*words, seconds=seconds, operation=operation)
        except (Unreachable, TimedOut) as error:
            text = f"it may have done what it was told: {error.what}"
            hint = "look at it again before anybody else is told"
            raise Interrupted(text, operation=operation, subject=self.url.where, hint=hint) from error

    async def several(
        self, commands: Sequence[Sequence[str | bytes | int]], *, seconds: float, operation: str, atomic: bool = False
    ) -> list[Any]:
        """Run several in one round trip; an answer may be a redis.ResponseError. `atomic`: as one transaction."""

        async def run() -> list[Any]:
            async with self._connected(seconds).pipeline(transaction=atomic) as pipe:
                for words in commands:
                    pipe.execute_command(*words)
                found: list[Any] = await pipe.execute(raise_on_error=False)
                return found

        with mapped(self.url.where, operation):
            running = asyncio.ensure_future(run())
            try:
                async with asyncio.timeout(seconds):
                    await asyncio.wait([running])
            finally:
                await stop_tasks([running])
            return running.result()

    async def aclose(self) -> None:
        """Close it; it is opened again when it is used."""
        client, self._client = self._client, None
        if client is not None:
            await finish(client.aclose())

    def _connected(self, seconds: float) -> aioredis.Redis:
        if self._client is None:
            self._client = connect(self.url, seconds=None, within=seconds)
        return self._client


def refused(answer: object) -> redis.ResponseError | None:
    """Return an answer if it is an error."""
    return answer if isinstance(answer, redis.ResponseError) else None
