"""The lines of PgBouncer's configuration that say where its databases are (pgbouncer(5), "Section [databases]").

All but the host and the port is kept as it is, byte for byte. Nothing here does I/O.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from attrs import frozen

DEFAULT_PORT = 5432
_SECTION = re.compile(r"\s*\[([^\]]*)\]\s*$")
_INCLUDE = re.compile(r"\s*%include\s+(\S.*?)\s*$")
_LINE = re.compile(r'(\s*("(?:[^"]|"")*"|[^\s="]+)\s*=\s*)(.*?)(\s*)$', re.DOTALL)
_PAIR = re.compile(r"([A-Za-z_]\w*)\s*=\s*('(?:[^']|'')*'|[^\s']*)")
_HOST = re.compile(r"[^\s',;=\"]+")


@frozen
class Place:
    """Where a server listens: its host (a name, an address, or the folder of its socket) and its port.

    An empty host is the socket in PgBouncer's own `unix_socket_dir`.
    """

    host: str
    port: int

    @classmethod
    def parse(cls, text: str | Place) -> Place:
        """Read `host:port`, `[address]:port` or `/folder:port`; without a port it is 5432. Raises ValueError."""
        if isinstance(text, Place):
            return text
        match = re.fullmatch(r"(?:\[([^\]]+)\]|(.*?))(?::(\d+))?", text)
        host, port = ((match[1] or match[2] or "", int(match[3] or DEFAULT_PORT))) if match else ("", 0)
        if not _HOST.fullmatch(host) or not 0 < port < 65536 or (":" in host and not (match and match[1])):
            raise ValueError(f"{text!r} is not a host and a port, such as 10.0.0.4:5432")
        return cls(host, port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host or 'its socket'}:{self.port}"


def read_places(members: Mapping[str, str | Place]) -> dict[str, Place]:
    """Read where members are (attrs converter); see `Place.parse`."""
    return {name: Place.parse(text) for name, text in members.items()}


def places(text: str) -> dict[str, Place]:
    """Return where every database of a configuration leads, by name; of two lines for one the later one counts."""
    return {name: _place(match[3]) for name, match, _ in _lines(text)}


def includes(text: str) -> list[str]:
    """Return the files that a configuration includes, as they are written there."""
    return [match[1] for line in text.split("\n") if (match := _INCLUDE.match(line))]


def moved(text: str, to: Mapping[str, Place]) -> str:
    """Return a configuration in which these databases lead elsewhere. Raises KeyError for one that has no line."""
    pieces, absent = text.split("\n"), set(to)
    for name, match, number in _lines(text):
        if name in to:
            pieces[number] = f"{match[1]}{_moved(match[3], to[name])}{match[4]}"
            absent.discard(name)
    if absent:
        raise KeyError(*sorted(absent))
    return "\n".join(pieces)


def _lines(text: str) -> Iterator[tuple[str, re.Match[str], int]]:
    """Yield the name, the parts and the number of every line in [databases]."""
    section = ""
    for number, line in enumerate(text.split("\n")):
        if not line.strip() or line.lstrip()[0] in ";#%":
            continue
        if match := _SECTION.match(line):
            section = match[1].strip().lower()
        elif section == "databases" and (match := _LINE.match(line)):
            name = match[2]
            yield (name[1:-1].replace('""', '"') if name.startswith('"') else name), match, number


def _place(value: str) -> Place:
    pairs = {match[1]: _plain(match[2]) for match in _PAIR.finditer(value)}
    port = pairs.get("port", "")
    return Place(pairs.get("host", ""), int(port) if port.isdecimal() else DEFAULT_PORT)


def _moved(value: str, place: Place) -> str:
    wanted = {"host": place.host, "port": str(place.port)}
    replaced = _PAIR.sub(lambda pair: f"{pair[1]}={wanted[pair[1]]}" if pair[1] in wanted else pair[0], value)
    there = {pair[1] for pair in _PAIR.finditer(value)}
    added = [f"{key}={new}" for key, new in wanted.items() if key not in there]
    return " ".join(filter(None, [*added, replaced]))


def _plain(word: str) -> str:
    return word[1:-1].replace("''", "'") if word.startswith("'") else word
