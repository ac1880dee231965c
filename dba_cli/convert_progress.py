"""What `dba convert` says on stderr while it runs: a bar on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

from types import TracebackType

from rich.progress import TaskID

from dba_cli.rendering import progress
from dba_cli.terminal import echo
from dba_plugins.convert.request import ConvertReporter


class ConvertProgress(ConvertReporter):
    """Draws the phases of a conversion."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._bar = progress("{task.description}", "{task.percentage:>3.0f}%", hidden=quiet)
        self._task: TaskID | None = None

    def __enter__(self) -> ConvertProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def phase(self, text: str, steps: int) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(text, total=steps or None)
        if self._bar.disable:
            self.note(text)

    def step(self) -> None:
        if self._task is not None:
            self._bar.advance(self._task)

    def note(self, text: str) -> None:
        if not self._quiet:
            echo(text, err=True)
