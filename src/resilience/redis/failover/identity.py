"""That a member's url, its folder and its configuration file are of one server: of another one nothing is proven."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path

from resilience.concurrency import in_thread
from resilience.model.errors import FencingUnproven, ResilienceError
from resilience.processes import PROC
from resilience.redis.client import commands
from resilience.redis.members import RedisMember
from resilience.redis.survey import Info, ask_info

from .server import LocalRedis

OPERATION = "fence"
ANSWER_SECONDS = 0.25
"""How long a member may take to say who it is; one that hangs is fenced too, and looked for after that."""
_DIR = re.compile(r"^[ \t]*dir[ \t]+(.+?)[ \t]*$", re.IGNORECASE | re.MULTILINE)


async def refuse_other(member: RedisMember, server: LocalRedis) -> None:
    """Raise FencingUnproven if another server answers at the url than the one in the folder, or starts otherwise."""
    if why := await in_thread(_elsewhere, server):
        raise FencingUnproven(
            why, operation=OPERATION, subject=member.name, hint="nothing was touched: name one server"
        )
    try:
        async with commands(member.url, operation=OPERATION, seconds=ANSWER_SECONDS, within=ANSWER_SECONDS) as client:
            said = await ask_info(client, "server")
        pids = await server.running()
    except ResilienceError:
        return  # it does not answer, or does not let us in; see `refuse_answering`
    if why := await in_thread(_another, server, said, pids):
        text = f"what answers at {member.url.where} {why}"
        raise FencingUnproven(
            text, operation=OPERATION, subject=member.name, hint="nothing was touched: name one server"
        )


async def refuse_answering(member: RedisMember) -> None:
    """Raise FencingUnproven if somebody still takes connections at the url of a member that should be dead."""
    place = member.url.where
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            unix = asyncio.open_unix_connection(place) if place.startswith("/") else None
            reader, writer = await (unix or asyncio.open_connection(*member.url.address))
    except (OSError, TimeoutError):
        return
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            writer.write(b"PING\r\n")
            said = "answers" if await reader.read(1) else ""
    except TimeoutError:
        said = "takes connections and hangs"
    except OSError:
        said = ""
    finally:
        writer.transport.abort()
    if said:
        text = f"no process works in its folder, and yet a server {said} at {place}"
        raise FencingUnproven(text, operation=OPERATION, subject=member.name, hint="its folder is another one")


def _elsewhere(server: LocalRedis) -> str:
    """Say that by its configuration file it works in another folder that is there; a container has its own names."""
    try:
        found = _DIR.findall(server.config.read_text(errors="replace"))
        there = Path(found[-1].strip("'\"")) if found else server.data
        if not there.is_absolute() or not there.is_dir() or there.samefile(server.data):
            return ""
    except OSError:
        return ""
    return f"{server.config} has it work in {there}, and not in {server.data}"


def _another(server: LocalRedis, said: Info, pids: Sequence[int]) -> str:
    number, config = said.number("process_id"), said.text("config_file")
    if not any(number in _numbers(pid) for pid in pids):
        return f"is process {number}, which does not work in {server.data}"
    if not config:
        return "was started without a configuration file, so nothing keeps it from starting again"
    if Path(config).exists() and not Path(config).samefile(server.config):
        return f"was started with {config}, and not with {server.config}"
    return ""


def _numbers(pid: int) -> set[int]:
    """Return the numbers of a process, here and in the containers that it runs in (NSpid, proc(5))."""
    try:
        lines = (PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return {pid}
    return {pid, *(int(each) for line in lines if line.startswith("NSpid:") for each in line.split()[1:])}
