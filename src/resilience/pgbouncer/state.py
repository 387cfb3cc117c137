"""What PgBouncer does and what its file says, side by side."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from attrs import frozen

from resilience.model.errors import Refused
from resilience.model.findings import Finding, blocker
from resilience.postgres.addresses import DEFAULT_PORT, Address

from .console import Console, Row
from .files import ConfigFile, find


@frozen(kw_only=True)
class State:
    """How some databases of one PgBouncer stand: where they lead now, and where they will after a RELOAD."""

    rows: Mapping[str, Row]
    settings: Mapping[str, str]
    file: ConfigFile
    findings: tuple[Finding, ...] = ()

    @property
    def running(self) -> dict[str, Address]:
        """Where each database leads."""
        return {name: Address(row["host"], int(row["port"] or DEFAULT_PORT)) for name, row in self.rows.items()}

    @property
    def written(self) -> dict[str, Address]:
        """Where the file says that each leads."""
        return {name: place for name, place in self.file.places.items() if name in self.rows}

    @property
    def paused(self) -> tuple[str, ...]:
        """The databases whose clients wait."""
        return tuple(name for name, row in self.rows.items() if row["paused"] == "1")

    @property
    def held(self) -> bool:
        """Whether the clients of all of them wait."""
        return len(self.paused) == len(self.rows)

    @property
    def connections(self) -> int:
        """How many connections to servers there are."""
        return sum(int(row["current_connections"] or 0) for row in self.rows.values())

    @property
    def version(self) -> str:
        """What changes when somebody leads one of them elsewhere, in the file or in PgBouncer."""
        text = "\n".join(f"{name}\t{self.running[name]}\t{self.written[name]}" for name in sorted(self.rows))
        return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


async def look(opened: Console, databases: Sequence[str], config: Path | None, *, subject: str) -> State:
    """Ask the console and read the file. Raises Refused if one of them has no such database, or the file no reader."""
    settings = {row["key"]: row["value"] for row in await opened.ask("SHOW CONFIG")}
    shown = {row["name"]: row for row in await opened.ask("SHOW DATABASES")}
    named = Path(settings["conffile"])
    file = find(config or named, databases, subject=subject)
    if absent := [name for name in databases if name not in shown]:
        text, hint = f"PgBouncer has no database {', '.join(absent)}", "RELOAD it, if its file has been changed"
        raise Refused(text, operation=opened.operation, subject=subject, hint=hint)
    state = State(rows={name: shown[name] for name in databases}, settings=settings, file=file)
    found = [*_obstacles(state, opened, named, databases, subject), *_remarks(state, subject)]
    return State(rows=state.rows, settings=settings, file=file, findings=tuple(found))


def _obstacles(state: State, opened: Console, named: Path, databases: Sequence[str], subject: str) -> list[Finding]:
    """Find what a switch would fail on half-way."""
    found = []
    user = opened.dsn.parameters.get("user", "")
    admins = [name.strip() for name in state.settings["admin_users"].split(",")]
    if user and user not in admins and state.settings["auth_type"] != "any":
        found.append(("the user of the console may look, but not switch", "add it to admin_users"))
    if not os.access(state.file.path.parent, os.W_OK):
        found.append((f"{state.file.path.parent} is not writable", "the file is replaced whole, beside itself"))
    try:
        read = find(named, databases, subject=subject).path
    except Refused:
        read = state.file.path  # somebody else's folder: we cannot tell
    if read != state.file.path:
        found.append((f"PgBouncer reads these databases from {read}, not from {state.file.path}", "correct config="))
    return [blocker(subject, text, hint) for text, hint in found]


def _remarks(state: State, subject: str) -> list[Finding]:
    """Find what a person should know."""
    found = []
    if state.written != state.running:
        found.append(("the file says otherwise than PgBouncer does: somebody edited it and did not RELOAD", ""))
    if len(set(state.running.values())) > 1:
        found.append(("its databases lead to different servers", ""))
    if state.paused and not state.held:
        found.append((f"clients of {', '.join(state.paused)} wait, others do not", "switch it, or RESUME them"))
    for name, row in state.rows.items():
        if (row["pool_mode"] or state.settings["pool_mode"]) == "session":
            hint = "clients that are connected cannot be held; use transaction pooling"
            found.append((f"{name} is pooled by session", hint))
        if row["disabled"] == "1":
            found.append((f"{name} is disabled: clients are turned away", "ENABLE it"))
    if state.held and state.connections:
        text = f"{state.connections} connections still run on the server, though clients are held"
        found.append((text, "what runs there ends with the server, or is cut off by the switch"))
    return [Finding(severity="warning", subject=subject, text=text, hint=hint) for text, hint in found]
