"""Whether a running server can hold what it is about to copy.

A replica that cannot load what its master sends ends its process, and does not start again: the file that it received
has taken the place of its own.
"""

from __future__ import annotations

from collections.abc import Iterable

from redis.asyncio import Redis

from .client import ask
from .survey import Info

_DATABASES = "set databases in its configuration, and restart it"
_MODULES = "load them there too: its process would end"
_WRITES = "set replica-read-only yes"


async def lacking(client: Redis, info: Info, *, databases: int, modules: Iterable[str]) -> list[tuple[str, str]]:
    """Say what a server lacks to copy data of so many databases and of these modules, each with a hint."""
    found = []
    has = await setting(client, "databases")
    if not has.isdecimal() or int(has) < databases:
        found.append((f"it has {has or 'an unknown number of'} databases, and the data needs {databases}", _DATABASES))
    if missing := sorted(set(modules) - set(info.modules)):
        found.append((f"it lacks the modules {', '.join(missing)}, which the backed-up server had", _MODULES))
    if await setting(client, "replica-read-only") == "no":
        found.append(("as a replica it would take writes, and lose them", _WRITES))
    return found


def holds(info: Info) -> str:
    """Say what a server holds that a copy would replace, or nothing."""
    libraries = info.number("number_of_libraries")
    return f"{info.keys} keys, {libraries} function libraries" if info.keys or libraries else ""


async def setting(client: Redis, name: str) -> str:
    """Return a setting, empty if the server does not know it."""
    answer = await ask(client, "CONFIG", "GET", name)
    return answer[1].decode() if answer else ""
