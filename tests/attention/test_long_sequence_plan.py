"""The plan of the long-sequence path: every query reads every earlier token exactly once. Needs no torch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dba_core.attention.long_sequence.plan import LongSequencePlan
from dba_core.errors import ConfigError

pytestmark = pytest.mark.torch


def plan(length: int, block: int, window: int, chunk: int) -> LongSequencePlan:
    return LongSequencePlan(length=length, mem_block=block, local_window=window, q_chunk=chunk)


@given(st.integers(0, 400), st.integers(1, 70), st.integers(0, 450), st.integers(1, 130))
def test_chunks_tile_the_queries_and_read_each_earlier_token_once(
    length: int, block: int, window: int, chunk: int
) -> None:
    made = plan(length, block, window, chunk)
    starts = [0]
    for part in made.chunks:
        assert part.start == starts[-1]
        assert part.n_mem * block == part.local_start <= part.start  # blocks end where the local part starts
        starts.append(part.stop)
        if not part.exact:
            # the definition, for this chunk
            assert part.local_start == max(0, part.start - window) // block * block
            assert part.start % chunk == 0
            assert 0 < part.rows <= chunk
            assert window <= part.older < window + block
    assert starts[-1] == length
    assert made.n_blocks * block <= length


@given(st.integers(1, 400), st.integers(1, 70), st.integers(0, 450), st.integers(1, 130))
def test_exact_chunk_holds_exactly_the_queries_without_memory(
    length: int, block: int, window: int, chunk: int
) -> None:
    made = plan(length, block, window, chunk)
    without = [t for t in range(length) if (t // chunk * chunk - window) < block]
    assert list(range(made.exact_stop)) == without
    assert made.exact == (len(without) == length)
    assert [part.exact for part in made.chunks] == [True] + [False] * (len(made.chunks) - 1)


def test_the_default_geometry_at_2048_tokens() -> None:
    made = plan(2048, 64, 512, 128)
    assert made.exact_stop == 640
    assert [(c.start, c.stop, c.local_start, c.n_mem) for c in made.chunks[1:3]] == [
        (640, 768, 128, 2),
        (768, 896, 256, 4),
    ]
    assert made.n_blocks == 22


@pytest.mark.parametrize(
    ("field", "sizes"),
    [("mem_block", (8, 0, 4, 4)), ("local_window", (8, 4, -1, 4)), ("q_chunk", (8, 4, 4, 0))],
)
def test_sizes_out_of_range_are_refused_by_name(field: str, sizes: tuple[int, int, int, int]) -> None:
    with pytest.raises(ConfigError, match=f"{field}: .* is too small; allowed: at least"):
        plan(*sizes)
