"""The future changes nothing, by one bit; every visible token, and the null token, changes something.

On every path: training, prefill in chunks, decode. What a test of shapes cannot see.
"""

from __future__ import annotations

import pytest
import torch
from attention_oracle import make_layer

pytestmark = pytest.mark.torch

T = 11
LAYERS = {
    "standard": {"mode": "standard"},
    "gqa null": {"mode": "gqa", "null_token": "learned"},
    "bottleneck tied": {"mode": "bottleneck", "tie_qk": True},
    "decoupled grouped null": {
        "mode": "decoupled",
        "null_token": "learned",
        "n_kv_heads": 2,
        "v_head_dim": 5,
    },
}
#: How the T tokens enter: the sizes of the chunks, () for no cache at all.
PATHS = {"training": (), "prefill": (T,), "chunks": (4, 1, 6), "decode": (1,) * T}
POLICIES = (
    "ksem=fp32,kgeo=fp32,v=fp32",
    "ksem=q4_0@8,kgeo=q8_0@8,v=q4_0@8,resid=3",
    "ksem=nf4@8,kgeo=q8_0@8,v=q8_0@8",
)
GRID = [("training", POLICIES[0])] + [(path, policy) for path in list(PATHS)[1:] for policy in POLICIES]


def run(layer, x, path: str, policy: str):
    """[B,T,d_model] through the path, without gradients."""
    with torch.no_grad():
        if not PATHS[path]:
            return layer(x)
        cache = layer.new_cache(batch=len(x), capacity=T, policy=policy)
        return torch.cat([layer(chunk, cache=cache) for chunk in x.split(PATHS[path], dim=1)], dim=1)


@pytest.mark.parametrize(("path", "policy"), GRID)
@pytest.mark.parametrize("name", LAYERS)
def test_the_future_changes_nothing_and_the_past_something(name: str, path: str, policy: str) -> None:
    layer = make_layer(**LAYERS[name])
    x = torch.randn(2, T, 24)
    before = run(layer, x, path, policy)
    for token in range(T):
        other = x.clone()
        other[:, token] += 2 * torch.randn(2, 24)
        after = run(layer, other, path, policy)
        assert torch.equal(after[:, :token], before[:, :token]), f"token {token} leaks into the past"
        moved = (after - before).abs().amax(dim=-1)[:, token:]
        assert (moved > 1e-6).all(), f"token {token} is not seen by {(moved <= 1e-6).nonzero().tolist()}"


@pytest.mark.parametrize("name", ["standard", "decoupled grouped null"])
def test_gradients_flow_from_every_visible_token_only(name: str) -> None:
    layer = make_layer(**LAYERS[name])
    x = torch.randn(1, T, 24, requires_grad=True)
    y = layer(x)
    for query in range(T):
        (gradient,) = torch.autograd.grad(y[0, query].square().sum(), x, retain_graph=True)
        size = gradient[0].abs().amax(dim=-1)
        assert (size[: query + 1] > 1e-7).all()
        assert size[query + 1 :].eq(0).all()


@pytest.mark.parametrize(("path", "policy"), GRID)
def test_every_query_sees_the_null_token(path: str, policy: str) -> None:
    layer = make_layer(**LAYERS["decoupled grouped null"])
    x = torch.randn(2, T, 24)
    before = run(layer, x, path, policy)
    for parameter in layer.null_token.parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.add_(torch.randn_like(parameter))
        assert ((run(layer, x, path, policy) - before).abs().amax(dim=-1) > 1e-6).all()
        with torch.no_grad():
            parameter.copy_(kept)


def test_the_null_token_counts_once() -> None:
    """With all scores equal, query t averages t + 2 values: the null value has weight 1 / (t + 2)."""
    layer = make_layer(mode="standard", null_token="learned")
    with torch.no_grad():
        layer.q_geo.weight.zero_()
        layer.v_proj.weight.zero_()
    x = torch.randn(1, T, 24)
    whole = layer.out_proj(layer.null_token().v.flatten())  # weight 1
    expected = whole / torch.arange(2, T + 2)[:, None]
    for path, policy in GRID:
        torch.testing.assert_close(run(layer, x, path, policy)[0], expected, rtol=1e-5, atol=1e-5)
