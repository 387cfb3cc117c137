"""The process that stays: it archives ahead, fetches ahead, and answers PostgreSQL's commands over the spool's socket.

One a spool: it holds a lock (flock(2)), which the kernel gives back however it dies. It leaves when there was nothing
to do for a while, when its configuration changes, and when the spool or the archive is taken away from it; the next
command that finds nobody does the work itself and leaves a new one behind.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from resilience.concurrency import stop_tasks
from resilience.model.errors import ResilienceError
from resilience.postgres.wal.spool import UNKNOWN, Answer, Request, Spool

from .config import WalConfig, stamp
from .fetching import Prefetcher
from .opened import Opened, opened
from .ready import Ready

LOCK = ".lock"
LOCK_SECONDS = 1.0
LOG = ".log"
LOG_AT_MOST = 1 << 20
LOOK_SECONDS = 0.5
_logger = logging.getLogger(__name__)


async def serve(config: WalConfig, *, after: str = "") -> bool:
    """Be the resident process of a spool until there is nothing to do; False if there is one already.

    `after` names a segment that was just fetched: what follows it is fetched ahead.
    """
    async with opened(config) as found:
        with _handle(found.spool.folder) as lock:
            if not await _locked(lock):
                _logger.info("another process serves %s", found.spool.folder)
                return False
            os.truncate(lock, 0)
            os.write(lock, f"{os.getpid()}\n".encode())
            prefetcher, ready = Prefetcher(found), Ready(found)
            await prefetcher.empty()
            if after:
                prefetcher.begin(after)

            async def handle(request: Request) -> Answer:
                if request.verb == "push":
                    return await ready.answer(request.name)
                if request.verb == "fetch":
                    return await prefetcher.answer(request.name)
                return Answer(UNKNOWN, "this process knows no such request")

            async with found.spool.serving(handle):
                _logger.info("serving %s", found.spool.folder)
                working = [asyncio.create_task(work) for work in (prefetcher.run(), ready.run(), _asked_to_leave())]
                try:
                    await _until_idle(found, lock, prefetcher, ready, working)
                finally:
                    await stop_tasks(working)
        return True


async def _until_idle(
    found: Opened, lock: int, prefetcher: Prefetcher, ready: Ready, working: list[asyncio.Task[None]]
) -> None:
    loop, config = asyncio.get_running_loop(), found.config
    while loop.time() - max(prefetcher.active, ready.active) < config.idle:
        done, _ = await asyncio.wait(working, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
            return
        if found.moved or not _unchanged(config) or not _ours(config.folder / LOCK, lock):
            return


async def _asked_to_leave() -> None:
    leave = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, leave.set)
    await leave.wait()


@contextmanager
def _handle(folder: Path) -> Iterator[int]:
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield handle
    finally:
        os.close(handle)


async def _locked(handle: int) -> bool:
    """Take the lock; one whose holder is just dying is given back a moment later."""
    deadline = asyncio.get_running_loop().time() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if asyncio.get_running_loop().time() > deadline:
                return False
            await asyncio.sleep(LOCK_SECONDS / 20)
        else:
            return True


def leave_behind(config: WalConfig, *, after: str = "") -> None:
    """Have a copy of this process stay as the resident one, unless there is one; it is no error if it cannot.

    It is forked, since everything is loaded here already; call it while no event loop and no thread runs.
    """
    try:
        config = config.located()
        config.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if Spool(config.folder).is_served() or os.fork():
            return
    except (OSError, ResilienceError) as error:
        _logger.warning("no resident process was left behind: %s", error)
        return
    status = 1
    try:
        _detach(config)
        asyncio.run(serve(config, after=after))
        status = 0
    except Exception:
        _logger.exception("the resident process failed")
    finally:
        os._exit(status)  # nothing of what the copied process was about to do happens twice


def _detach(config: WalConfig) -> None:
    """Leave the session, the pipes and the folder of whoever called."""
    os.setsid()
    os.chdir(config.data or config.folder)
    written = config.folder / LOG
    with suppress(FileNotFoundError):
        if written.stat().st_size > LOG_AT_MOST:
            written.unlink()
    with open(os.devnull, "rb") as nothing, written.open("ab") as log:
        for stream, number in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(stream.fileno(), number)


def _unchanged(config: WalConfig) -> bool:
    with suppress(OSError):
        return stamp(config.path.stat()) == config.stamp
    return False


def _ours(path: Path, lock: int) -> bool:
    with suppress(OSError):
        return os.path.samestat(path.stat(), os.fstat(lock))
    return False
