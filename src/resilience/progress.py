"""A progress bar for terminals and notebooks (extra `progress`): an observer like any other."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol, Self

from attrs import define, field
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from .model.events import Event
from .model.show import as_bytes

NOTEBOOK_SECONDS = 0.1
"""A notebook is drawn to at most this often."""


@define
class ProgressBar:
    """Shows operations while they run: bytes done and in all, their rate, the time left, how each ended.

    Used as `with ProgressBar() as bar: await backup(target, archive, observer=bar)`. One line an operation, several at
    once; an operation with the name and subject of one that runs takes over its line. It draws on stderr unless given
    another `console`. Where that is neither a terminal nor a notebook nothing is printed, unless `force` asks for the
    last state of every line.
    """

    console: Console = field(factory=lambda: Console(stderr=True), kw_only=True)
    force: bool = field(default=False, kw_only=True)
    _progress: Progress = field(init=False, repr=False)
    _lines: dict[tuple[str, str], TaskID] = field(factory=dict, init=False, repr=False)
    _notebook: _Display | None = field(default=None, init=False, repr=False)
    _drawn: float = field(default=0.0, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        terminal = not self.console.is_jupyter and (self.force or self.console.file.isatty())
        self._progress = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=8)),
            _Amount(table_column=Column(no_wrap=True, justify="right")),
            _Rate(table_column=Column(no_wrap=True, justify="right")),
            _Ending(table_column=Column(no_wrap=True)),
            console=self.console,
            disable=not terminal,
            expand=True,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        if self.console.is_jupyter:
            self._notebook = _display(self._progress)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        self._draw()

    def __call__(self, event: Event) -> None:
        """Show one event (an `Observer`)."""
        key = event.operation, event.subject
        if key not in self._lines:
            self._lines[key] = self._progress.add_task(" ".join(key), total=None, outcome="")
        line = self._lines[key]
        # A total may be an estimate that is too low: then what has been done is the better one.
        total = None if event.total is None else max(event.total, event.done)
        self._progress.update(line, completed=event.done, total=total)
        if event.stage == "completed":
            self._end(key, total=event.done, outcome="done")
        elif event.stage == "failed":
            self._end(key, total=total, outcome="failed")
            if self._notebook is not None or not self._progress.disable:
                self.console.print(Text(f"{' '.join(key)} failed: {event.text}", style="red"))
        if time.monotonic() - self._drawn >= NOTEBOOK_SECONDS:
            self._draw()

    def _end(self, key: tuple[str, str], *, total: int | None, outcome: str) -> None:
        line = self._lines.pop(key)
        self._progress.stop_task(line)
        self._progress.update(line, total=total, outcome=outcome)

    def _draw(self) -> None:
        if self._notebook is not None:
            self._notebook.update(self._progress)
            self._drawn = time.monotonic()


class _Display(Protocol):
    """IPython's DisplayHandle: what it shows can be replaced."""

    def update(self, value: object) -> None: ...


def _display(value: object) -> _Display:
    """Show a value in the notebook we are in. Not left to rich: it shows nothing where ipywidgets is not installed."""
    from IPython.display import display  # type: ignore[import-not-found,unused-ignore]

    handle: _Display = display(value, display_id=True)
    return handle


class _Amount(ProgressColumn):
    def render(self, task: Task) -> Text:
        done = as_bytes(int(task.completed))
        return Text(done if task.total in (None, task.completed) else f"{done} of {as_bytes(int(task.total or 0))}")


class _Rate(ProgressColumn):
    """The rate now, once it has ended the mean."""

    def render(self, task: Task) -> Text:
        rate = task.completed / task.elapsed if task.fields["outcome"] and task.elapsed else task.speed
        return Text(f"{as_bytes(int(rate))}/s" if rate else "", style="cyan")


class _Ending(ProgressColumn):
    """The time left while it runs, afterwards how it ended."""

    def __init__(self, table_column: Column) -> None:
        super().__init__(table_column)
        self._remaining = TimeRemainingColumn(compact=True)

    def render(self, task: Task) -> Text:
        outcome: str = task.fields["outcome"]
        if not outcome:
            return self._remaining.render(task)
        elapsed = f"{task.elapsed or 0.0:.1f} s"
        if outcome == "done":
            return Text(f"done in {elapsed}", style="green")
        return Text(f"failed after {elapsed}", style="bold red")
