"""The doctor's rules about a Redis server. Pure: vitals in, findings out."""

from __future__ import annotations

from collections.abc import Iterator

from resilience.model.findings import Finding, Severity
from resilience.model.show import as_bytes
from resilience.reference import REDIS_SETTINGS

from .vitals import Rules, Vitals

SKEW_SECONDS = 5.0
BYTES = {"kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30, "k": 1000, "m": 1000**2, "g": 1000**3}


def server_findings(vitals: Vitals) -> Iterator[Finding]:
    """Find out what of a server would lose data, or keep it from coming back."""
    yield from _settings(vitals)
    yield from _state(vitals)
    yield from _way(vitals)


def in_bytes(text: str) -> int:
    """Read an amount of memory as redis.conf has it: `64mb`."""
    unit = next((unit for unit in BYTES if text.lower().endswith(unit)), "")
    return int(text[: len(text) - len(unit)] or 0) * BYTES.get(unit, 1)


def saves_enough(vitals: Vitals) -> bool:
    """Tell whether it saves at least as often as the reference."""
    return Rules.parse(vitals.text("save")).at_least(Rules.parse(REDIS_SETTINGS["save"].value))


def _settings(vitals: Vitals) -> Iterator[Finding]:
    if vitals.settings is None:
        text = "this user may not ask for settings, so nobody knows what survives a restart"
        yield _finding("note", "settings", text, "ACL SETUSER … +config|get")
        return
    yield from _persistence(vitals)
    yield from _aof(vitals)
    for name, why in (
        ("rdbchecksum", "damage of a saved file goes unnoticed (it takes effect after a restart)"),
        ("rdbcompression", "saved files, and what replicas are sent, are several times as large"),
    ):
        if vitals.text(name) == "no":
            severity: Severity = "warning" if name == "rdbchecksum" else "note"
            fix = _set(name, "yes") if name == "rdbcompression" else "rdbchecksum yes   # in redis.conf, then restart"
            yield _finding(severity, name, f"no: {why}", fix)
    if vitals.text("stop-writes-on-bgsave-error") == "no" and vitals.text("save"):
        text = "no: it goes on taking writes when it can no longer save them"
        yield _finding("note", "stop-writes-on-bgsave-error", text, _set("stop-writes-on-bgsave-error", "yes"))


def _persistence(vitals: Vitals) -> Iterator[Finding]:
    """Whether data survives a restart."""
    saves, appends, reference = vitals.text("save"), vitals.text("appendonly") == "yes", REDIS_SETTINGS["save"].value
    if not saves and not appends:
        text = "neither saved nor appended to a file: a restart loses everything"
        yield _finding("blocker", "save", text, f"{_set('appendonly', 'yes')}\n{_set('save', reference)}")
    elif not appends:
        text = "no: a restart loses all that was written since the last save"
        yield _finding("warning", "appendonly", text, _set("appendonly", "yes"))
    elif not saves:
        text = f"it never saves by itself; the append-only file keeps the data, the reference wants both ({reference})"
        yield _finding("note", "save", text, _set("save", reference))
    if saves and not saves_enough(vitals):
        yield _finding(
            "note", "save", f"{saves} is less often than the reference's {reference}", _set("save", reference)
        )


def _aof(vitals: Vitals) -> Iterator[Finding]:
    """Whether the append-only file keeps what it promises, and stays small enough to be loaded in time."""
    if vitals.text("appendonly") != "yes":
        return
    if vitals.text("appendfsync") == "no":
        text = "no: when the machine goes down, what the system had not written by itself is lost, half a minute or so"
        yield _finding("warning", "appendfsync", text, _set("appendfsync", "everysec"))
    name = "auto-aof-rewrite-percentage"
    percentage, wanted = vitals.text(name), REDIS_SETTINGS[name].value
    if percentage == "0":
        text = (
            "0: the append-only file is never rewritten, so it and the time to load it grow without end; "
            "was this left behind by a backup that forbade rewrites? (ours never does)"
        )
        yield _finding("warning", name, text, _set(name, wanted))
    elif percentage.isdecimal() and int(percentage) > int(wanted):
        text = f"{percentage}: it grows to {1 + int(percentage) / 100:g} times its size before it is rewritten"
        yield _finding("note", name, text, _set(name, wanted))
    name = "auto-aof-rewrite-min-size"
    least = REDIS_SETTINGS[name].value
    if in_bytes(vitals.text(name)) > in_bytes(least):
        text = f"{as_bytes(in_bytes(vitals.text(name)))}: below that it is never rewritten"
        yield _finding("note", name, text, _set(name, least))


def _state(vitals: Vitals) -> Iterator[Finding]:
    """Whether what it does to keep data has succeeded."""
    info = vitals.info
    if info.number("loading"):
        yield _finding("warning", "loading", "it is loading its data and answers nobody", "wait until it has finished")
    for name, severity, text in (
        ("aof_last_write_status", "blocker", "it cannot write its append-only file, and refuses writes"),
        ("rdb_last_bgsave_status", "warning", "its last save failed, so a backup may fail for the same reason"),
        ("aof_last_bgrewrite_status", "warning", "its last rewrite of the append-only file failed, so that file grows"),
    ):
        if info.text(name) not in ("", "ok"):
            grave: Severity = "blocker" if severity == "blocker" else "warning"
            yield _finding(grave, name, text, "its log says why: no room on the disk, or no memory to fork")
    used, total = info.number("used_memory"), info.number("total_system_memory")
    if total and used > total // 2:
        text = f"{as_bytes(used)} of {as_bytes(total)}: what is written during a save or a rewrite is there twice"
        yield _finding("warning", "used_memory", text, "set maxmemory lower, or give the machine more memory")
    if not info.master and info.text("master_link_status") != "up":
        text = "it is a replica that has lost its master: its data grows older, and it gives no snapshot"
        yield _finding("warning", "master_link_status", text, "look why the link is down")


def _way(vitals: Vitals) -> Iterator[Finding]:
    """The connection, and the clock."""
    if not vitals.tls and not vitals.local:
        text = "the connection is not encrypted: data and password pass in the clear"
        yield _finding("warning", "tls", text, "tls-port on the server, and rediss:// in the url")
    if vitals.info.number("server_time_usec") and abs(vitals.skew) > SKEW_SECONDS:
        text = f"the server's clock is {vitals.skew:+.1f} s from ours: the times of backups are the server's"
        yield _finding("warning", "clock", text, "keep both in time (chrony, or systemd-timesyncd)")


def _set(name: str, value: str) -> str:
    value = f'"{value}"' if " " in value else value
    return f"CONFIG SET {name} {value}   # and CONFIG REWRITE, or it is forgotten at the next start"


def _finding(severity: Severity, subject: str, text: str, hint: str) -> Finding:
    return Finding(severity=severity, subject=subject, text=text, hint=hint)
