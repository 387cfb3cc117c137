"""Where servers listen, as clients and poolers name them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from attrs import frozen

DEFAULT_PORT = 5432
_HOST = re.compile(r"[^\s',;=\"]+")


@frozen
class Address:
    """A host (its name, its address, or the folder of a socket) and a port, compared as they are written.

    An empty host is whatever who connects takes for the default.
    """

    host: str
    port: int = DEFAULT_PORT

    @classmethod
    def parse(cls, text: str | Address) -> Address:
        """Read `host:port`, `[address]:port` or `/folder:port`; without a port it is 5432. Raises ValueError."""
        if isinstance(text, Address):
            return text
        match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:]+))(?::(\d+))?", text)
        host, port = (match[1] or match[2], int(match[3] or DEFAULT_PORT)) if match else ("", 0)
        if not _HOST.fullmatch(host) or not 0 < port < 65536:
            raise ValueError(f"{text!r} is not a host and a port, such as 10.0.0.4:5432 or [fd00::4]:5432")
        return cls(host, port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host or 'the default socket'}:{self.port}"


def read_addresses(members: Mapping[str, str | Address]) -> dict[str, Address]:
    """Read where members are (attrs converter). Raises ValueError also if two are at the same place."""
    read = {name: Address.parse(text) for name, text in members.items()}
    if len(set(read.values())) != len(read):
        raise ValueError("two members are at the same address")
    return read
