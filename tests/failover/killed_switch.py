"""Switches a PgBouncer again and again, in processes that kill themselves before or after their n-th effect.

Reads what to do as lines of JSON, and answers each with how the process ended.
It forks: importing everything anew for every boundary would take minutes.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys

from resilience.pgbouncer import PgBouncerSwitch
from resilience.pgbouncer.console import Console, Row
from resilience.pgbouncer.files import Replacement


class Boundary:
    """Counts effects, and dies at one of them."""

    def __init__(self, at: int, *, after: bool) -> None:
        self.at, self.after, self.count = at, after, 0

    def before(self) -> int:
        self.count += 1
        if self.count == self.at and not self.after:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.count

    def afterwards(self, number: int) -> None:
        if number == self.at and self.after:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    for request in sys.stdin:
        child = os.fork()
        if not child:
            switch(json.loads(request))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print("killed" if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status), flush=True)


def switch(request: dict[str, object]) -> None:
    boundary = Boundary(int(str(request["at"])), after=bool(request["after"]))
    ask, put = Console.ask, Replacement.put

    async def asked(self: Console, command: str, *, seconds: float | None = 5.0) -> list[Row]:
        if command.startswith("SHOW"):
            return await ask(self, command, seconds=seconds)
        number = boundary.before()
        rows = await ask(self, command, seconds=seconds)
        boundary.afterwards(number)
        return rows

    def putting(self: Replacement) -> None:
        number = boundary.before()
        put(self)
        boundary.afterwards(number)

    Console.ask, Replacement.put = asked, putting  # type: ignore[method-assign]
    made = PgBouncerSwitch("orders", **request["switch"])  # type: ignore[arg-type]
    asyncio.run(made.switch(str(request["to"]), expected=str(request["expected"])))


if __name__ == "__main__":
    main()
