"""The mark of a fence on a server of this machine: it does not start behind it, whoever starts it, until it is lifted.

The last line in a file that every start reads is one that no server starts with. A file beside its data says in which
epoch that was, and stays when the fence is lifted.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import msgspec
from attrs import define, field, frozen

from resilience.folders import write_durably
from resilience.model.errors import FencedOff, Refused
from resilience.model.json import from_json, to_json
from resilience.model.moments import aware
from resilience.model.positions import Position
from resilience.programs import Account

FENCE = "resilience.fence"


@frozen(kw_only=True)
class Fenced:
    """What the mark says: since when nothing was acknowledged here, where that ended, whether the server ran before."""

    epoch: int
    ran: bool = False
    at: datetime | None = field(default=None, validator=aware)
    end: Position | None = None
    lifted: bool = False


@define
class FenceMark:
    """The mark on one data directory; `guard` is the line, and `config` the file that it stands in."""

    data: Path
    account: Account | None
    config: Path
    guard: bytes

    def read(self) -> Fenced | None:
        """Return what it says; None if there never was one. Raises Refused."""
        try:
            return from_json((self.data / FENCE).read_bytes(), Fenced)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            raise Refused(f"the mark {FENCE} cannot be read", operation="fence", subject=str(self.data)) from error

    def check(self, epoch: int) -> Fenced | None:
        """Return what it says. Raises FencedOff if a newer epoch has written it."""
        found = self.read()
        if found is not None and epoch < found.epoch:
            text = f"epoch {epoch} is over: it was fenced in epoch {found.epoch}"
            raise FencedOff(text, operation="fence", subject=str(self.data))
        return found

    @property
    def stands(self) -> bool:
        """Whether no server starts here."""
        return _lines(self._lines()).endswith(self.guard)

    def set(self, fenced: Fenced) -> None:
        """Keep every server from starting here from now on."""
        self.note(fenced)
        if not self.stands:
            write_durably(self.config, _lines(self._lines()) + self.guard, self.account)

    def note(self, fenced: Fenced) -> None:
        """Write down how it stands, and change nothing else."""
        write_durably(self.data / FENCE, to_json(fenced), self.account)

    def lift(self, epoch: int, *, settings: bytes | None = None, keep: Fenced | None = None) -> None:
        """Let a server start here again, with other lines in its file if they are given.

        With `keep` the mark goes on saying that, so that whoever finds it knows what is still to be done.
        """
        text = self._lines() if settings is None else settings
        self.note(keep or Fenced(epoch=epoch, lifted=True))
        write_durably(self.config, _lines(text).replace(self.guard, b""), self.account)

    def settings(self) -> bytes:
        """Return the lines of its file without the mark's own."""
        return _lines(self._lines()).replace(self.guard, b"")

    def _lines(self) -> bytes:
        try:
            return self.config.read_bytes()
        except FileNotFoundError:
            return b""


def _lines(text: bytes) -> bytes:
    return text if text.endswith(b"\n") or not text else text + b"\n"
