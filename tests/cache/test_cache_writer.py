"""LayerCache with a writer: the same cache as without one, whatever the writer does in between."""

from __future__ import annotations

import pytest
import torch
from test_cache_layer import MIXED, POLICIES, make, part, same, stores, tokens

from dba_core.attention.module import DecoupledAttention
from dba_core.config.attention import AttentionConfig
from dba_core.errors import CacheError
from dba_plugins.decode.streaming import StreamingDecode, StreamingOptions

pytestmark = pytest.mark.torch


class IndexWriter:
    """Writes by index at the device's lengths, the way a kernel would; refuses what is not finite."""

    def __init__(self, *, interrupt: bool = False, blind: bool = False) -> None:
        self.calls = 0
        self._interrupt, self._blind = interrupt, blind

    def write(self, cache, k_sem, k_geo, v) -> bool:
        self.calls += 1
        inputs = (k_sem, k_geo, v)
        if not all(bool(x.isfinite().all()) for x in inputs):
            if not self._blind:
                return False
            cache.bad_values = torch.ones(1, dtype=torch.int32)
        for store, x in zip(stores(cache), inputs, strict=True):
            encoded = store.encode(x)
            for row, length in enumerate(cache.lengths_device.tolist()):
                for t in range(x.shape[2]):
                    store.codes[row, :, length + t] = encoded.codes[row, :, t].to(store.codes.dtype)
                    if store.scales is not None:
                        store.scales[row, :, length + t] = encoded.scales[row, :, t]
                    if store.recent_ring is not None:
                        ring = store.recent_ring
                        ring[row, :, (length + t) % ring.shape[2]] = x[row, :, t].half()
        if self._interrupt:
            raise KeyboardInterrupt
        return True


@pytest.mark.parametrize("policy", POLICIES)
def test_a_writer_gives_the_same_cache(policy: str) -> None:
    x, writer = tokens(20), IndexWriter()
    plain, written = make(policy), make(policy)
    for start, stop in ((0, 7), (7, 8), (8, 9), (9, 20)):
        plain.append(*part(x, start, stop))
        written.append(*part(x, start, stop), writer=writer)
    assert writer.calls == 4
    same(plain, written)
    for cache in (plain, written):
        cache.truncate(15)
        cache.append(*part(x, 3, 6))
    same(plain, written)


def test_ragged_rows_take_the_writer_only_when_all_take_all() -> None:
    x, writer = tokens(6), IndexWriter()
    plain, written = make(), make()
    for cache, more in ((plain, {}), (written, {"writer": writer})):
        cache.append(*part(x, 0, 4), counts=(4, 1), **more)
        assert writer.calls == 0
        cache.append(*part(x, 4, 6), counts=(2, 2), **more)
    assert writer.calls == 1
    same(plain, written)


def test_a_refused_value_is_named_and_nothing_is_written() -> None:
    x = tokens(6)
    cache, untouched = make(), make()
    for each in (cache, untouched):
        each.append(*part(x, 0, 4))
    x[1][1, 2, 5, 3] = torch.nan
    with pytest.raises(CacheError, match=r"k_geo, batch row 1, position 5 .* head 2, channel 3\): value nan"):
        cache.append(*part(x, 4, 6), writer=IndexWriter())
    same(cache, untouched)


def test_a_blind_writer_is_found_out_later() -> None:
    cache, x = make(), tokens(2)
    cache.check_values()
    x[0][0, 0, 1, 0] = torch.inf
    cache.append(*x, writer=IndexWriter(blind=True))
    assert cache.lengths == (2, 2)
    with pytest.raises(CacheError, match="not finite, or exceeds"):
        cache.check_values()
    cache.reset()
    cache.check_values()


def test_an_interrupted_writer_leaves_the_lengths_and_a_ring_that_is_still_right() -> None:
    x = tokens(12)
    cache = make(rollback=4)
    cache.append(*part(x, 0, 10))
    with pytest.raises(KeyboardInterrupt):
        cache.append(*part(x, 8, 10), writer=IndexWriter(interrupt=True))
    assert cache.lengths == (10, 10)
    assert cache.lengths_device.tolist() == [10, 10]
    cache.append(*part(x, 10, 12))
    plain = make(rollback=4)
    plain.append(*x)
    same(plain, cache)


def test_a_window_that_an_interrupted_writer_has_overwritten_is_refused() -> None:
    x = tokens(12)
    cache = make(rollback=1)
    cache.append(*part(x, 0, 10))
    with pytest.raises(KeyboardInterrupt):
        cache.append(*part(x, 10, 12), writer=IndexWriter(interrupt=True))
    for writer in (None, IndexWriter()):
        with pytest.raises(CacheError, match=r"interrupted.* \[5, 5\].* \[6, 6\] on; reset\(\)"):
            cache.append(*part(x, 10, 11), writer=writer)
    cache.reset()
    cache.append(*x)
    plain = make(rollback=1)
    plain.append(*x)
    same(plain, cache)


def test_sync_takes_the_lengths_from_the_device() -> None:
    """As after replays of a CUDA graph: planes and device lengths have grown, the host does not know."""
    x = tokens(40)
    cache, plain = make(rollback=4), make(rollback=4)
    for each in (cache, plain):
        each.append(*part(x, 0, 10))
    for t in range(10, 25):
        IndexWriter().write(cache, *part(x, t, t + 1))
        cache.lengths_device.add_(1)
    cache.sync()
    plain.append(*part(x, 10, 25))
    same(plain, cache)
    cache.lengths_device.add_(16)
    with pytest.raises(CacheError, match=r"grew the rows to \[41, 41\] tokens, more than the capacity of 40"):
        cache.sync()
    same(plain, cache)
    assert cache.lengths_device.tolist() == [25, 25]


def test_prefill_and_decode_hand_the_backend_s_writer_to_the_cache() -> None:
    config = AttentionConfig(
        d_model=24, n_heads=4, n_kv_heads=2, sem_head_dim=4, geo_head_dim=6, v_head_dim=5
    )
    x = torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(0))
    writer = IndexWriter()
    outputs = []
    for each in (None, writer):
        backend = StreamingDecode(StreamingOptions())
        backend.writer = each
        torch.manual_seed(0)
        layer = DecoupledAttention(config, decode_backend=backend).eval()
        cache = layer.new_cache(batch=2, capacity=9, policy=MIXED)
        outputs.append(torch.cat([layer(chunk, cache=cache) for chunk in x.split((6, 1, 2), dim=1)], dim=1))
    assert writer.calls == 3
    assert torch.equal(*outputs)
