"""The fused path without a cache against the dense oracle: values, gradients, masks, odd sizes, dropout."""

from __future__ import annotations

import pytest
import torch
from attention_oracle import layer_oracle, make_layer
from tolerances import TOL

from dba_core.attention import fused
from dba_core.attention.fused import packed_width

pytestmark = pytest.mark.torch

# Every pair of options meets: layout x null x gate x grouped x tied x temperature x widths.
LAYERS = {
    "standard": {"mode": "standard"},
    "standard null temperature": {"mode": "standard", "null_token": "learned", "learned_temperature": True},
    "standard tied": {"mode": "standard", "tie_qk": True, "v_head_dim": 3},
    "gqa": {"mode": "gqa", "learned_temperature": True},
    "gqa null": {"mode": "gqa", "n_kv_heads": 2, "null_token": "learned"},
    "bottleneck": {"mode": "bottleneck", "n_kv_heads": 2, "geo_head_dim": 6, "learned_temperature": True},
    "bottleneck tied null": {"mode": "bottleneck", "tie_qk": True, "null_token": "learned", "v_head_dim": 5},
    "decoupled": {"mode": "decoupled"},
    "decoupled null tied": {"mode": "decoupled", "null_token": "learned", "tie_qk": True},
    "decoupled grouped static": {"mode": "decoupled", "n_kv_heads": 2, "gate": "static", "v_head_dim": 9},
    "decoupled grouped null temperature": {
        "mode": "decoupled",
        "n_kv_heads": 1,
        "null_token": "learned",
        "learned_temperature": True,
        "sem_head_dim": 3,
        "geo_head_dim": 4,
        "v_head_dim": 2,
    },
    "decoupled no gate": {
        "mode": "decoupled",
        "gate": "none",
        "sem_head_dim": 5,
        "learned_temperature": True,
    },
    "decoupled static tied null": {
        "mode": "decoupled",
        "gate": "static",
        "tie_qk": True,
        "null_token": "learned",
        "learned_temperature": True,
        "sem_head_dim": 1,
    },
}


@pytest.mark.parametrize("name", LAYERS)
def test_values_and_gradients_equal_the_oracle(name: str) -> None:
    layer = make_layer(**LAYERS[name]).double()
    x = torch.randn(2, 9, 24, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 9, 24, dtype=torch.float64)
    y, expected = layer(x), layer_oracle(layer, x)
    torch.testing.assert_close(y, expected, **TOL["float64"])
    parameters = [x, *layer.parameters()]
    ours = torch.autograd.grad((y * weights).sum(), parameters)
    theirs = torch.autograd.grad((expected * weights).sum(), parameters)
    for got, wanted in zip(ours, theirs, strict=True):
        assert wanted.abs().max() > 0
        torch.testing.assert_close(got, wanted, **TOL["float64"])


@pytest.mark.parametrize("q_len", [0, 1, 2, 63, 64, 65])
@pytest.mark.parametrize("name", ["standard", "decoupled null tied", "decoupled grouped null temperature"])
def test_any_length_in_float32(name: str, q_len: int) -> None:
    layer = make_layer(**LAYERS[name])
    x = torch.randn(3, q_len, 24)
    y = layer(x)
    assert y.shape == (3, q_len, 24)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), layer_oracle(layer, x), **TOL["float32"])


def test_gradcheck() -> None:
    layer = make_layer(**LAYERS["decoupled grouped null temperature"]).double()
    x = torch.randn(1, 3, 24, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradcheck(lambda *_: layer(x.detach()), tuple(layer.parameters()))


def test_second_derivative_of_the_rotated_projection() -> None:
    x, weight = torch.randn(1, 3, 4, dtype=torch.float64), torch.randn(24, 4, dtype=torch.float64)
    angle = torch.rand(3, 1, 2, dtype=torch.float64)

    def project(x, weight):
        return fused.rotated_projection(x, weight, angle.cos(), angle.sin(), sizes=(2, 1, 1), width=6)

    inputs = (x.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradgradcheck(project, inputs)


@pytest.mark.parametrize("name", ["standard", "decoupled null tied", "decoupled grouped static"])
def test_compiled_code_and_eager_code_compute_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make_layer(**LAYERS[name]).double()
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    eager = layer(x)
    gradients = torch.autograd.grad(eager.square().sum(), list(layer.parameters()))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    other = layer(x)
    torch.testing.assert_close(other, eager, **TOL["float64"])
    for got, wanted in zip(
        torch.autograd.grad(other.square().sum(), list(layer.parameters())), gradients, strict=True
    ):
        torch.testing.assert_close(got, wanted, **TOL["float64"])


@pytest.mark.parametrize("name", ["gqa null", "decoupled null tied"])
def test_bfloat16_weights_and_autocast(name: str) -> None:
    layer = make_layer(**LAYERS[name])
    x = torch.randn(2, 17, 24)
    exact = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = layer(x)
    assert cast.dtype == torch.bfloat16
    torch.testing.assert_close(cast.float(), exact, **TOL["bfloat16"])
    half = layer.to(torch.bfloat16)(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, **TOL["bfloat16"])


@pytest.mark.parametrize("shape", [(2, 4, 9, 9), (9, 9), (2, 1, 1, 9), (1, 4, 9, 1), (4, 9, 9)])
@pytest.mark.parametrize("null_token", ["none", "learned"])
@pytest.mark.parametrize("n_kv_heads", [4, 2])
def test_mask_joins_causality(shape: tuple[int, ...], null_token: str, n_kv_heads: int) -> None:
    layer = make_layer(mode="decoupled", null_token=null_token, n_kv_heads=n_kv_heads)
    x = torch.randn(2, 9, 24)
    mask = torch.rand(shape) > 0.6
    torch.testing.assert_close(
        layer(x, mask=mask).double(), layer_oracle(layer, x, mask=mask), **TOL["float32"]
    )


def test_a_query_that_sees_nothing_gives_zeros_and_no_nan() -> None:
    layer = make_layer(mode="standard")
    x = torch.randn(1, 4, 24, requires_grad=True)
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[2] = False
    y = layer(x, mask=mask)
    assert y[0, 2].abs().max() == 0
    assert y[0, 3].abs().max() > 0
    gradients = torch.autograd.grad(y.sum(), [x, *layer.parameters()])
    assert all(torch.isfinite(g).all() for g in gradients)


def test_wrong_inputs_are_named() -> None:
    layer = make_layer(mode="standard")
    x = torch.randn(2, 5, 24)
    with pytest.raises(ValueError, match=r"x has shape \[2, 5, 23\]; give \[batch, tokens, 24\]"):
        layer(x[..., 1:])
    with pytest.raises(ValueError, match=r"torch\.bool"):
        layer(x, mask=torch.ones(5, 5))
    with pytest.raises(ValueError, match=r"\[6, 6\]; give \[T,T\] \[5, 5\], or .* \[2, 4, 5, 5\]"):
        layer(x, mask=torch.ones(6, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match="without a cache"):
        layer(x, counts=[1, 2])


def test_dropout_only_in_training() -> None:
    layer = make_layer(mode="decoupled", dropout=0.5)
    x = torch.randn(2, 8, 24)
    torch.testing.assert_close(layer.eval()(x).double(), layer_oracle(layer, x), **TOL["float32"])
    layer.train()
    assert (layer(x) - layer(x)).abs().max() > 1e-3


@pytest.mark.parametrize("name", LAYERS)
def test_no_mask_and_one_width_reach_the_fused_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What keeps torch on its flash kernel: no mask, equal widths, no T x S tensor."""
    seen = []

    def spy(q, k, v, **options):
        seen.append((q.shape, k.shape, v.shape, options))
        return real(q, k, v, **options)

    real = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(fused.F, "scaled_dot_product_attention", spy)
    layer = make_layer(**LAYERS[name])
    layer(torch.randn(2, 6, 24))
    (q, k, v, options) = seen[0]
    tokens = 7 if layer.null_token is not None else 6
    assert len(seen) == 1
    assert options["attn_mask"] is None
    assert options["is_causal"]
    width = packed_width(layer.shape)
    assert q == (2, 4, tokens, width)
    assert k == v == (2, layer.shape.n_kv_heads, tokens, width)


@pytest.mark.parametrize("name", ["standard", "decoupled null tied"])
def test_the_layer_compiles_without_graph_breaks(name: str) -> None:
    layer = make_layer(**LAYERS[name])
    x = torch.randn(2, 5, 24)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x), **TOL["float32"])
