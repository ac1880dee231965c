"""End a sequence before the first of its stop texts, wherever token borders fall. Called by generation.loop.

Tokens that may turn out to be the start of a stop text are held back until that is settled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from dba_core.data.text_stream import TextStream


class StopWatch:
    """Watches the text of one sequence. `stopped` is set once a stop text is there.

    Of several stop texts the one that is complete first counts. Every token whose text lies before it is
    kept; a token that reaches into it is dropped with it.
    """

    def __init__(self, stops: Sequence[str], stream: TextStream) -> None:
        """stream: goes on after the prompt, whose text does not count."""
        self.stopped = False
        self._stops = tuple(stops)
        self._longest = max(len(stop) for stop in stops)
        self._stream = stream
        self._text = ""
        self._waiting: deque[tuple[int, int]] = deque()  # token, characters that its text reaches to

    def push(self, token: int) -> list[int]:
        """Take the next token; give the tokens that are certain now and were not before."""
        before = len(self._text)
        self._text += self._stream.push([token])
        self._waiting.append((token, len(self._text) + int(self._stream.pending)))
        return self._release(before)

    def finish(self) -> list[int]:
        """No more tokens come: give the rest."""
        if self.stopped:
            return []
        before = len(self._text)
        self._text += self._stream.finish()
        return self._release(before, last=True)

    def _release(self, before: int, *, last: bool = False) -> list[int]:
        start = self._stop_start(before)
        if start is not None:
            self.stopped = True
        elif last:
            start = len(self._text) + 1
        else:
            start = len(self._text) - self._partial_length()
        certain = []
        while self._waiting and self._waiting[0][1] <= start:
            certain.append(self._waiting.popleft()[0])
        return certain

    def _stop_start(self, before: int) -> int | None:
        """Where the stop text begins that is complete first, when one ends after character `before`."""
        search_from = max(0, before - self._longest + 1)
        found = []
        for stop in self._stops:
            start = self._text.find(stop, search_from)
            if start >= 0:
                found.append((start + len(stop), start))
        return min(found)[1] if found else None

    def _partial_length(self) -> int:
        """Length of the longest end of the text that a stop text starts with."""
        for length in range(min(self._longest - 1, len(self._text)), 0, -1):
            if any(stop.startswith(self._text[-length:]) for stop in self._stops):
                return length
        return 0
