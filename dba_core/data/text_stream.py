"""Decode tokens to text as they arrive: no character is shown before all of its tokens are there.

A token of a byte-level vocabulary may hold half a character, so `decode(a) + decode(b)` is not
`decode(a + b)`. A stream holds the unfinished part back: the pieces of all `push` calls and of `finish`,
joined, are `decode` of all tokens. One stream per sequence; `context` are the tokens before it, whose text
it omits.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class ByteTextStream:
    """For vocabularies whose tokens are byte strings: an incremental UTF-8 decoder."""

    def __init__(self, token_bytes: Callable[[int], bytes], *, context: Sequence[int] = ()) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.push(context)

    @property
    def pending(self) -> bool:
        """Whether tokens were pushed whose text is still held back."""
        return self._decoder.getstate()[0] != b""

    def push(self, ids: Iterable[int]) -> str:
        """The text that is certain now and was not before."""
        return self._decoder.decode(b"".join(map(self._token_bytes, ids)))

    def finish(self) -> str:
        """What was held back; an unfinished character becomes U+FFFD."""
        return self._decoder.decode(b"", final=True)


class WindowTextStream:
    """The same for vocabularies that only decode whole sequences: the text of a window minus the text of its
    start.

    The window begins one push back, because a tokenizer may drop the space before the first token of a
    sequence. Text that ends in U+FFFD is held back, since it may be the first part of a character.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], *, context: Sequence[int] = ()) -> None:
        self._decode = decode
        self._ids = list(context)
        self._start = 0
        self._shown = len(self._ids)

    @property
    def pending(self) -> bool:
        return self._shown < len(self._ids)

    def push(self, ids: Iterable[int]) -> str:
        self._ids.extend(ids)
        new = self._new_text()
        if not new or new.endswith(REPLACEMENT):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return new

    def finish(self) -> str:
        new = self._new_text()
        self._start = self._shown = len(self._ids)
        return new

    def _new_text(self) -> str:
        known = self._decode(self._ids[self._start : self._shown])
        return self._decode(self._ids[self._start :])[len(known) :]


TextStream = ByteTextStream | WindowTextStream
