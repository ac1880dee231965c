"""Ctrl-C, SIGTERM and SIGHUP during training: the current step is finished, then the loop saves and returns.

The handlers are set only inside the `with` block and the previous ones put back after it. A signal asks the
loop to stop and puts its own previous handler back, so that a second one of the same kind acts at once;
torchrun and cluster managers may send one of each. Before the first step there is nothing to save, and a
signal ends the process at once, as KeyboardInterrupt. A SIGHUP that is ignored (nohup) stays ignored.
"""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from signal import _HANDLER

SIGNALS: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)
if sys.platform != "win32":
    SIGNALS += (signal.SIGHUP,)


class StopRequest:
    """`with StopRequest() as stop:` ... `if stop.requested:`. Off the main thread no handler can be set.

    at_once: a signal raises KeyboardInterrupt where it arrives, as long as this is true.
    """

    def __init__(self, *, at_once: bool = False) -> None:
        self.requested = False
        self.at_once = at_once
        self._previous: dict[signal.Signals, _HANDLER] = {}

    def request(self) -> None:
        """Ask the loop to stop after the current step."""
        self.requested = True

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if (
                    number not in (signal.SIGINT, signal.SIGTERM)
                    and signal.getsignal(number) == signal.SIG_IGN
                ):
                    continue
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
        if self.at_once:
            raise KeyboardInterrupt

    def _restore(self, number: signal.Signals) -> None:
        signal.signal(number, self._previous.pop(number))
