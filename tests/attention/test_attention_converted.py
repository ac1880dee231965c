"""What a converted model needs of a layer: fewer semantic and value heads, an offset, frequencies of its own.

Each is compared with a plain layer that has the shared weights written out, or with the dense oracle.
"""

from __future__ import annotations

import pytest
import torch
from attention_oracle import make_layer
from tolerances import TOL

from dba_core.attention.reference import reference_attention
from dba_core.attention.rope import rope_frequencies
from dba_core.cache.bytes import bytes_per_token, residual_bytes
from dba_core.config.attention import AttentionConfig
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.config.long_sequence import LongSequenceConfig
from dba_core.errors import ConfigError

pytestmark = pytest.mark.torch

SIZES = {"n_heads": 8, "n_kv_heads": 4, "sem_head_dim": 3, "geo_head_dim": 4, "v_head_dim": 5}
POLICIES = (
    "ksem=fp32,kgeo=fp32,v=fp32",
    "ksem=q4_0@8,kgeo=q8_0@8,v=q4_0@8",
    "ksem=q8_0@8,kgeo=nf4@16,v=q8_0@8,resid=6",
)


def shared_and_written_out(sem_heads: int, v_heads: int, **more: object):
    """A layer with shared heads, and a plain one whose weights repeat them."""
    shared = make_layer(**SIZES, sem_kv_heads=sem_heads, v_kv_heads=v_heads, **more)
    plain = make_layer(**SIZES, **more)
    state = shared.state_dict()
    for name, heads, width in (("k_sem", sem_heads, 3), ("v_proj", v_heads, 5)):
        rows = state[f"{name}.weight"].view(heads, width, -1).repeat_interleave(4 // heads, dim=0)
        state[f"{name}.weight"] = rows.flatten(0, 1)
    plain.load_state_dict(state)
    return shared, plain


@pytest.mark.parametrize("null_token", ["none", "learned"])
@pytest.mark.parametrize(("sem_heads", "v_heads"), [(1, 4), (2, 2), (4, 1), (1, 1)])
def test_shared_heads_equal_heads_written_out(sem_heads: int, v_heads: int, null_token: str) -> None:
    shared, plain = shared_and_written_out(sem_heads, v_heads, null_token=null_token)
    x = torch.randn(2, 11, 24, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(shared(x), plain(x), **TOL["float32"])

    mask = torch.rand(11, 11, generator=torch.Generator().manual_seed(2)) > 0.4
    torch.testing.assert_close(shared(x, mask=mask), plain(x, mask=mask), **TOL["float32"])

    long = LongSequenceConfig(mem_block=2, local_window=4, q_chunk=2)
    with (
        shared.eval().long_sequence_at_evaluation(long, summarizer="mean"),
        plain.eval().long_sequence_at_evaluation(long, summarizer="mean"),
    ):
        torch.testing.assert_close(shared(x), plain(x), **TOL["float32"])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("split", [(11,), (4, 1, 6), (1,) * 11])
def test_a_cache_of_shared_heads_decodes_as_one_of_all(policy: str, split: tuple[int, ...]) -> None:
    """Blocks of one head each, so that sharing changes no block."""
    sizes = {**SIZES, "sem_head_dim": 8, "geo_head_dim": 8, "v_head_dim": 8}
    shared = make_layer(**sizes, sem_kv_heads=2, v_kv_heads=1, null_token="learned").double()
    plain = make_layer(**sizes, null_token="learned").double()
    state = shared.state_dict()
    for name, heads in (("k_sem", 2), ("v_proj", 1)):
        rows = state[f"{name}.weight"].view(heads, 8, -1).repeat_interleave(4 // heads, dim=0)
        state[f"{name}.weight"] = rows.flatten(0, 1)
    plain.load_state_dict(state)
    x = torch.randn(2, 11, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    outs = []
    for layer in (shared, plain):
        cache = layer.new_cache(batch=2, capacity=11, policy=policy.replace("@16", "@8"))
        outs.append(torch.cat([layer(chunk, cache=cache) for chunk in x.split(split, dim=1)], dim=1))
    torch.testing.assert_close(*outs, rtol=1e-5, atol=1e-6)


def test_the_cache_holds_the_shared_heads_once() -> None:
    layer = make_layer(**SIZES, sem_kv_heads=1, v_kv_heads=2)
    for text in POLICIES:
        policy = KVCachePolicy.parse(text)
        cache = layer.new_cache(batch=3, capacity=50, policy=policy)
        assert [spec.n_heads for spec in cache.specs] == [1, 4, 2]
        token, window = bytes_per_token(layer.shape, policy), residual_bytes(layer.shape, policy)
        assert cache.nbytes == 3 * (50 * token + window)
    fp32 = bytes_per_token(layer.shape, KVCachePolicy.parse(POLICIES[0]))
    assert fp32 == 4 * (1 * 3 + 4 * 4 + 2 * 5)


@pytest.mark.parametrize("null_token", ["none", "learned"])
def test_the_offset_is_subtracted_from_semantic_keys(null_token: str) -> None:
    layer = make_layer(**SIZES, sem_kv_heads=2, sem_offset=True, null_token=null_token)
    plain = make_layer(**SIZES, sem_kv_heads=2, null_token=null_token)
    offset = torch.randn(2, 3, generator=torch.Generator().manual_seed(3))
    layer.sem_offset.copy_(offset)
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if k != "sem_offset"})
    x = torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(1))
    heads = layer._heads(x, *layer.rope.span(0, 9, x)).shared()
    expected = plain._heads(x, *plain.rope.span(0, 9, x)).shared()
    moved = expected.k_sem - offset.repeat_interleave(2, dim=0)[:, None]
    torch.testing.assert_close(heads.k_sem, moved, **TOL["float32"])

    oracle = reference_attention(heads.q_sem, heads.q_geo, moved, heads.k_geo, heads.v, null=layer._null())
    y = oracle.transpose(1, 2).flatten(2).float() @ layer.out_proj.weight.T
    torch.testing.assert_close(layer(x), y, **TOL["float32"])
    if null_token == "none":  # one constant in every score of a query cancels in its softmax
        torch.testing.assert_close(layer(x), plain(x), rtol=1e-4, atol=1e-4)
    for split in ((9,), (1,) * 9):
        cache = layer.new_cache(batch=2, capacity=9, policy="ksem=fp32,kgeo=fp32,v=fp32")
        cached = torch.cat([layer(chunk, cache=cache) for chunk in x.split(split, dim=1)], dim=1)
        torch.testing.assert_close(cached, layer(x).detach(), **TOL["float32"])


def test_gradients_through_shared_heads_and_offset() -> None:
    shared, plain = shared_and_written_out(2, 1)
    x = torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(1))
    for layer in (shared, plain):
        layer(x).square().sum().backward()
    summed = plain.k_sem.weight.grad.view(2, 2, 3, -1).sum(dim=1).flatten(0, 1)
    torch.testing.assert_close(shared.k_sem.weight.grad, summed, rtol=1e-4, atol=1e-4)
    summed = plain.v_proj.weight.grad.view(1, 4, 5, -1).sum(dim=1).flatten(0, 1)
    torch.testing.assert_close(shared.v_proj.weight.grad, summed, rtol=1e-4, atol=1e-4)


def test_a_table_of_frequencies_is_saved_and_stays_exact() -> None:
    layer = make_layer(**SIZES, rope_table=True)
    usual = make_layer(**SIZES)
    x = torch.randn(1, 9, 24)
    assert torch.equal(layer(x), usual(x)), "the series of rope_theta to begin with"
    table = rope_frequencies(4, 500.0).repeat(4, 1) * torch.tensor([[1.0], [0.5], [0.1], [0.0]])
    layer.rope_frequencies.frequencies.copy_(table)
    y = layer(x)
    assert (y - usual(x)).abs().max() > 1e-3
    again = make_layer(**SIZES, rope_table=True, seed=1)
    again(x)  # angles made before the weights are loaded
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x), y)
    again.bfloat16().float()
    assert torch.equal(again.rope.frequencies, table.double())
    assert "rope_frequencies.frequencies" in layer.state_dict()


@pytest.mark.parametrize(
    ("sizes", "path"),
    [
        ({"sem_kv_heads": 3}, "sem_kv_heads"),
        ({"v_kv_heads": 8}, "v_kv_heads"),
        ({"sem_kv_heads": 0}, "sem_kv_heads"),
        ({"mode": "gqa", "sem_head_dim": None, "sem_kv_heads": 1}, "sem_kv_heads"),
        ({"mode": "gqa", "sem_head_dim": None, "sem_offset": True}, "sem_offset"),
        ({"n_kv_heads": 8, "tie_qk": True, "sem_kv_heads": 1}, "tie_qk"),
    ],
)
def test_head_counts_that_do_not_fit_are_refused(sizes: dict[str, object], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AttentionConfig(**{"d_model": 24, **SIZES, **sizes}).resolved()
    assert caught.value.path == path
