"""The table of a failover as a picture: Mermaid's state diagram (mermaid.js.org/syntax/stateDiagram.html)."""

from __future__ import annotations

from collections.abc import Iterator

from resilience.planning.transitions import FINAL, TABLE, UNDOABLE, Row, State


def state_diagram() -> str:
    """Return all states of a failover and the ways between them, as Mermaid draws them."""
    return "\n".join(["stateDiagram-v2", *(f"    {line}" for line in _lines())]) + "\n"


def _lines() -> Iterator[str]:
    states = dict.fromkeys([row.state for row in TABLE] + list(FINAL))
    yield from (f'state "{state}" as {_id(state)}' for state in states if " " in state)
    yield "[*] --> begun"
    for row in TABLE:
        yield from _ways(row)
    yield from (f"{_id(state)} --> [*]" for state in FINAL)


def _ways(row: Row) -> Iterator[str]:
    steps = ", ".join(row.steps)
    ways: dict[State, list[str]] = {}
    for to, word in ((row.failed, "not done"), (row.unknown, "unknown"), (row.taken_over, "taken over")):
        if to != row.done and not (to == row.state and word == "taken over"):
            ways.setdefault(to, []).append(word)
    if row.state in UNDOABLE:
        ways.setdefault("stopping", []).append("stopped")
    yield f"{_id(row.state)} --> {_id(row.done)}: {steps}"
    for to, words in ways.items():
        again = f"{steps}: " if to == row.state else ""
        yield f"{_id(row.state)} --> {_id(to)}: {again}{', '.join(words)}"


def _id(state: State) -> str:
    return state.replace(" ", "_")
