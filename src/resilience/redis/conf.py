"""Lines of redis.conf: what is secret goes into a file, since anybody can read a command line."""

from __future__ import annotations

from collections.abc import Mapping

_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def quoted(value: str) -> str:
    """Return a value as one word of redis.conf."""
    return '"' + "".join(_ESCAPES.get(each, each) for each in value) + '"'


def conf(settings: Mapping[str, str]) -> str:
    """Return a line for each setting."""
    return "".join(f"{name} {quoted(value)}\n" for name, value in settings.items())
