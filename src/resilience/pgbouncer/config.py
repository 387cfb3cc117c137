"""The lines of PgBouncer's configuration that say where its databases are (pgbouncer(5), "Section [databases]").

All but the host and the port is kept as it is, byte for byte. Nothing here does I/O.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from resilience.postgres.addresses import DEFAULT_PORT, Address

_SECTION = re.compile(r"\s*\[([^\]]*)\]\s*$")
_INCLUDE = re.compile(r"\s*%include\s+(\S.*?)\s*$")
_LINE = re.compile(r'(\s*("(?:[^"]|"")*"|[^\s="]+)\s*=\s*)(.*?)(\s*)$', re.DOTALL)
_PAIR = re.compile(r"([A-Za-z_]\w*)\s*=\s*('(?:[^']|'')*'|[^\s']*)")


def places(text: str) -> dict[str, Address]:
    """Return where every database of a configuration leads, by name; of two lines for one the later one counts."""
    return {name: _place(match[3]) for name, match, _ in _lines(text)}


def includes(text: str) -> list[str]:
    """Return the files that a configuration includes, as they are written there."""
    return [match[1] for line in text.split("\n") if (match := _INCLUDE.match(line))]


def moved(text: str, to: Mapping[str, Address]) -> str:
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


def _place(value: str) -> Address:
    pairs = {match[1]: _plain(match[2]) for match in _PAIR.finditer(value)}
    port = pairs.get("port", "")
    return Address(pairs.get("host", ""), int(port) if port.isdecimal() else DEFAULT_PORT)


def _moved(value: str, place: Address) -> str:
    wanted = {"host": place.host, "port": str(place.port)}
    replaced = _PAIR.sub(lambda pair: f"{pair[1]}={wanted[pair[1]]}" if pair[1] in wanted else pair[0], value)
    there = {pair[1] for pair in _PAIR.finditer(value)}
    added = [f"{key}={new}" for key, new in wanted.items() if key not in there]
    return " ".join(filter(None, [*added, replaced]))


def _plain(word: str) -> str:
    return word[1:-1].replace("''", "'") if word.startswith("'") else word
