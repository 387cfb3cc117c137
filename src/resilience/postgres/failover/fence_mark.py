"""The mark of a fence on a data directory: no server starts behind it, whoever starts it, until it is lifted.

A last line in postgresql.auto.conf names a library that does not exist, so every start fails and says why. A file
beside it says in which epoch that was, and stays when the fence is lifted.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from pathlib import Path

import msgspec
from attrs import define, field, frozen

from resilience.folders import write_durably
from resilience.model.errors import FencedOff, FencingUnproven, Refused
from resilience.model.json import from_json, to_json
from resilience.model.moments import aware
from resilience.postgres.mark import AUTO
from resilience.postgres.tools import Account

FENCE = "resilience.fence"
GUARD = b"shared_preload_libraries = 'resilience_fenced'\n"
OVERRIDES = "shared_preload_libraries"


@frozen(kw_only=True)
class Fenced:
    """What the mark says: since when nothing was acknowledged here, and whether the server ran before."""

    epoch: int
    ran: bool = False
    at: datetime | None = field(default=None, validator=aware)
    lifted: bool = False


@define
class FenceMark:
    """The mark on one data directory."""

    data: Path
    account: Account | None

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
        return _lines(self._auto()).endswith(GUARD)

    def set(self, fenced: Fenced) -> None:
        """Keep every server from starting here from now on. Raises FencingUnproven if that could be overridden."""
        with suppress(FileNotFoundError):
            if OVERRIDES in (self.data / "postmaster.opts").read_text(errors="replace"):
                text = f"its command line sets {OVERRIDES}, so nothing keeps it from starting again"
                hint = "set that in its configuration file instead"
                raise FencingUnproven(text, operation="fence", subject=str(self.data), hint=hint)
        write_durably(self.data / FENCE, to_json(fenced), self.account)
        if not self.stands:
            write_durably(self.data / AUTO, _lines(self._auto()) + GUARD, self.account)

    def lift(self, epoch: int, *, settings: bytes | None = None, keep: Fenced | None = None) -> None:
        """Let a server start here again, with other lines in postgresql.auto.conf if they are given.

        With `keep` the mark goes on saying that, so that whoever finds it knows what is still to be done.
        """
        text = self._auto() if settings is None else settings
        write_durably(self.data / FENCE, to_json(keep or Fenced(epoch=epoch, lifted=True)), self.account)
        write_durably(self.data / AUTO, _lines(text).replace(GUARD, b""), self.account)

    def settings(self) -> bytes:
        """Return the lines of postgresql.auto.conf without the mark's own."""
        return _lines(self._auto()).replace(GUARD, b"")

    def _auto(self) -> bytes:
        try:
            return (self.data / AUTO).read_bytes()
        except FileNotFoundError:
            return b""


def _lines(text: bytes) -> bytes:
    return text if text.endswith(b"\n") or not text else text + b"\n"
