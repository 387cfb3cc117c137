"""What a client meets: where a name leads, a server that says nothing, a route that leads where it should."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable

from resilience.model.errors import TimedOut, Unavailable
from resilience.model.groups import RouteFacts

RESOLVE_SECONDS = 0.5


async def silence(host: str, port: int, greeting: bytes, *, seconds: float) -> str:
    """Greet a server and return what a client is told; empty if it answers, whatever it says.

    `host` is the path of a Unix socket if it begins with a slash. It needs no account, and raises nothing.
    """
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(seconds):
            opening = asyncio.open_unix_connection(host) if host.startswith("/") else None
            reader, writer = await (opening or asyncio.open_connection(host, port))
            writer.write(greeting)
            return "" if await reader.read(1) else "the connection is closed at once"
    except TimeoutError:
        return f"nothing for {seconds:g} s"
    except OSError as error:
        return (os.strerror(error.errno) if error.errno else str(error)).lower()
    finally:
        if writer is not None:
            writer.transport.abort()


async def arrive(
    look: Callable[[], Awaitable[RouteFacts]], to: str, *, route: str, deadline: float, pause: float
) -> RouteFacts:
    """Look again and again, `pause` seconds apart, until clients arrive at a member that takes writes.

    `look` may raise Unavailable as long as nobody is there. Raises TimedOut with what was seen last, once `deadline`
    seconds are over.
    """
    where = "nowhere"
    try:
        async with asyncio.timeout(deadline):
            while True:
                try:
                    facts = await look()
                except Unavailable as error:
                    where = f"nowhere: {error.what}"
                else:
                    if facts.to == to and facts.writable:
                        return facts
                    where = (
                        f"at {facts.to or 'nobody known'}, which takes {'writes' if facts.writable else 'no writes'}"
                    )
                await asyncio.sleep(pause)
    except TimeoutError as error:
        text = f"clients do not arrive at {to} within {deadline:.3g} s, but {where}"
        raise TimedOut(text, operation="switch", subject=route) from error


async def resolved(host: str, port: int) -> list[tuple[str, int]]:
    """Return the addresses that a host and its port have; none if nobody can tell in time."""
    try:
        async with asyncio.timeout(RESOLVE_SECONDS):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, TimeoutError):
        return []
    return [(str(each[4][0]), int(each[4][1])) for each in found]
