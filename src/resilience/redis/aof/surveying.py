"""Where a server keeps its append-only file, whether it can be read from here, and what stands in the way."""

from __future__ import annotations

from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, ResponseError

from resilience.concurrency import in_thread
from resilience.model.errors import ResilienceError
from resilience.model.facts import TargetFacts
from resilience.model.findings import Finding, blocker
from resilience.redis.client import Url, ask, commands
from resilience.redis.survey import SYSTEM, Info, ask_info

from .holding import DISK, SWITCH_ON, Holding
from .listing import SUFFIX

OLDEST = 7
_OTHERWISE = "or back up an RDB with RedisTarget, which needs no disk"


async def survey(url: Url, folder: Path | None, *, target: str, kind: str) -> TargetFacts:
    """Survey a server for a backup of its append-only file; every obstacle becomes a finding."""
    async with commands(url, operation="survey") as client:
        info = await ask_info(client, "everything")
        findings, size = obstacles(info, url.where), None
        if not findings:
            found = await find(client, url, folder)
            size, findings = await in_thread(_look, found) if isinstance(found, Holding) else (None, [found])
    return TargetFacts(
        target=target,
        system=SYSTEM,
        kind=kind,
        lineage=target,
        branch=info.text("master_replid"),
        only_full="an append-only file holds all there is",
        size=size,
        findings=(*findings, *_remarks(info, url.where)),
        details={
            "product": info.product,
            "version": info.version,
            "major": info.major,
            "role": info.text("role"),
            "mode": info.mode,
            "run_id": info.text("run_id"),
            "databases": {str(number): dict(each) for number, each in info.databases.items()},
            "used_memory": info.number("used_memory"),
            "modules": list(info.modules),
        },
    )


async def find(client: Redis, url: Url, folder: Path | None) -> Holding | Finding:
    """Find the append-only file, in `folder` or where the server says; or else say why that cannot be done."""
    name = ""
    try:
        said = await _settings(client)
        name = f"{said.get('appendfilename', '')}{SUFFIX}" if said.get("appendfilename") else ""
        folder = folder or Path(said["dir"], said["appenddirname"])
    except (NoPermissionError, ResponseError, KeyError):
        if folder is None:
            text = "it does not say where its append-only file is: this user may not ask"
            return blocker(url.where, text, "grant +config|get with ACL SETUSER, or name the folder with folder=")
    try:
        names = await in_thread(_manifests, folder)
    except (FileNotFoundError, NotADirectoryError):
        text = f"its append-only file is in {folder} on its own machine, and there is no such folder here"
        return blocker(url.where, text, f"run where its files are, name their folder with folder=, {_OTHERWISE}")
    except OSError as error:
        text = f"its append-only file cannot be read from here: {error.strerror}: {error.filename}"
        return blocker(url.where, text, f"run as the server's account or as root, {_OTHERWISE}")
    if name not in names and len(names) != 1:
        text = (
            f"there is no {name or SUFFIX} in {folder}" if not names else f"{folder} holds several: {', '.join(names)}"
        )
        return blocker(url.where, f"this is not its append-only file: {text}", f"name another folder, {_OTHERWISE}")
    return Holding(folder, name if name in names else names[0])


async def _settings(client: Redis) -> dict[str, str]:
    """Ask for the names of the append-only file. Raises redis.RedisError if we may not."""
    found: dict[str, str] = {}
    for name in ("dir", "appenddirname", "appendfilename"):  # several at once are for Redis 7 and newer only
        words = [word.decode(errors="surrogateescape") for word in await ask(client, "CONFIG", "GET", name)]
        found.update(zip(words[::2], words[1::2], strict=True))
    return found


def _manifests(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(SUFFIX))


def _look(holding: Holding) -> tuple[int | None, list[Finding]]:
    """Open the files once, to see whether that is allowed."""
    try:
        return (sum(holding.lengths()) if holding.open() else None), []
    except ResilienceError as error:
        return None, [blocker(error.subject or str(holding.folder), error.what, error.hint)]
    finally:
        holding.close()


def obstacles(info: Info, where: str) -> list[Finding]:
    """Find what stands in the way of a backup of the append-only file; pure."""
    version, mode = info.version or "(unknown)", info.mode
    if mode == "sentinel":
        return [blocker(where, "it is a Sentinel, which holds no data", "name one of the servers that it watches")]
    if info.major < OLDEST:
        text = (
            f"Redis {version} keeps its append-only file in one piece, which a rewrite replaces and no manifest "
            "describes: what is backed up here is the multi-part one of Redis 7 and newer"
        )
        return [blocker(where, text, "back up an RDB with RedisTarget, or upgrade the server")]
    checks = [
        (info.number("loading") > 0, "it is loading its data", "try again when it has finished"),
        (not info.number("aof_enabled"), "it keeps no append-only file", SWITCH_ON),
        (info.text("aof_last_write_status") not in ("", "ok"), "it cannot write its append-only file", DISK),
    ]
    return [blocker(where, text, hint) for wrong, text, hint in checks if wrong][:1]


def _remarks(info: Info, where: str) -> list[Finding]:
    remarks = []
    if info.mode == "cluster":
        text, hint = "it is one shard of a cluster: this backup holds its slots only", "back up every master"
        remarks.append(Finding(severity="warning", subject=where, text=text, hint=hint))
    if info.text("aof_last_bgrewrite_status") not in ("", "ok"):
        text = "its last rewrite of the append-only file failed, so that file grows and a restart takes longer"
        remarks.append(Finding(severity="warning", subject=where, text=text, hint=DISK))
    return remarks
