"""Training, prefill and decode are one attention: equal outputs, one projection, one gate."""

from __future__ import annotations

import pytest
import torch
from attention_oracle import layer_oracle, make_layer
from tolerances import FORMAT_ERROR, TOL

from dba_core.config.kv_policy import KVCachePolicy
from dba_core.contracts import DecodeOutput
from dba_core.errors import CacheError, PluginError, UnsupportedError

pytestmark = pytest.mark.torch

T = 13
LAYERS = {
    "standard temperature": {"mode": "standard", "learned_temperature": True},
    "gqa null": {"mode": "gqa", "null_token": "learned"},
    "bottleneck tied": {"mode": "bottleneck", "tie_qk": True, "geo_head_dim": 6},
    "decoupled": {"mode": "decoupled", "learned_temperature": True},
    "decoupled grouped null static": {
        "mode": "decoupled",
        "gate": "static",
        "null_token": "learned",
        "n_kv_heads": 2,
        "sem_head_dim": 3,
        "geo_head_dim": 4,
        "v_head_dim": 9,
    },
    "decoupled tied null": {"mode": "decoupled", "tie_qk": True, "null_token": "learned", "sem_head_dim": 4},
}
SPLITS = {"prefill": (T,), "mixed": (5, 1, 1, 6), "decode": (1,) * T}
FP32 = "ksem=fp32,kgeo=fp32,v=fp32"


def through_cache(layer, x, split, policy, **options):
    cache = layer.new_cache(batch=len(x), capacity=x.shape[1], policy=policy, **options)
    return torch.cat([layer(chunk, cache=cache) for chunk in x.split(split, dim=1)], dim=1)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", LAYERS)
def test_an_fp32_cache_changes_nothing(name: str, split: str) -> None:
    layer = make_layer(**LAYERS[name])
    x = torch.randn(2, T, 24)
    y = through_cache(layer, x, SPLITS[split], FP32)
    assert not y.requires_grad
    torch.testing.assert_close(y, layer(x).detach(), **TOL["float32"])
    torch.testing.assert_close(y.double(), layer_oracle(layer, x), **TOL["float32"])


@pytest.mark.parametrize("policy", ["fp16", "bf16", "q8_0@8", "q4_0@8", "nf4@8"])
@pytest.mark.parametrize("resid", [0, 4])
@pytest.mark.parametrize("name", ["standard temperature", "decoupled grouped null static"])
def test_a_quantized_cache_is_off_by_its_format(name: str, resid: int, policy: str) -> None:
    # In float64, because projections of one token and of many differ in the last bit of float32, and a key
    # between two codes then rounds to either.
    layer = make_layer(**LAYERS[name]).double()
    x = torch.randn(2, 4 * T, 24).double()
    exact = layer_oracle(layer, x).detach()
    text = f"ksem={policy},kgeo={policy},v={policy},resid={resid}"
    whole = through_cache(layer, x, (4 * T,), text)
    error = float((whole - exact).norm() / exact.norm())
    assert 0 < error < FORMAT_ERROR[policy.partition("@")[0]]
    steps = through_cache(layer, x, (1,) * (4 * T), text)
    assert float((steps - whole).norm() / whole.norm()) < 1e-5


@pytest.mark.parametrize("null_token", ["none", "learned"])
@pytest.mark.parametrize("split", [None, (T,), (4, 1, 8), (1,) * T])
def test_the_output_is_projected_once(null_token: str, split) -> None:
    layer = make_layer(mode="decoupled", null_token=null_token)
    calls = []
    layer.out_proj.register_forward_hook(lambda module, args, out: calls.append(args[0].shape))
    x = torch.randn(2, T, 24)
    if split is None:
        layer(x)
        layer(x, mask=torch.ones(T, T, dtype=torch.bool))
        assert calls == [(2, T, 4 * layer.shape.v_head_dim)] * 2
        return
    through_cache(layer, x, split, FP32)
    assert calls == [(2, size, 4 * layer.shape.v_head_dim) for size in split]


@pytest.mark.parametrize("gate", ["causal", "static"])
def test_the_gate_changes_no_cached_value(gate: str) -> None:
    layer = make_layer(mode="decoupled", gate=gate)
    x = torch.randn(2, T, 24)
    caches, outs = [], []
    for _ in range(2):
        caches.append(layer.new_cache(batch=2, capacity=T, policy="ksem=q8_0,kgeo=q8_0,v=q4_0,resid=4"))
        outs.append(torch.cat([layer(chunk, cache=caches[-1]) for chunk in x.split((6, 1, 6), dim=1)], dim=1))
        with torch.no_grad():
            for parameter in layer.gate.parameters():
                parameter.add_(1.0)
    assert (outs[0] - outs[1]).abs().max() > 1e-3
    for name in ("k_sem", "k_geo", "v"):
        one, two = (getattr(cache, name) for cache in caches)
        assert torch.equal(one.stored(0, T), two.stored(0, T))
        assert torch.equal(one.recent_ring, two.recent_ring)


@pytest.mark.parametrize("name", ["gqa null", "decoupled grouped null static"])
def test_ragged_rows_equal_rows_of_their_own(name: str) -> None:
    """Prompts of lengths 5, 2, 0, decode steps of some rows only, then a chunk from different positions."""
    layer = make_layer(**LAYERS[name])
    policy = "ksem=q8_0@8,kgeo=q8_0@8,v=q8_0@8,resid=3"
    x = torch.randn(3, T, 24)
    cache = layer.new_cache(batch=3, capacity=T, policy=policy)
    taken, seen = [0, 0, 0], [[], [], []]
    for counts, width in (((5, 2, 0), 5), ((1, 1, 1), 1), ((0, 1, 1), 1), ((3, 4, 2), 4)):
        chunk = torch.zeros(3, width, 24)
        for row, count in enumerate(counts):
            chunk[row, :count] = x[row, taken[row] : taken[row] + count]
        y = layer(chunk, cache=cache, counts=counts)
        for row, count in enumerate(counts):
            seen[row].append(y[row, :count])
            assert y[row, count:].eq(0).all()
            taken[row] += count
    assert cache.lengths == tuple(taken) == (9, 8, 4)
    for row in range(3):
        alone = layer.new_cache(batch=1, capacity=T, policy=policy)
        wanted = layer(x[row : row + 1, : taken[row]], cache=alone)[0]
        torch.testing.assert_close(torch.cat(seen[row]), wanted, **TOL["float32"])


def test_truncate_and_go_on_equals_never_having_gone_there() -> None:
    layer = make_layer(**LAYERS["decoupled"])
    policy = "ksem=q4_0@8,kgeo=q8_0@8,v=q4_0@8,resid=4"
    x = torch.randn(1, T, 24)
    cache = layer.new_cache(batch=1, capacity=T, policy=policy)
    layer(x[:, :6], cache=cache)
    layer(torch.randn(1, 5, 24), cache=cache)
    cache.truncate(6)
    again = torch.cat([layer(x[:, 6:7], cache=cache), layer(x[:, 7:], cache=cache)], dim=1)
    torch.testing.assert_close(again, through_cache(layer, x, (T,), policy)[:, 6:], **TOL["float32"])


def test_no_tokens_and_a_mask() -> None:
    layer = make_layer(**LAYERS["gqa null"])
    cache = layer.new_cache(batch=2, capacity=T, policy=FP32)
    assert layer(torch.randn(2, 0, 24), cache=cache).shape == (2, 0, 24)
    assert cache.lengths == (0, 0)
    with pytest.raises(UnsupportedError, match="mask together with a cache"):
        layer(torch.randn(2, 3, 24), cache=cache, mask=torch.ones(3, 3, dtype=torch.bool))
    with pytest.raises(CacheError, match="x has batch 3, the cache 2"):
        layer(torch.randn(3, 1, 24), cache=cache)


@pytest.mark.parametrize("q_len", [1, 4])
def test_a_refused_append_leaves_the_cache_as_it_was(q_len: int) -> None:
    layer = make_layer(**LAYERS["decoupled"])
    cache = layer.new_cache(batch=1, capacity=T, policy="ksem=q8_0,kgeo=q8_0,v=q8_0,resid=2")
    x = torch.randn(1, 6, 24)
    layer(x, cache=cache)
    bad = torch.randn(1, q_len, 24)
    bad[0, 0, 3] = torch.nan
    with pytest.raises(CacheError, match="position 6"):
        layer(bad, cache=cache)
    assert cache.lengths == (6,)
    more = torch.randn(1, 3, 24)
    torch.testing.assert_close(
        layer(more, cache=cache),
        through_cache(layer, torch.cat([x, more], dim=1), (9,), cache.policy)[:, 6:],
        **TOL["float32"],
    )


@pytest.mark.parametrize("q_len", [1, 6])
def test_bfloat16_and_autocast_on_cached_paths(q_len: int) -> None:
    layer = make_layer(**LAYERS["decoupled grouped null static"])
    x = torch.randn(2, 12, 24)
    exact = layer(x).detach()
    cache = layer.new_cache(batch=2, capacity=12, policy=FP32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = torch.cat([layer(chunk, cache=cache) for chunk in x.split(q_len, dim=1)], dim=1)
    torch.testing.assert_close(cast.float(), exact, **TOL["bfloat16"])
    half = layer.to(torch.bfloat16)
    y = through_cache(half, x.bfloat16(), (q_len,) * (12 // q_len), FP32)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact, **TOL["bfloat16"])


class Counting:
    """A backend that says how often it was called and returns zeros."""

    name = "counting"
    fused_null = True
    writer = None

    def __init__(self) -> None:
        self.calls = 0

    def decode(self, q_sem, q_geo, cache, *, null=None, needs_lse=False) -> DecodeOutput:
        self.calls += 1
        return DecodeOutput(out=q_geo.new_zeros(*q_geo.shape[:2], cache.v.head_dim))


def test_a_backend_given_as_an_instance_decodes() -> None:
    from dba_core.attention.module import DecoupledAttention

    backend = Counting()
    layer = DecoupledAttention(make_layer(mode="standard").config, decode_backend=backend)
    cache = layer.new_cache(batch=1, capacity=4, policy=KVCachePolicy())
    assert layer(torch.randn(1, 1, 24), cache=cache).eq(0).all()
    assert backend.calls == 1
    assert layer.decode_backend(cache) is backend
    assert "decode_backend" not in layer.selections
    with pytest.raises(UnsupportedError, match="given as an instance"):
        layer.decode_selection(cache)


def test_the_backend_is_chosen_once_per_kind_of_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make_layer(mode="decoupled")
    assert "decode_backend" not in layer.selections
    cache = layer.new_cache(batch=1, capacity=8, policy=FP32)
    chosen = layer.selections["decode_backend"]
    assert chosen.name == "cpu"
    assert chosen.request.has_null is False
    assert (chosen.request.batch, chosen.request.capacity, chosen.request.residual_len) == (1, 8, 0)
    assert chosen.request.k_sem == cache.specs[0]
    for _ in range(3):
        layer(torch.randn(1, 1, 24), cache=cache)
    assert layer.decode_selection(cache) is chosen
    other = layer.new_cache(batch=1, capacity=8, policy="ksem=q8_0,kgeo=q8_0,v=q8_0,resid=4")
    assert layer.decode_selection(other) is not chosen
    assert layer.selections["decode_backend"].request.residual_len == 4


def test_an_unknown_backend_is_refused_when_the_cache_is_made() -> None:
    from dba_core.attention.module import DecoupledAttention

    layer = DecoupledAttention(make_layer(mode="standard").config, decode_backend="streming")
    with pytest.raises(PluginError, match="Did you mean 'streaming'"):
        layer.new_cache(batch=1, capacity=4, policy=FP32)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("policy", [FP32, "ksem=q4_0@8,kgeo=q8_0@16,v=nf4@8,resid=3"])
def test_what_would_serve_a_cache_is_what_serves_it(name: str, policy: str) -> None:
    """A dry run asks without making one; on `meta` it could not."""
    layer = make_layer(**LAYERS[name])
    made = layer.decode_selection(layer.new_cache(batch=1, capacity=9, policy=policy))
    asked = layer.selection_without_cache(KVCachePolicy.parse(policy), capacity=9, device="cpu")
    assert (asked.request, asked.name, asked.why) == (made.request, made.name, made.why)
    moved = layer.to("meta").selection_without_cache(KVCachePolicy.parse(policy), capacity=9, device="cpu")
    assert moved.request == made.request
