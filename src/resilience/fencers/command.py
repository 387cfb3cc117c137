"""CommandFencer: programs of your own that fence a member, such as one that switches its power off."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from time import monotonic

from attrs import field, frozen

from resilience.concurrency import finish
from resilience.model.errors import FencingUnproven, Unavailable, Unsupported
from resilience.model.groups import Fence
from resilience.model.moments import utc_now
from resilience.programs import started

from .local import Epochs

LOOK_AGAIN_SECONDS = 0.1
_SHOWN = 200


def _words(words: Sequence[str]) -> tuple[str, ...]:
    if isinstance(words, str):
        raise TypeError("a command is a list of words: there is no shell to take it apart")
    return tuple(words)


@frozen(kw_only=True)
class FenceCommand:
    """The commands for one member, each a program and its arguments; `{member}` and `{epoch}` in them are replaced.

    `fence` ends with status 0 when the member is, or will soon be, unable to write, also after its machine starts
    again; `clean` does so in order. `proof` ends with 0 only if it cannot write any more: it asks the power switch, the
    hypervisor, the cloud, and not the member. What it prints is kept as evidence. `lift` undoes it. No secret may stand
    in them: everybody on the machine can read a command line.
    """

    fence: Sequence[str] = field(converter=_words)
    proof: Sequence[str] = field(converter=_words)
    clean: Sequence[str] = field(default=(), converter=_words)
    lift: Sequence[str] = field(default=(), converter=_words)

    def __attrs_post_init__(self) -> None:
        if not self.fence or not self.proof:
            raise ValueError("a fence needs a command and a proof of its own: an exit status alone proves nothing")


@frozen
class CommandFencer:
    """Fences members by `commands`, by their names; each command may take `seconds`, and the proof is tried so long."""

    commands: Mapping[str, FenceCommand]
    seconds: float = field(default=60.0, kw_only=True)
    clock: Callable[[], datetime] = field(default=utc_now, kw_only=True, repr=False)
    _epochs: Epochs = field(factory=Epochs, init=False, repr=False)

    @property
    def members(self) -> Collection[str]:
        """The members that it can fence."""
        return tuple(self.commands)

    async def fence(self, member: str, *, epoch: int, clean: bool = False) -> Fence:
        """Run the command, then the proof until it holds; see `Fencer.fence`. Once begun it is brought to its end."""
        commands = self._commands(member, epoch)
        return await finish(self._fence(member, commands, epoch, clean))

    async def lift(self, member: str, *, epoch: int) -> None:
        """Undo it; nothing if there is no command for that. Raises Unavailable if it fails."""
        commands = self._commands(member, epoch)
        if commands.lift:
            status, said = await finish(self._run(commands.lift, member, epoch, self.seconds))
            if status != 0:
                raise Unavailable(_failed(commands.lift, status, said), operation="lift", subject=member)

    async def _fence(self, member: str, commands: FenceCommand, epoch: int, clean: bool) -> Fence:
        command = commands.clean if clean and commands.clean else commands.fence
        status, said = await self._run(command, member, epoch, self.seconds)
        if status != 0:
            raise FencingUnproven(_failed(command, status, said), operation="fence", subject=member)
        deadline = monotonic() + self.seconds
        while True:
            status, said = await self._run(commands.proof, member, epoch, max(0.1, deadline - monotonic()))
            if status == 0:
                evidence = f"{commands.proof[0]} proves it" + (f": {said}" if said else "")
                return Fence(member=member, kind="proven", epoch=epoch, at=self.clock(), evidence=evidence)
            if monotonic() >= deadline:
                text = f"no proof within {self.seconds:.0f} s: {_failed(commands.proof, status, said)}"
                raise FencingUnproven(text, operation="fence", subject=member)
            await asyncio.sleep(LOOK_AGAIN_SECONDS)

    async def _run(self, command: Sequence[str], member: str, epoch: int, seconds: float) -> tuple[int | None, str]:
        """Run a command; return its status, None if it took too long, and what it said last."""
        words = [word.replace("{member}", member).replace("{epoch}", str(epoch)) for word in command]
        if (path := shutil.which(words[0])) is None:
            raise FencingUnproven(f"there is no program {words[0]}", operation="fence", subject=member)
        try:
            async with started([path, *words[1:]], stdout=True) as running:
                try:
                    async with asyncio.timeout(seconds):
                        printed = (await running.read_all()).decode(errors="replace")
                        status = await running.wait()
                except TimeoutError:
                    return None, ""
                return status, " ".join((printed or running.said).split())[-_SHOWN:]
        except Unsupported as error:
            raise FencingUnproven(error.what, operation="fence", subject=member) from error

    def _commands(self, member: str, epoch: int) -> FenceCommand:
        if member not in self.commands:
            raise FencingUnproven("there is no command that fences it", operation="fence", subject=member)
        self._epochs.check(member, epoch)
        return self.commands[member]


def _failed(command: Sequence[str], status: int | None, said: str) -> str:
    how = "took too long" if status is None else f"ended with status {status}"
    return f"{command[0]} {how}" + (f": {said}" if said else "")
