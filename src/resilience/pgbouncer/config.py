"""The lines of PgBouncer's configuration that say where its databases are (pgbouncer(5), "Section [databases]").

All but the host and the port is kept as it is, byte for byte. Nothing here does I/O.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from resilience.postgres.addresses import DEFAULT_PORT, Address

_SECTION = re.compile(r"\s*\[([^\]]*)\]\s*$")
_INCLUDE = re.compile(r"\s*%include\s+(\S.*?)\s*$")
_LINE = re.compile(r'(\s*(?!%)("(?:[^"]|"")*"|[^\s="]+)\s*=\s*)(.*?)(\s*)$', re.DOTALL)
# Only a space ends a value: PgBouncer takes a tab for part of it.
_PAIR = re.compile(r"([A-Za-z_]\w*)\s*=\s*('(?:[^']|'')*'|[^ ']*)")


def places(text: str, section: str = "") -> dict[str, Address]:
    """Return where every database of a configuration leads, by name; of two lines for one the later one counts.

    `section` is the one that the text begins in, if another file includes it.
    """
    return {name: _place(match[3]) for name, match, _ in _lines(text, section)}


def includes(text: str, section: str = "") -> list[tuple[str, str]]:
    """Return the files that a configuration includes, as they are written there, and the section each begins in."""
    inside = ((line, section) for line, section, _ in _in_sections(text, section))
    return [(match[1], section) for line, section in inside if (match := _INCLUDE.match(line))]


def moved(text: str, to: Mapping[str, Address], section: str = "") -> str:
    """Return a configuration in which these databases lead elsewhere. Raises KeyError for one that has no line."""
    pieces, absent = text.split("\n"), set(to)
    for name, match, number in _lines(text, section):
        if name in to:
            pieces[number] = f"{match[1]}{_moved(match[3], to[name])}{match[4]}"
            absent.discard(name)
    if absent:
        raise KeyError(*sorted(absent))
    return "\n".join(pieces)


def _lines(text: str, section: str) -> Iterator[tuple[str, re.Match[str], int]]:
    """Yield the name, the parts and the number of every line in [databases]."""
    for line, inside, number in _in_sections(text, section):
        if inside == "databases" and (match := _LINE.match(line)):
            name = match[2]
            yield (name[1:-1].replace('""', '"') if name.startswith('"') else name), match, number


def _in_sections(text: str, section: str) -> Iterator[tuple[str, str, int]]:
    """Yield every line that says something, its section and its number."""
    for number, line in enumerate(text.split("\n")):
        if match := _SECTION.match(line):
            section = match[1]
        elif line.strip() and line.lstrip()[0] not in ";#":
            yield line, section, number


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
