"""The layer among torch's own tools: copies after use, meta, default device and dtype, compile, DDP."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from tolerances import TOL
from torch.nn.parallel import DistributedDataParallel

from dba_core.attention.module import DecoupledAttention
from dba_core.config.attention import AttentionConfig
from dba_core.config.long_sequence import LongSequenceConfig
from dba_core.errors import CacheError

pytestmark = pytest.mark.torch

POLICY = "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=3"
SIZES = {"d_model": 24, "n_heads": 4, "sem_head_dim": 2, "geo_head_dim": 4, "v_head_dim": 5}
LONG = LongSequenceConfig(threshold=16, mem_block=4, local_window=4, q_chunk=4)
FULL = AttentionConfig(rope_table=True, sem_offset=True, learned_temperature=True, **SIZES)


def cached(layer: DecoupledAttention, x: torch.Tensor) -> torch.Tensor:
    cache = layer.new_cache(batch=len(x), capacity=x.shape[1], policy=POLICY)
    return torch.cat([layer(part, cache=cache) for part in x.split([4, 1, 1, 2], dim=1)], dim=1)


@pytest.mark.parametrize("backend", ["cpu", "streaming"])
def test_copies_and_pickles_of_a_layer_that_has_decoded(backend: str) -> None:
    if backend == "cpu":
        pytest.importorskip("llvmlite")
    layer = DecoupledAttention(FULL, null_token="learned", decode_backend=backend).eval()
    x = torch.randn(2, 8, 24)
    expected = cached(layer, x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert len(other._backends._served) == 0
        assert torch.equal(cached(other, x), expected)
        assert other.selections["decode_backend"].name == backend


def test_copies_of_a_layer_with_a_backend_given_as_an_instance_run_the_same_code() -> None:
    pytest.importorskip("llvmlite")
    layer = DecoupledAttention(FULL, decode_backend="cpu").eval()
    made = layer.decode_backend(layer.new_cache(batch=1, capacity=1, policy=POLICY))
    given = DecoupledAttention(FULL, decode_backend=made).eval()
    x = torch.randn(2, 8, 24)
    for other in (copy.deepcopy(given), pickle.loads(pickle.dumps(given))):
        assert torch.equal(cached(other, x), cached(given, x))
        assert other._backends._given._code is made._code


def test_meta_weights_give_shapes_and_no_cache() -> None:
    x = torch.randn(2, 20, 24)
    moved = DecoupledAttention(FULL, summarizer="conv", train_long_seq=LONG, null_token="learned").to("meta")
    with torch.device("meta"):
        built = DecoupledAttention(FULL, summarizer="conv", train_long_seq=LONG, null_token="learned")
    for layer in (moved, built):
        assert {name: p.shape for name, p in layer.named_parameters()} == {
            name: p.shape for name, p in moved.named_parameters()
        }
        assert all(p.is_meta for p in layer.parameters())
        assert layer(x.to("meta")).shape == (2, 20, 24)
        assert layer.eval()(x.to("meta")).shape == (2, 20, 24)
        with pytest.raises(CacheError, match="device of the cache is 'meta'"):
            layer.new_cache(batch=1, capacity=4, policy=POLICY)


def test_a_layer_built_on_meta_computes_once_it_has_numbers() -> None:
    real = DecoupledAttention(FULL, null_token="learned")
    with torch.device("meta"):
        layer = DecoupledAttention(FULL, null_token="learned")
    layer.to_empty(device="cpu").load_state_dict(real.state_dict())
    x = torch.randn(2, 8, 24)
    assert torch.equal(layer(x), real(x))
    assert torch.equal(cached(layer.eval(), x), cached(real.eval(), x))


def test_defaults_of_torch_change_no_number() -> None:
    """The compiled kernels write float32 on the CPU, whatever a new tensor would be."""
    pytest.importorskip("llvmlite")
    layer = DecoupledAttention(FULL, decode_backend="cpu").eval()
    x = torch.randn(2, 8, 24)
    expected = cached(layer, x)
    with torch.device("meta"):
        on_meta = cached(layer, x)
    assert torch.equal(on_meta, expected)
    torch.set_default_dtype(torch.float64)
    try:
        in_double = cached(layer, x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(in_double, expected)


def test_compiled_with_a_cache_gives_the_same_or_says_why_not() -> None:
    layer = DecoupledAttention(AttentionConfig(**SIZES)).eval()
    x = torch.randn(2, 8, 24)
    compiled = torch.compile(layer, backend="eager")
    caches = [layer.new_cache(batch=2, capacity=8, policy=POLICY) for _ in range(2)]
    for part in x.split([4, 1, 1, 2], dim=1):
        assert torch.equal(compiled(part, cache=caches[0]), layer(part, cache=caches[1]))
    assert caches[0].lengths == (8, 8)
    torch._dynamo.reset()  # or what was compiled without fullgraph serves
    whole = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(whole(x), layer(x), **TOL["float32"])
    with pytest.raises(torch._dynamo.exc.Unsupported, match="a pass with a KV cache is not compiled"):
        whole(x, cache=layer.new_cache(batch=2, capacity=8, policy=POLICY))
    torch._dynamo.reset()


@pytest.fixture
def process_group(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_ddp_of_a_layer_whose_summarizer_a_short_sequence_does_not_read(process_group) -> None:
    layer = DecoupledAttention(AttentionConfig(**SIZES), summarizer="conv", train_long_seq=LONG)
    plain = copy.deepcopy(layer)
    parallel = DistributedDataParallel(layer)
    for tokens in (8, 8, 24, 8):
        x = torch.randn(2, tokens, 24)
        for each in (parallel, plain):
            each.zero_grad()
            each(x).square().sum().backward()
        for (name, p), q in zip(layer.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, **TOL["float32"], msg=name)
        read = max(float(p.grad.abs().max()) for p in layer.summarizer.parameters())
        assert (read > 0) == (tokens == 24)


def test_a_summarizer_takes_part_in_training_alone_and_changes_no_output() -> None:
    layer = DecoupledAttention(AttentionConfig(**SIZES), summarizer="conv", train_long_seq=LONG)
    without = DecoupledAttention(AttentionConfig(**SIZES))
    without.load_state_dict(layer.state_dict(), strict=False)
    x = torch.randn(2, 8, 24)
    with torch.no_grad():
        next(layer.summarizer.parameters()).fill_(torch.nan)
    assert torch.equal(layer(x), without(x)), "not read, so a NaN there does not matter"
    for mode, exact in ((False, False), (True, True)):
        layer.train(mode)
        with layer.exact_in_training() if exact else torch.enable_grad():
            layer(x).sum().backward()
        assert all(p.grad is None for p in layer.summarizer.parameters())
