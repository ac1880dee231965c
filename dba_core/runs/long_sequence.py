"""The long-sequence path in words and as data, wherever it is used at evaluation. No torch."""

from __future__ import annotations

import attrs

from dba_core.config.long_sequence import LongSequenceConfig


@attrs.frozen(kw_only=True)
class LongSequenceNumbers:
    """The numbers that a forward pass used."""

    summarizer: str
    mem_block: int
    local_window: int
    q_chunk: int
    mass_correction: bool

    @property
    def text(self) -> str:
        return (
            f"summarizer {self.summarizer}, mem_block {self.mem_block}, local_window {self.local_window}, "
            f"q_chunk {self.q_chunk}, mass correction {'on' if self.mass_correction else 'off'}"
        )


@attrs.frozen(kw_only=True)
class LongSequenceUse:
    """The path at evaluation. exact: no query of a window reads a memory token: it is exact attention."""

    text: str
    exact: bool
    numbers: LongSequenceNumbers


def numbers_of(config: LongSequenceConfig, *, own: str) -> LongSequenceNumbers:
    """Of a configuration as `LanguageModel.long_sequence` gives it. own: the model's own `summarizers`."""
    assert config.mem_block is not None
    assert config.local_window is not None
    assert config.q_chunk is not None
    return LongSequenceNumbers(
        summarizer=config.mem_summarizer or own,
        mem_block=config.mem_block,
        local_window=config.local_window,
        q_chunk=config.q_chunk,
        mass_correction=config.mass_correction,
    )
