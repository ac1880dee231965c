"""Ctrl-C and SIGTERM during training: the current step is finished, then the loop saves and returns.

The handlers are set only inside the `with` block and the previous ones put back after it. A signal asks the
loop to stop and puts its own previous handler back, so that a second one of the same kind acts at once;
torchrun and cluster managers may send one of each. Called by training.loop.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from signal import _HANDLER

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """`with StopRequest() as stop:` ... `if stop.requested:`. Off the main thread no handler can be set."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, _HANDLER] = {}

    def request(self) -> None:
        """Ask the loop to stop after the current step."""
        self.requested = True

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in list(self._previous):
            self._restore(number)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore(signal.Signals(number))

    def _restore(self, number: signal.Signals) -> None:
        signal.signal(number, self._previous.pop(number))
