"""The progress bar: what a person sees, and that nobody else sees anything."""

from __future__ import annotations

import sys
from io import StringIO
from types import ModuleType

import pytest
from rich.console import Console

from resilience import progress
from resilience.model.events import Event, Stage
from resilience.progress import ProgressBar

MIB = 1 << 20


class Terminal(StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def event(stage: Stage, done: int = 0, total: int | None = None, *, subject: str = "orders", text: str = "") -> Event:
    return Event(
        operation="backup", subject=subject, stage=stage, done=done * MIB, total=total and total * MIB, text=text
    )


def last_lines(*events: Event) -> list[str]:
    """Return what is left on a terminal of 120 columns after these events."""
    terminal = Terminal()
    console = Console(file=terminal, force_terminal=False, width=120)
    with ProgressBar(console=console, force=True) as bar:
        for each in events:
            bar(each)
    return [" ".join(line.split()) for line in terminal.getvalue().splitlines() if line.strip()]


def test_a_running_operation_shows_its_subject_and_how_far_it_is() -> None:
    (line,) = last_lines(event("started"), event("progress", 512, 2048))
    assert line.startswith("backup orders")
    assert "512.0 MiB of 2.0 GiB" in line


def test_a_total_that_nobody_knows_is_not_invented() -> None:
    (line,) = last_lines(event("started"), event("progress", 512))
    assert "512.0 MiB" in line
    assert " of " not in line


def test_a_completed_operation_shows_what_was_done_even_if_the_estimate_was_lower() -> None:
    (line,) = last_lines(event("started"), event("progress", 70, 64), event("completed", 70, 64))
    assert "70.0 MiB" in line
    assert " of " not in line
    assert "done in" in line


def test_a_failed_operation_is_shown_as_failed_with_its_reason() -> None:
    reason, line = last_lines(event("started"), event("progress", 1, 64), event("failed", 1, 64, text="disk full"))
    assert reason == "backup orders failed: disk full"
    assert "failed after" in line
    assert "1.0 MiB of 64.0 MiB" in line


def test_an_operation_that_begins_again_gets_a_new_line() -> None:
    lines = last_lines(event("started"), event("failed", text="cut"), event("started"), event("completed", 3))
    assert ["failed" in line for line in lines[1:]] == [True, False]


def test_several_operations_have_a_line_each() -> None:
    lines = last_lines(
        event("started"),
        event("started", subject="customers"),
        event("progress", 3, 9),
        event("progress", 5, 9, subject="customers"),
    )
    assert ["3.0 MiB of 9.0 MiB" in lines[0], "5.0 MiB of 9.0 MiB" in lines[1]] == [True, True]


def test_brackets_in_a_name_or_a_reason_are_shown_as_they_are() -> None:
    reason, line = last_lines(event("started", subject="[red]"), event("failed", subject="[red]", text="[bold]"))
    assert reason == "backup [red] failed: [bold]"
    assert line.startswith("backup [red]")


def test_a_terminal_is_drawn_to_without_asking() -> None:
    terminal = Terminal()
    with ProgressBar(console=Console(file=terminal, width=120)) as bar:
        bar(event("completed", 3))
    assert "backup orders" in terminal.getvalue()


def test_a_stream_that_is_no_terminal_gets_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    stream = StringIO()
    for bar in (ProgressBar(console=Console(file=stream, force_terminal=True)), ProgressBar()):
        with bar:
            for stage in ("started", "progress", "failed"):
                bar(event(stage))
    assert stream.getvalue() == ""
    assert capfd.readouterr() == ("", "")


def test_a_notebook_shows_one_picture_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[object] = []

    class Handle:
        def update(self, value: object) -> None:
            shown.append(value)

    def display(value: object, *, display_id: bool) -> Handle:
        assert display_id
        shown.append(value)
        return Handle()

    module = ModuleType("IPython.display")
    vars(module)["display"] = display
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)

    monkeypatch.setattr(progress, "NOTEBOOK_SECONDS", float("inf"))

    console = Console(file=StringIO(), force_jupyter=True, width=120)
    with ProgressBar(console=console) as bar:
        bar(event("started"))
        for done in range(100):
            bar(event("progress", done, 100))
        bar(event("completed", 100, 100))

    at_first, at_last = shown  # between them as often as NOTEBOOK_SECONDS allows
    assert at_last is at_first
    painter = Console(file=StringIO(), width=120)
    painter.print(at_last)
    painted = painter.file
    assert isinstance(painted, StringIO)
    assert "100.0 MiB" in painted.getvalue()
    assert "done in" in painted.getvalue()
