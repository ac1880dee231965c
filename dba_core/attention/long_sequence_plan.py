"""Which keys each chunk of queries reads on the long-sequence path. Numbers only, no tensor.

For the query chunk [t0, t1), block length L and window W:

    local_start = floor(max(0, t0 - W) / L) * L,    n_mem = local_start / L

and the chunk reads n_mem memory tokens (one per block before local_start) and the tokens local_start .. t,
every earlier token exactly once. Chunks with n_mem = 0 are plain causal attention and are joined into one.
Called by attention.long_sequence.
"""

from __future__ import annotations

import attrs

from dba_core.serialization.validators import at_least


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
    """The chunks of one sequence. Queries before `exact_stop` read every earlier token at full resolution."""

    length: int = attrs.field(validator=at_least(0))
    mem_block: int = attrs.field(validator=at_least(1))
    local_window: int = attrs.field(validator=at_least(0))
    q_chunk: int = attrs.field(validator=at_least(1))

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
