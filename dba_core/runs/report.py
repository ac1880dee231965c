"""What a job tells while it runs. The command line draws it; a library user may ignore it.

Only the main process reports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from dba_core.runs.summary import Summary
    from dba_core.training.loop import TrainEvent


class Reporter(Protocol):
    """The listener of a job."""

    def phase(self, text: str) -> None:
        """A phase of the job begins."""

    def note(self, text: str) -> None:
        """Something the user wants to know."""

    def warning(self, text: str) -> None:
        """Something that is not as asked for, yet goes on."""

    def training(self, event: TrainEvent) -> None:
        """The training loop's own events."""

    def finished(self, summary: Summary) -> None:
        """The run is complete."""


class SilentReporter:
    """Says nothing."""

    def phase(self, text: str) -> None: ...

    def note(self, text: str) -> None: ...

    def warning(self, text: str) -> None: ...

    def training(self, event: TrainEvent) -> None: ...

    def finished(self, summary: Summary) -> None: ...
