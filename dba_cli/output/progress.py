"""What a job says while it runs, on stderr: a progress bar on a terminal, plain lines elsewhere, or nothing.

Implements `dba_core.report.Reporter`; the report itself goes to stdout at the end.
"""

from __future__ import annotations

from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING

import click
from rich.progress import Progress, TaskID

from dba_cli.failure import in_flags
from dba_cli.output.rendering import progress
from dba_cli.output.terminal import echo, warn

if TYPE_CHECKING:
    from dba_core.registry import Trace
    from dba_core.runs.summary import Summary
    from dba_core.training.loop import Evaluated, StepFinished


class TerminalReporter:
    """Reports to stderr. quiet: warnings only. `summary` is there once the run is complete."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.summary: Summary | None = None
        self._quiet = quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._held_out = ""

    def __enter__(self) -> TerminalReporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def phase(self, text: str, steps: int | None = None) -> None:
        """A bar where the steps are counted, a line where nothing can be drawn."""
        self.close()
        if self._quiet:
            return
        bar = progress("{task.description}", "{task.percentage:>3.0f}%")
        if steps is None or bar.disable:
            echo(text, err=True)
            return
        self._task, self._bar = bar.add_task(text, total=steps or None), bar
        bar.start()

    def step(self, done: int | None = None, steps: int | None = None) -> None:
        if self._bar is None or self._task is None:
            return
        if done is None:
            self._bar.advance(self._task)
        else:
            self._bar.update(self._task, completed=done, total=steps)

    def note(self, text: str) -> None:
        if not self._quiet:
            echo(text, err=True)

    def warning(self, text: str) -> None:
        warn(in_flags(text))

    def event(self, event: object) -> None:
        """Those of training; what is done with plugins was asked for, and is told even if quiet."""
        from dba_core.registry import Trace, TraceEvent

        if isinstance(event, TraceEvent):
            echo(f"trace: {event}", err=True)
        elif isinstance(event, Trace):
            click.get_current_context().call_on_close(lambda: _print_totals(event))
        else:
            self._of_a_run(event)

    def _of_a_run(self, event: object) -> None:
        from dba_core.runs.summary import Summary
        from dba_core.training.loop import Evaluated, Interrupted, StepFinished, TrainingStarted

        if isinstance(event, Summary):
            self.close()
            self.summary = event
        elif self._quiet:
            return
        elif isinstance(event, TrainingStarted):
            self._start(event.first_step, event.steps)
        elif isinstance(event, StepFinished):
            self._step(event)
        elif isinstance(event, Evaluated):
            self._evaluated(event)
        elif isinstance(event, Interrupted):
            self.note(f"Interrupted after step {event.step}; saving.")

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._task = None, None

    def _start(self, first_step: int, steps: int) -> None:
        bar = progress("step {task.completed}/{task.total}", "{task.fields[state]}")
        if bar.disable:
            return
        self._task = bar.add_task("training", total=steps, completed=first_step, state="")
        self._bar = bar
        bar.start()

    def _step(self, event: StepFinished) -> None:
        if self._bar is not None and self._task is not None:
            left = timedelta(seconds=round(event.remaining_seconds))
            speed = f"{event.tokens_per_second:,.0f} tokens/s"
            state = f"loss {event.loss:.3f}{self._held_out}  {speed}  {left} left"
            self._bar.update(self._task, completed=event.step, state=state)

    def _evaluated(self, event: Evaluated) -> None:
        """Training looks at the first tokens of the held-out text, the summary at all of them."""
        self._held_out = f"  first {event.tokens:,} held-out {event.loss:.3f}"
        if self._bar is None:
            best = " (lowest so far)" if event.is_best else ""
            where = f"over the first {event.tokens:,} held-out tokens"
            self.note(f"step {event.step}: loss {event.loss:.4f} {where}{best}")


def _print_totals(trace: Trace) -> None:
    for plugin, actions in trace.totals().items():
        sums = ", ".join(f"{action} {n}x {s * 1000:.1f} ms" for action, (n, s) in actions.items())
        echo(f"trace: total of {plugin}: {sums}", err=True)
    if not trace.events:
        echo("trace: no plugin was imported or called", err=True)
