"""A network between clients and servers that can be cut, a process of its own: one proxy a server.

`failover_network.py PORT:TO …` forwards each PORT of the loopback to another; it reads lines from its standard input,
`cut PORT` and `mend PORT`, answers each with a line, and ends with it.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack

from resilience.postgres.dropping import DroppingProxy


async def serve(ways: list[str]) -> None:
    """Forward until standard input ends."""
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        proxies = {}
        for way in ways:
            port, _, to = way.partition(":")
            proxies[port] = await stack.enter_async_context(DroppingProxy("127.0.0.1", int(to), int(port)).running())
        print("ready", flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            what, port = line.split()
            await (proxies[port].cut() if what == "cut" else proxies[port].mend())
            print(what, flush=True)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1:]))
