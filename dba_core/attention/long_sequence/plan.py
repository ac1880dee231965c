"""Which keys each chunk of queries reads on the long-sequence path, and which summarizer goes with that.

For the query chunk [t0, t1), block length L and window W:

    local_start = floor(max(0, t0 - W) / L) * L,    n_mem = local_start / L

and the chunk reads n_mem memory tokens (one per block before local_start) and the tokens local_start .. t,
every earlier token exactly once. Chunks with n_mem = 0 are plain causal attention and are joined into one.
"""

from __future__ import annotations

import dataclasses

import attrs
from torch import nn

from dba_core.config.long_sequence import ResolvedLongSequence
from dba_core.errors import ConfigError
from dba_core.registry import Selection


@attrs.frozen(kw_only=True)
class Chunk:
    """Queries start .. stop-1 read the first n_mem memory tokens and tokens local_start .. themselves."""

    start: int
    stop: int
    local_start: int
    n_mem: int

    @property
    def exact(self) -> bool:
        """True for the chunk that reads no memory token."""
        return self.n_mem == 0

    @property
    def rows(self) -> int:
        return self.stop - self.start

    @property
    def older(self) -> int:
        """Full-resolution tokens before the chunk's own."""
        return self.start - self.local_start


@attrs.frozen(kw_only=True)
class LongSequencePlan:
    """The chunks of one sequence. Queries before `exact_stop` read every earlier token at full resolution.

    length: tokens. mass_correction: whether a memory token's logit gains log(mem_block).
    """

    length: int
    mem_block: int
    local_window: int
    q_chunk: int
    mass_correction: bool = False

    def __attrs_post_init__(self) -> None:
        least = {"length": 0, "mem_block": 1, "local_window": 0, "q_chunk": 1}
        sizes = (self.length, self.mem_block, self.local_window, self.q_chunk)
        for (name, lowest), size in zip(least.items(), sizes, strict=True):
            if size < lowest:
                raise ConfigError(f"{size} is too small; allowed: at least {lowest}", path=name)

    @property
    def exact_stop(self) -> int:
        """The first query that reads a memory token; `length` when none does."""
        whole_chunks = -(-(self.local_window + self.mem_block) // self.q_chunk)  # chunks with t0 - W < L
        return min(self.length, whole_chunks * self.q_chunk)

    @property
    def exact(self) -> bool:
        """True when no query reads a memory token, so that the path is exact attention."""
        return self.exact_stop == self.length

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        """The exact chunk, then those that read memory tokens, in order."""
        exact = Chunk(start=0, stop=self.exact_stop, local_start=0, n_mem=0)
        return exact, *(self._chunk(start) for start in range(self.exact_stop, self.length, self.q_chunk))

    @property
    def n_blocks(self) -> int:
        """Memory blocks that some query reads: the ones that must be summarized."""
        return self.chunks[-1].n_mem

    def _chunk(self, start: int) -> Chunk:
        n_mem = max(0, start - self.local_window) // self.mem_block
        stop = min(start + self.q_chunk, self.length)
        return Chunk(start=start, stop=stop, local_start=n_mem * self.mem_block, n_mem=n_mem)


@dataclasses.dataclass(frozen=True, eq=False)
class LongSequencePath:
    """config: its `enabled` plays no part. selection: how the summarizer was chosen; None: it is the
    layer's own. name: under which it was asked for at evaluation. A dataclass for torch.compile's sake, as
    `NullKV` is.
    """

    config: ResolvedLongSequence
    summarizer: nn.Module
    selection: Selection | None = None
    name: str = ""

    def applies(self, length: int) -> bool:
        """Whether a sequence of `length` tokens takes the path: from the threshold on, and where some query
        reads a memory token. Where none does the path is exact attention, and exact attention serves.
        """
        return length >= self.config.threshold and not self.plan(length).exact

    def plan(self, length: int) -> LongSequencePlan:
        """Which keys each query of a sequence of `length` tokens reads."""
        return plan_of(self.config, length)


def plan_of(config: ResolvedLongSequence, length: int) -> LongSequencePlan:
    """The plan of a configuration for a sequence of `length` tokens."""
    return LongSequencePlan(
        length=length,
        mem_block=config.mem_block,
        local_window=config.local_window,
        q_chunk=config.q_chunk,
        mass_correction=config.mass_correction,
    )
